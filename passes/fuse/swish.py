"""Swish, Mish, Softplus and the leaky rectifiers from their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._expr import Region, number, polynomial, producer_is, read_gated, scaled, times

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


class FuseSwish(NodePass):
    """x * Sigmoid(alpha * x) -> Swish(x, alpha), from opset 24."""

    name: ClassVar[str] = "fuse-swish"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Mul",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        if m.opset() < 24:
            raise Uninteresting("Swish came with opset 24")
        x, alpha, factor = read_gated(m, ("Sigmoid",), _read_gate)
        m.supports("Swish", like=x)
        return times(op, op.Swish(x, alpha=alpha), factor)


def _read_gate(region: Region, gate: ir.Value, x: ir.Value) -> tuple[float, float]:
    argument = region.node(gate, "Sigmoid").inputs[0]
    assert argument is not None
    line = polynomial(region, argument, x)
    if {power for power, c in line.items() if c != 0} != {1}:
        raise NoMatch("the argument of Sigmoid is not alpha * x")
    return 1.0, line[1]


class FuseMish(RewritePass):
    """x * Tanh(Softplus(x)) -> Mish(x)."""

    name: ClassVar[str] = "fuse-mish"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    after: ClassVar[tuple[str, ...]] = ("fuse-softplus",)

    def pattern(self, op: PatternBuilder, x: Any) -> Any:
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    def rewrite(self, op: Builder, m: Match, x: ir.Value) -> ir.Value:
        m.supports("Mish", like=x)
        return op.Mish(x)


class FuseSoftplus(RewritePass):
    """Relu(x) + Log(Exp(-Abs(x)) + 1) -> Softplus(x), also Log(Exp(x) + 1) where Exp provably does not overflow.

    The standard defines Softplus by the second form; runtimes compute it by the first, which is finite where the second
    is infinite.
    """

    name: ClassVar[str] = "fuse-softplus"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    needs: ClassVar[tuple[str, ...]] = ("shapes", "ranges")

    def pattern(self, op: PatternBuilder, x: Any) -> Any:
        stable = op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), 1.0, _as="add"))
        return [
            op.Log(op.Add(op.Exp(x), 1.0, _as="add")),
            op.Add(op.one_of(op.Relu(x), op.Max(x, 0.0)), stable),
        ]

    def rewrite(self, op: Builder, m: Match, x: ir.Value) -> ir.Value:
        small = m.root.op_type == "Log" and producer_is(m, x, "Neg") and producer_is(m, x.producer().inputs[0], "Abs")  # type: ignore[union-attr]
        m.require(not small, "this is the correction in the form that does not overflow")
        m.require(m.same_shape(x, m["add"].outputs[0]), "the constant changes the rank")
        if m.root.op_type == "Log":
            m.require(m.ctx.ranges.of(x).high <= _largest_exponent(m, x), "Exp may overflow, where Softplus is finite")
        m.supports("Softplus", like=x)
        return op.Softplus(x)


def _largest_exponent(m: Match, x: ir.Value) -> float:
    """Exp of less is finite in the type of x."""
    import ml_dtypes
    import numpy as np

    return float(np.log(float(ml_dtypes.finfo(m.dtype(x).numpy()).max))) - 0.01  # type: ignore[no-untyped-call]  # ml_dtypes has no types


class FuseLeakyRelu(NodePass):
    """Max(x, a * x) -> LeakyRelu(x, a) for 0 <= a <= 1; Where(x > 0, x, a * x) -> LeakyRelu(x, a) for any a."""

    name: ClassVar[str] = "fuse-leaky-relu"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Max", "Where")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        region = Region(m)
        x, slope = self._max(region, node) if node.op_type == "Max" else self._where(region, node)
        m.require(m.is_float(x), "LeakyRelu is for floats")
        region.close()
        m.supports("LeakyRelu", like=x)
        return op.LeakyRelu(x, alpha=slope)

    def _max(self, region: Region, node: ir.Node) -> tuple[ir.Value, float]:
        if len(node.inputs) != 2:
            raise Uninteresting("not of two")
        for x, other in (node.inputs, node.inputs[::-1]):
            if producer_is(region.m, other, "Mul", "Div"):
                part = scaled(region.m, other.producer())  # type: ignore[union-attr, arg-type]
                if part is not None and part[0] is x:
                    region.m.require(0 <= part[1] <= 1, f"the larger of x and {part[1]} x is no LeakyRelu")
                    region.node(other, "Mul", "Div")
                    return part
        raise Uninteresting("not the larger of x and a * x")

    def _where(self, region: Region, node: ir.Node) -> tuple[ir.Value, float]:
        condition, x, other = node.inputs
        if (
            x is None
            or not producer_is(region.m, condition, "Greater", "GreaterOrEqual")
            or not producer_is(region.m, other, "Mul", "Div")
        ):
            raise Uninteresting("not a choice by sign")
        compare = region.node(condition, "Greater", "GreaterOrEqual")
        part = scaled(region.m, region.node(other, "Mul", "Div"))
        if part is None or part[0] is not x or compare.inputs[0] is not x or number(compare.inputs[1]) != 0:
            raise NoMatch("not x where x > 0, else a * x")
        return part


class FusePRelu(RewritePass):
    """Relu(x) - slope * Relu(-x) -> PRelu(x, slope), also Where(x > 0, x, slope * x)."""

    name: ClassVar[str] = "fuse-prelu"
    after: ClassVar[tuple[str, ...]] = ("fuse-leaky-relu",)
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, slope: Any) -> Any:
        down = op.Relu(op.Neg(x))
        up = op.Relu(x, _as="up")
        return [
            op.Sub(up, op.Mul(slope, down), _as="sub"),
            op.Add(up, op.Mul(slope, op.Neg(down)), _as="sub"),
            op.Add(up, op.Neg(op.Mul(slope, down)), _as="sub"),
            op.Add(up, op.Mul(slope, down), _as="add"),
            op.Where(op.node(("Greater", "GreaterOrEqual"), x, 0.0, _as="sign"), x, op.Mul(x, slope)),
        ]

    def rewrite(self, op: Builder, m: Match, x: ir.Value, slope: ir.Value) -> ir.Value:
        import numpy as np

        m.require(m.is_float(x), "not of floats")
        m.require(not m.has("sign") or m.same_shape(m["sign"].outputs[0], x), "the zero changes the rank")
        m.require(m.ctx.shapes.broadcasts_to(slope, x), "the slope does not broadcast to x")
        m.supports("PRelu", like=x)
        if not m.has("sign"):
            # slope * 0 stands in the sum where x is positive: a NaN or infinite slope would show there.
            m.require(m.is_const(slope), "the slope is not constant, so it may be NaN or infinite")
            m.require(np.isfinite(m.const(slope)).all(), "the slope is not finite")
        if m.has("add"):
            slope = op.const(-m.const(slope), f"{slope.name}_negated")
        return op.PRelu(x, slope)
