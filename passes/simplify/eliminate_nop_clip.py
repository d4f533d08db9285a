"""Bounds that the values keep anyway."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateNopClip(NodePass):
    """Clip(x, low, high) -> x, and so for Relu, Abs, Max and Min with a constant, where x provably lies in the bounds.

    NaN passes through each of these ops, so x may be NaN. A Clip without a bound stops at the largest finite number.
    """

    name: ClassVar[str] = "eliminate-nop-clip"
    level: ClassVar[int | None] = 1
    needs: ClassVar[tuple[str, ...]] = ("shapes", "ranges")
    ops: ClassVar[tuple[str, ...]] = ("Clip", "Relu", "Abs", "Max", "Min")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        at, low, high = _bounds(m, node)
        x = node.inputs[at]
        found = m.ctx.ranges.of(x)
        if x is None or not (low <= found.low and found.high <= high):
            raise Uninteresting("values may lie outside")
        m.require(m.same_shape(x, node.outputs[0]), "the other operand broadcasts x, or may")
        m.not_quantized([x, node.outputs[0]])
        return x


def _bounds(m: Match, node: ir.Node) -> tuple[int, float, float]:
    """Which input is bounded, and to what."""
    from graphopt import ir

    if node.op_type in ("Relu", "Abs"):
        return 0, 0.0, math.inf
    if node.op_type == "Clip":
        if m.opset() < 11:
            limit = _largest(ir.DataType.FLOAT)  # the attributes' defaults, whatever the type
            return 0, m.attr(node, "min", -limit), m.attr(node, "max", limit)
        limit = _largest(m.dtype(node.inputs[0]))
        low, high = m.input(1), m.input(2)
        return 0, m.scalar(low) if low is not None else -limit, m.scalar(high) if high is not None else limit
    constant = [m.is_const(value) for value in node.inputs]
    if constant not in ([True, False], [False, True]):
        raise Uninteresting("not one constant and one variable")
    at = constant.index(False)
    bound = m.ctx.ranges.of(node.inputs[1 - at])
    m.require(not bound.nan, "the constant may be NaN")
    return (at, bound.high, math.inf) if node.op_type == "Max" else (at, -math.inf, bound.low)


def _largest(dtype: ir.DataType) -> float:
    if dtype.is_integer():
        return math.inf
    import numpy as np

    return float(np.finfo(dtype.numpy()).max) if dtype.name in ("FLOAT", "DOUBLE", "FLOAT16") else math.inf
