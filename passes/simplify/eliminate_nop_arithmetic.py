"""Arithmetic with a neutral element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.constants import const_tensor
from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


# The constant that leaves the other operand as it is, and at which positions it may stand.
_NEUTRAL: dict[str, tuple[float, tuple[int, ...]]] = {
    "Add": (0, (0, 1)),
    "Sub": (0, (1,)),
    "Mul": (1, (0, 1)),
    "Div": (1, (1,)),
    "Pow": (1, (1,)),
    "And": (1, (0, 1)),
    "Or": (0, (0, 1)),
    "Xor": (0, (0, 1)),
}
# Of these two, what lies at the end of the range is neutral.
_ENDS = {"Max": -math.inf, "Min": math.inf}
_ONE_INPUT = ("Sum", "Mean", "Max", "Min")


class EliminateNopArithmetic(NodePass):
    """x + 0 -> x, and so for x - 0, x * 1, x / 1, x ** 1, x and true, x or false, max(x, -inf), and a Sum of one.

    Exact up to the sign of a zero: -0.0 + 0.0 is 0.0, and the two count as equal unless a user divides by the sum.
    Nothing else of this rule changes a sign. The shape must provably stay: the constant may not broadcast x.
    """

    name: ClassVar[str] = "eliminate-nop-arithmetic"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = (*_NEUTRAL, *_ONE_INPUT)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        if len(node.inputs) == 1 and node.inputs[0] is not None:
            return node.inputs[0]
        if node.op_type in _NEUTRAL:
            neutral, positions = _NEUTRAL[node.op_type]
        elif node.op_type in _ENDS and len(node.inputs) == 2:
            neutral, positions = _ENDS[node.op_type], (0, 1)
        else:
            raise Uninteresting("several operands")
        found = next((at for at in positions if _all_are(m, node.inputs[at], neutral)), None)
        if found is None:
            raise Uninteresting("no operand is a neutral constant")
        x = node.inputs[1 - found]
        assert x is not None
        m.require(m.same_shape(x, node.outputs[0]), "the constant broadcasts the other operand, or may")
        m.not_quantized([x, node.outputs[0]])
        if node.op_type == "Add":
            m.require(not _shows_sign(node.outputs[0]), "x may be -0.0, whose sign shows in a quotient")
        return x


def _shows_sign(value: ir.Value) -> bool:
    """Whether a user divides by the value: 1 / -0.0 is -inf."""
    for use in value.uses():
        if use.node.op_type in ("Reciprocal", "Pow") or (use.node.op_type == "Div" and use.idx == 1):
            return value.dtype is None or value.dtype.is_floating_point()
    return False


def _all_are(m: Match, value: ir.Value | None, wanted: float) -> bool:
    """Whether the value is a small constant with this one content, or known from shape arithmetic to be."""
    if value is None:
        return False
    tensor = const_tensor(value)
    if tensor is None:
        known = m.ctx.shapes.values(value)
        return known is not None and len(known) > 0 and all(item == wanted for item in known)
    if not 0 < tensor.size <= _SMALL or tensor.dtype.name == "STRING":
        return False
    array = tensor.numpy().reshape(-1)
    return bool(array[0] == wanted and (array == wanted).all())


_SMALL = 1 << 16
"""Larger constants are weights: nobody adds zeros of that size, and reading them costs."""
