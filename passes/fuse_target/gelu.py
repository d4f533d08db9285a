"""Gated activations of ONNX Runtime: BiasGelu, FastGelu with a bias, and QuickGelu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.constants import const_scalar
from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder

MS = "com.microsoft"


class FuseBiasGelu(RewritePass):
    """Gelu(x + b) -> BiasGelu(x, b); with tanh, FastGelu(x, b).

    Level 3: ONNX Runtime's own optimizer does the same at load, so it gains nodes, not time.
    """

    name: ClassVar[str] = "fuse-bias-gelu"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = 3
    tolerance: ClassVar[Tolerance] = "reassociates"
    after: ClassVar[tuple[str, ...]] = ("fuse-attention", "fuse-skip-layer-norm")

    def pattern(self, op: PatternBuilder, x: Any, b: Any) -> Any:
        return op.Gelu(op.Add(x, b), _as="gelu")

    def rewrite(self, op: Builder, m: Match, x: ir.Value, b: ir.Value) -> ir.Value:
        if m.rank(b) != 1 or not m.is_const(b):
            x, b = b, x
        m.require(m.is_const(b) and m.rank(b) == 1, "what is added is no constant of rank 1")
        m.require(
            m.rank(x) >= 1 and m.equal(m.dims(x)[-1], m.dims(b)[0]), "the bias broadcasts to other than the last axis"
        )
        m.not_quantized((x,))
        name = "FastGelu" if m.attr("gelu", "approximate", "none") == "tanh" else "BiasGelu"
        m.supports(name, MS, like=x)
        return op.node(name, x, b, _domain=MS)


class FuseQuickGelu(RewritePass):
    """x * Sigmoid(alpha * x) -> QuickGelu(x, alpha); alpha is 1 for SiLU.

    Level 3: ONNX Runtime's own optimizer does the same at load, so it gains nodes, not time.
    """

    name: ClassVar[str] = "fuse-quick-gelu"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = 3
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, alpha: Any) -> Any:
        return [op.Mul(x, op.Sigmoid(op.Mul(x, alpha))), op.Mul(x, op.Sigmoid(x))]

    def rewrite(self, op: Builder, m: Match, x: ir.Value, alpha: ir.Value | None) -> ir.Value:
        factor = 1.0 if alpha is None else const_scalar(alpha)
        m.require(factor is not None, "the factor in front of Sigmoid is no constant scalar")
        m.require(alpha is None or m.rank(alpha) <= m.rank(x), "the factor raises the rank")
        m.not_quantized((x,))
        m.supports("QuickGelu", MS, like=x)
        return op.QuickGelu(x, _domain=MS, alpha=factor)
