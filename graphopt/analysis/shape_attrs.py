"""Reading the attributes, axes and optional inputs of a node, for the inference rules.

Not here: defaults of operators, which stand in the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.attrtypes import TENSOR

if TYPE_CHECKING:
    from graphopt import ir


def attr_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def attr_ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An integer list attribute, None when it is absent."""
    attr = node.attributes.get(name)
    return None if attr is None else tuple(attr.as_ints())


def attr_tensor(node: ir.Node, name: str) -> ir.TensorProtocol | None:
    """A tensor attribute, None when it is absent. Attr.as_tensor() would ask a runtime protocol, which is slow.

    Raises:
        ValueError: a function's caller gives it, or it is no tensor.
    """
    attr = node.attributes.get(name)
    if attr is None:
        return None
    if attr.is_ref() or attr.type != TENSOR:
        raise ValueError(f"attribute {name!r} is no tensor that is known")
    return attr.value


def axis_of(axis: int, rank: int, *, end: int = 0) -> int:
    """A possibly negative axis as 0 <= axis < rank + end."""
    limit = rank + end
    if not -limit <= axis < limit:
        raise ValueError(f"axis {axis} is out of range for rank {rank}")
    return axis + limit if axis < 0 else axis


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be missing or empty."""
    return node.inputs[index] if index < len(node.inputs) else None
