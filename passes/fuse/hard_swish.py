"""HardSigmoid and HardSwish from Clip, Relu6 and Add, with the factor 1/6 wherever the exporter put it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._expr import Region, factors, is_near, number, polynomial, producer_is, read_gated, times

if TYPE_CHECKING:
    from typing import Any

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


class FuseHardSwish(NodePass):
    """x * Clip(x + 3, 0, 6) / 6 -> HardSwish(x), or x * HardSigmoid(x) where the target lacks HardSwish.

    Another factor than 1/6 becomes a multiplication behind it.
    """

    name: ClassVar[str] = "fuse-hard-swish"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x, _, factor = read_gated(m, ("Clip",), _read_gate)
        try:
            m.supports("HardSwish", like=x)
            m.require(m.opset() >= 14, "HardSwish came with opset 14")
        except NoMatch:
            m.supports("HardSigmoid", like=x)
            fewer = len(m.interior) + 1 > 2 + (factor != 1) or _scaled_next(m)
            m.require(fewer, "HardSigmoid and two multiplications are no fewer ops")
            return times(op, op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5)), factor)
        return times(op, op.HardSwish(x), factor)


def _scaled_next(m: Match) -> bool:
    """Whether the only user multiplies by a constant, which can take the factor in."""
    uses = list(m.root.outputs[0].uses())
    return len(uses) == 1 and uses[0].node.op_type == "Mul" and any(m.is_const(v) for v in uses[0].node.inputs)


def _read_gate(region: Region, gate: ir.Value, x: ir.Value) -> tuple[float, None]:
    """The gate as c * 6 * HardSigmoid(x, alpha=1/6, beta=0.5); returns 6c."""
    m = region.m
    alpha, beta, height = read_ramp(region, gate, x)
    if not (is_near(m, alpha, height / 6, x) and is_near(m, beta, height / 2, x)):
        raise NoMatch(f"a ramp of slope {alpha / height:.5g} and offset {beta / height:.5g}, not 1/6 and 1/2")
    return height, None


def read_ramp(region: Region, value: ir.Value, x: ir.Value | None) -> tuple[float, float, float]:
    """`value` as Clip(a * x + b, 0, h): a, b and h.

    Raises:
        NoMatch: another lower bound, bounds that are not constant, or another argument.
    """
    m = region.m
    clip = region.node(value, "Clip")
    low, high = bounds(m, clip)
    if low != 0 or high is None or high <= 0:
        raise NoMatch(f"clipped to {low}..{high}, not from 0 to a positive bound")
    argument = clip.inputs[0]
    assert argument is not None
    line = polynomial(region, argument, x if x is not None else argument)
    if line.keys() - {0, 1} or 1 not in line:
        raise NoMatch("the argument of Clip is not linear")
    return line[1], line.get(0, 0.0), high


def bounds(m: Match, clip: ir.Node) -> tuple[float | None, float | None]:
    """The constant bounds of a Clip, from attributes (before opset 11) or inputs; None where there is none.

    Raises:
        NoMatch: a bound is not constant.
    """
    if m.opset() < 11:
        return m.attr(clip, "min"), m.attr(clip, "max")
    return tuple(None if v is None else float(m.scalar(v)) for v in (m.input(1, clip), m.input(2, clip)))  # type: ignore[return-value]


class FuseHardSigmoid(NodePass):
    """Clip(a * x + b, 0, h) / h -> HardSigmoid(x, alpha=a/h, beta=b/h)."""

    name: ClassVar[str] = "fuse-hard-sigmoid"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Clip")
    after: ClassVar[tuple[str, ...]] = ("fuse-hard-swish",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        if not m.is_float(node.outputs[0]):
            raise Uninteresting("not of floats")
        region = Region(m)
        clip, c = self._clip(m, region, node)
        argument = clip.inputs[0]
        if not producer_is(m, argument, "Add", "Mul", "Sub", "Div"):
            raise Uninteresting("nothing but a Clip")
        low, high = bounds(m, clip)
        x = _base(m, argument)
        alpha, beta, height = read_ramp(region, clip.outputs[0], x)
        m.require(
            low == 0 and high is not None and is_near(m, c * height, 1.0, x), f"from 0 to {c * height:.7g}, not to 1"
        )
        m.require(alpha != 0, "a constant")
        region.close()
        m.supports("HardSigmoid", like=x)
        return op.HardSigmoid(x, alpha=alpha / height, beta=beta / height)

    def _clip(self, m: Match, region: Region, node: ir.Node) -> tuple[ir.Node, float]:
        if node.op_type == "Clip":
            return node, 1.0
        clip = next((v for v in node.inputs if producer_is(m, v, "Clip")), None)
        if clip is None or not any(number(v) is not None for v in node.inputs):
            raise Uninteresting("no Clip times a constant")
        c, _ = factors(region, node.outputs[0], (clip,))
        return region.node(clip, "Clip"), c


def _base(m: Match, value: ir.Value | None) -> ir.Value:
    """What remains below a chain of scalar additions and multiplications, two at most."""
    for _ in range(2):
        node = value.producer() if producer_is(m, value, "Add", "Sub", "Mul", "Div") else None  # type: ignore[union-attr]
        if node is None or sum(number(v) is None for v in node.inputs) != 1:
            break
        value = next(v for v in node.inputs if number(v) is None)
    assert value is not None
    return value


class FuseSigmoidMul(RewritePass):
    """x * HardSigmoid(x, alpha=1/6, beta=0.5) -> HardSwish(x)."""

    name: ClassVar[str] = "fuse-hard-sigmoid-mul"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any) -> Any:
        return op.Mul(x, op.HardSigmoid(x, _as="gate"))

    def rewrite(self, op: Builder, m: Match, x: ir.Value) -> ir.Value:
        alpha, beta = m.attr("gate", "alpha", 0.2), m.attr("gate", "beta", 0.5)
        m.require(
            abs(alpha - 1 / 6) < 1e-6 and abs(beta - 0.5) < 1e-6,
            f"HardSwish has alpha 1/6 and beta 1/2, here {alpha:.5g} and {beta:.5g}",
        )
        m.supports("HardSwish", like=x)
        return op.HardSwish(x)
