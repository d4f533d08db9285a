"""Activations taken into the convolution or matrix product in front: FusedConv, FusedGemm.

On request only: ONNX Runtime does the same at load together with its blocked layouts, measured equal for these and
slower for a residual operand written by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder

MS = "com.microsoft"
_ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid")


class FuseConvActivation(RewritePass):
    """act(Conv(x, w, b)) -> FusedConv(x, w, b, activation), for the usual rectifiers, Clip, Sigmoid and Tanh."""

    name: ClassVar[str] = "fuse-conv-activation"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = None
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, b: Any = None, low: Any = None, high: Any = None) -> Any:
        conv = op.Conv(x, w, b, _as="conv")
        return [op.node(_ACTIVATIONS, conv, _as="act"), op.Clip(conv, low, high, _as="act")]

    def rewrite(
        self,
        op: Builder,
        m: Match,
        x: ir.Value,
        w: ir.Value,
        b: ir.Value | None,
        low: ir.Value | None,
        high: ir.Value | None,
    ) -> ir.Value:
        m.not_quantized((x, w, b))
        m.supports("FusedConv", MS, like=x)
        name, parameters = _activation(m, low, high)
        kept: dict[str, Any] = dict(m["conv"].attributes)
        return op.node("FusedConv", x, w, b, _domain=MS, activation=name, activation_params=parameters or None, **kept)


class FuseGemmActivation(RewritePass):
    """act(Gemm(a, b, c)) -> FusedGemm(a, b, c, activation), for Relu, LeakyRelu, Sigmoid, HardSigmoid and Tanh."""

    name: ClassVar[str] = "fuse-gemm-activation"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = None
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, a: Any, b: Any, c: Any = None) -> Any:
        return op.node(_ACTIVATIONS, op.Gemm(a, b, c, _as="gemm"), _as="act")

    def rewrite(self, op: Builder, m: Match, a: ir.Value, b: ir.Value, c: ir.Value | None) -> ir.Value:
        m.not_quantized((a, b, c))
        m.supports("FusedGemm", MS, like=a)
        name, parameters = _activation(m, None, None)
        given: dict[str, Any] = dict(m["gemm"].attributes)
        given.update(zip(("activation_alpha", "activation_beta"), parameters, strict=False))
        return op.node("FusedGemm", a, b, c, _domain=MS, activation=name, **given)


def _activation(m: Match, low: ir.Value | None, high: ir.Value | None) -> tuple[str, list[float]]:
    """Name and parameters of the matched activation as the fused kernels take them.

    Raises:
        NoMatch: bounds of a Clip are not constant.
    """
    name = m["act"].op_type
    if name == "LeakyRelu":
        return name, [m.attr("act", "alpha", 0.01)]
    if name == "HardSigmoid":
        return name, [m.attr("act", "alpha", 0.2), m.attr("act", "beta", 0.5)]
    if name != "Clip":
        return name, []
    if m.opset() < 11:
        raise NoMatch("Clip has its bounds in attributes")
    limit = 3.4028234663852886e38
    return name, [
        float(m.scalar(value)) if value is not None else bound for value, bound in ((low, -limit), (high, limit))
    ]
