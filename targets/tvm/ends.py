"""Inputs and outputs of what is compiled: how the plan spells them, and which of them no library takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.constants import is_const
from graphopt.target import TensorSpec
from graphopt.targets.tvm.lowering.table import ALL
from graphopt.targets.tvm.lowering.view import dtype_name

if TYPE_CHECKING:
    from graphopt import ir


def spec(value: ir.Value) -> TensorSpec:
    """An input or output as ONNX Runtime would tell it."""
    from graphopt import ir

    shape = None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
    return TensorSpec(value.name or "", _type_text(value.type), shape if is_tensor else None)


def _type_text(kind: ir.TypeProtocol | None) -> str:
    from graphopt import ir

    if isinstance(kind, ir.SequenceType):
        return f"seq({_type_text(kind.elem_type)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({_type_text(kind.elem_type)})"
    return f"tensor({kind.dtype.name.lower() if kind is not None else 'undefined'})"


def why_not_end(value: ir.Value) -> str | None:
    """None when a library can have this value as an input or output; else why not.

    An output that a node computes is not looked at: what lowers the node answers for it.
    """
    from graphopt import ir

    if value.producer() is not None and not is_const(value):
        return None
    if isinstance(value.type, ir.TensorType) and dtype_name(value) in ALL:
        return None
    return f"it is {_type_text(value.type)}, which no library takes"
