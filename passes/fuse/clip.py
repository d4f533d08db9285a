"""Clip from Min and Max, and Relu from Max with zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._expr import keeps_shape, number, producer_is

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class FuseClip(NodePass):
    """Min(Max(x, a), b) -> Clip(x, a, b), also Max(Min(x, b), a) and Min(Relu(x), b), for constants a <= b."""

    name: ClassVar[str] = "fuse-clip"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    # Min and Max pass NaN on; what Clip makes of NaN is left open by the standard.
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Min", "Max")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        value, outer = _split(m, node)
        if not producer_is(m, value, "Min", "Max", "Relu"):
            raise Uninteresting("one bound only")
        inner = value.producer()
        assert inner is not None
        x: ir.Value | None
        if inner.op_type == "Relu":
            x, bound = inner.inputs[0], 0.0
        else:
            x, bound = _split(m, inner)
        if inner.op_type == node.op_type or (inner.op_type == "Relu" and node.op_type == "Max"):
            raise Uninteresting("two bounds on the same side")
        m.sole_use(value)
        low, high = (bound, outer) if node.op_type == "Min" else (outer, bound)
        m.require(low <= high, f"the lower bound {low} is above the upper bound {high}")
        m.require(
            m.opset() >= 12 or (m.is_float(x) and m.opset() >= 11),
            "Clip takes its bounds as inputs from opset 11, integers from 12",
        )
        m.interior = [inner]
        m.supports("Clip", like=x)
        dtype = m.dtype(x).numpy()
        return op.Clip(x, np.asarray(low, dtype=dtype), np.asarray(high, dtype=dtype))


def _split(m: Match, node: ir.Node) -> tuple[ir.Value, float]:
    """x and the bound of Min(x, bound) or Max(x, bound)."""
    if len(node.inputs) == 2:
        for value, constant in (node.inputs, node.inputs[::-1]):
            bound = number(constant)
            if bound is not None and value is not None and bound == bound and keeps_shape(m, constant, value):
                return value, bound
    raise Uninteresting("no constant scalar bound")


class FuseRelu(NodePass):
    """Max(x, 0) -> Relu(x), also Clip(x, 0) without an upper bound."""

    name: ClassVar[str] = "fuse-relu"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Max", "Clip")
    after: ClassVar[tuple[str, ...]] = ("fuse-clip",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        if node.op_type == "Max":
            x, bound = _split(m, node)
        else:
            found = node.inputs[0]
            lower = number(m.input(1))
            if found is None or lower is None or m.input(2) is not None or m.opset() < 11:
                raise Uninteresting("not bounded below only")
            x, bound = found, lower
        if bound != 0:
            raise Uninteresting("the bound is not zero")
        m.require(m.is_float(x), "Relu is used for floats only")
        m.supports("Relu", like=x)
        return op.Relu(x)
