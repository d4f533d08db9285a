"""Do the element types that a model declares contradict its ops? Only what is certain: operands of one type group.

Not here: inference (graphopt/analysis/shapes.py), what a runtime has no kernel for (graphopt/targets).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt import ir
from graphopt.errors import GraphoptError
from graphopt.ir import sites
from graphopt.ir.typetable import Operands, operands

if TYPE_CHECKING:
    from collections.abc import Iterable

MIXED = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Ops of the standard whose repeated operands may differ in type."""


def check_operand_types(model: ir.Model, origin: str) -> None:
    """Compare the declared types of what goes into and comes out of each standard op.

    Raises:
        GraphoptError: two operands that the op's schema gives one type have two, e.g. Add of float and int64.
    """
    for scope in sites.scopes(model):
        opset = (scope.function or model).opset_imports.get("", 0)
        for node in scope.graph:
            if node.domain != "" or len(_dtypes((*node.inputs, *node.outputs))) < 2 or node.op_type in MIXED:
                continue  # most nodes have one type
            formal = operands("", node.op_type, opset)
            if formal is not None:
                _check(node, formal, origin)


def _check(node: ir.Node, formal: Operands, origin: str) -> None:
    slots = [(formal.input_group(slot), value) for slot, value in enumerate(node.inputs) if value is not None]
    slots += [(formal.output_group(slot), value) for slot, value in enumerate(node.outputs)]
    for group in dict.fromkeys(group for group, _ in slots if group):
        values = [value for name, value in slots if name == group]
        if len(found := _dtypes(values)) > 1:
            told = ", ".join(f"{value.name!r} is {dtype.name.lower()}" for dtype, value in found.items())
            raise GraphoptError(f"{origin}: {node.op_type} {node.name!r} wants one element type for these: {told}")


def _dtypes(values: Iterable[ir.Value | None]) -> dict[ir.DataType, ir.Value]:
    """The first tensor of each element type that is known."""
    found: dict[ir.DataType, ir.Value] = {}
    for value in values:
        if value is None:
            continue
        if value.const_value is not None:
            found.setdefault(value.const_value.dtype, value)
        elif isinstance(value.type, ir.TensorType) and value.type.dtype:
            found.setdefault(value.type.dtype, value)
    return found
