"""BatchNormalization folded into the linear op in front of it.

One class per kind of op, because the layouts differ in what is legal; the arithmetic is in _linear.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass
from graphopt.passes.fuse._linear import batch_norm_affine, fold, fold_weight, linear, per_channel, rounded

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


class FuseConvBN(RewritePass):
    """BatchNormalization(Conv(x, w, b)) -> Conv(x, w * s, (b - mean) * s + bias), s = scale / sqrt(var + epsilon)."""

    name: ClassVar[str] = "fuse-conv-bn"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(
        self, op: PatternBuilder, x: Any, w: Any, scale: Any, bias: Any, mean: Any, var: Any, b: Any = None
    ) -> Any:
        conv = op.node(("Conv", "ConvTranspose", "BatchNormalization"), x, w, b, _as="linear", _prefix=True)
        return op.BatchNormalization(conv, scale, bias, mean, var, _as="bn")

    def rewrite(self, op: Builder, m: Match, *_: ir.Value | None) -> ir.Value:
        lin = linear(m, m["linear"])
        factor, shift = batch_norm_affine(m, m["bn"])
        return fold(op, m, lin, factor, shift)


class FuseGemmBN(RewritePass):
    """BatchNormalization(Gemm(x, w, b)) -> Gemm(x, w * s, (b - mean) * s + bias), s = scale / sqrt(var + epsilon)."""

    name: ClassVar[str] = "fuse-gemm-bn"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(
        self, op: PatternBuilder, x: Any, w: Any, scale: Any, bias: Any, mean: Any, var: Any, b: Any = None
    ) -> Any:
        return op.BatchNormalization(op.Gemm(x, w, b, _as="linear"), scale, bias, mean, var, _as="bn")

    def rewrite(self, op: Builder, m: Match, *_: ir.Value | None) -> ir.Value:
        return fold(op, m, linear(m, m["linear"]), *batch_norm_affine(m, m["bn"]))


class FuseMatMulBN(RewritePass):
    """BatchNormalization(MatMul(x, w) + b) -> Gemm(x, w * s, (b - mean) * s + bias), for matrices."""

    name: ClassVar[str] = "fuse-matmul-bn"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(
        self, op: PatternBuilder, x: Any, w: Any, scale: Any, bias: Any, mean: Any, var: Any, b: Any = None
    ) -> Any:
        product = op.MatMul(x, w, _as="linear")
        plain = op.BatchNormalization(product, scale, bias, mean, var, _as="bn")
        return [op.BatchNormalization(op.Add(product, b), scale, bias, mean, var, _as="bn"), plain]

    def rewrite(self, op: Builder, m: Match, x: ir.Value, w: ir.Value, *rest: ir.Value | None) -> ir.Value:
        import numpy as np

        b = rest[-1]
        m.require(m.rank(x) == 2 and m.rank(w) == 2, "Gemm needs matrices; the batch norm's axis 1 is not the last one")
        lin = linear(m, m["linear"])
        m.require(not lin.left, "the constant is the left operand")
        m.supports("Gemm", like=x)
        factor, shift = batch_norm_affine(m, m["bn"])
        added = per_channel(m, b, 2, 1, lin.count) if b is not None else np.zeros(())
        weight = fold_weight(op, m, lin, factor)
        return op.Gemm(x, weight, rounded(op, m, added * factor + shift, w, f"{lin.node.name}_bias"))
