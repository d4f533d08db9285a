"""BatchNormalization folded into the convolution in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.pattern import RewritePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


@dataclass(frozen=True)
class FuseConvBN(RewritePass):
    """BatchNormalization(Conv(x, w, b)) -> Conv(x, w * s, (b - mean) * s + bias), s = scale / sqrt(var + epsilon)."""

    name: ClassVar[str] = "fuse-conv-bn"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, scale: Any, bias: Any, mean: Any, var: Any, b: Any = None) -> Any:
        conv = op.node(("Conv", "ConvTranspose"), x, w, b, _as="conv")
        return op.BatchNormalization(conv, scale, bias, mean, var, _as="bn")

    def rewrite(self, op: Builder, m: Match, x: ir.Value, w: ir.Value, scale: ir.Value, bias: ir.Value, mean: ir.Value, var: ir.Value, b: ir.Value | None) -> ir.Value:
        import numpy as np

        m.require(not m.attr("bn", "training_mode", 0), "the batch norm is in training mode")
        m.require(m.is_float(w) and m.dtype(w) == m.dtype(scale), "weights and batch norm have different types")
        weights, dtype = m.const(w), m.const(w).dtype
        s64, b64, m64, v64 = (m.const(v).astype(np.float64) for v in (scale, bias, mean, var))
        factor = s64 / np.sqrt(v64 + m.attr("bn", "epsilon", 1e-5))
        m.require(np.isfinite(factor).all(), "scale / sqrt(var + epsilon) is not finite")
        old_bias = m.const(b).astype(np.float64) if b is not None else 0.0
        conv = m["conv"]
        new_weights = op.const(scale_channels(weights, factor, conv, m).astype(dtype), f"{w.name}_bn")
        new_bias = op.const(((old_bias - m64) * factor + b64).astype(dtype), f"{conv.name}_bias")
        return op.clone(conv, [x, new_weights, new_bias])


def scale_channels(weights: Any, factor: Any, conv: ir.Node, m: Match) -> Any:
    """Multiply each output channel of a Conv ([M, C/g, ...]) or ConvTranspose ([C, M/g, ...]) weight by its factor (float64)."""
    import numpy as np

    ones = (1,) * (weights.ndim - 2)
    if conv.op_type == "Conv":
        return weights.astype(np.float64) * factor.reshape(-1, 1, *ones)
    group = m.attr(conv, "group", 1)
    per_group = factor.reshape(group, weights.shape[1])
    rows = np.repeat(per_group, weights.shape[0] // group, axis=0)
    return weights.astype(np.float64) * rows.reshape(*rows.shape, *ones)
