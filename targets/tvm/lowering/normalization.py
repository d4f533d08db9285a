"""Rules of normalizations; variances are of the centred values, as the reference computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.table import FLOATS, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any


def _layer_check(n: View) -> str | None:
    wanted = {"float16": 10, "float32": 1}.get(n.dtype(0), 1)
    return None if n.attr("stash_type", 1) in (1, wanted) else "LayerNormalization of this stash_type has no lowering"


@lowers("LayerNormalization", dtypes=FLOATS, check=_layer_check)
def layer_norm(c: Lowering, n: View) -> list[Expr | None]:
    dtype, scale, bias = n.dtype(0), c.input(n, 1), c.optional(n, 2)
    parts = _Centred(c, c.input(n, 0), list(range(n.axis(-1), n.rank(0))), float(n.attr("epsilon", 1e-5)), dtype)
    out = c.op.multiply(c.cast(c.op.divide(parts.away, parts.deviation), dtype), scale)
    return [
        out if bias is None else c.op.add(out, bias),
        c.cast(parts.mean, n.out_dtype(1)) if n.wants(1) else None,
        c.cast(c.op.divide(c.const(1, parts.kind), parts.deviation), n.out_dtype(2)) if n.wants(2) else None,
    ]


class _Centred:
    """Mean, distance from it, and standard deviation over axes; of half precision in float32 (`kind`)."""

    def __init__(self, c: Lowering, x: Expr, axes: list[int], epsilon: float, dtype: str) -> None:
        x, self.kind = c.widened(x, dtype), "float32" if dtype == "float16" else dtype
        self.mean = c.emit(c.op.mean(x, axis=axes, keepdims=True))
        self.away = c.emit(c.op.subtract(x, self.mean))
        variance = c.emit(c.op.mean(c.op.multiply(self.away, self.away), axis=axes, keepdims=True))
        self.deviation = c.emit(c.op.sqrt(c.op.add(variance, c.const(epsilon, self.kind))))


def centred(c: Lowering, x: Expr, axes: list[int], epsilon: float, dtype: str) -> Expr:
    """(x - mean) / sqrt(variance + epsilon) over axes."""
    parts = _Centred(c, x, axes, epsilon, dtype)
    return c.cast(c.op.divide(parts.away, parts.deviation), dtype)


@lowers("RMSNormalization", dtypes=FLOATS)
def rms_norm(c: Lowering, n: View) -> Expr:
    x, dtype = c.input(n, 0), n.dtype(0)
    axes = list(range(n.axis(-1), n.rank(0)))
    square = c.emit(c.op.mean(c.op.multiply(x, x), axis=axes, keepdims=True))
    epsilon = c.const(float(n.attr("epsilon", 1e-5)), dtype)
    return c.op.multiply(c.op.divide(x, c.op.sqrt(c.op.add(square, epsilon))), c.input(n, 1))


@lowers("InstanceNormalization", dtypes=FLOATS)
def instance_norm(c: Lowering, n: View) -> Expr:
    spatial = n.rank(0) - 2
    axes = list(range(2, n.rank(0)))
    out = centred(c, c.input(n, 0), axes, float(n.attr("epsilon", 1e-5)), n.dtype(0))
    scaled = c.op.multiply(out, c.per_channel(c.input(n, 1), spatial))
    return c.op.add(scaled, c.per_channel(c.input(n, 2), spatial))


@lowers("GroupNormalization", dtypes=FLOATS, check=lambda n: None if n.version >= 21 else
        "GroupNormalization before opset 21 has a scale per group; convert the model to opset 21")  # fmt: skip
def group_norm(c: Lowering, n: View) -> Expr:
    shape, groups = c.shape(n.value(0)), int(n.attr("num_groups"))
    one = c.tirx.IntImm("int64", 1)
    rest = one
    for size in shape[1:]:
        rest = rest * size
    flat = c.emit(c.reshape(c.input(n, 0), [shape[0], groups, c.tirx.floordiv(rest, groups)]))
    normal = c.emit(centred(c, flat, [2], float(n.attr("epsilon", 1e-5)), n.dtype(0)))
    spatial = n.rank(0) - 2
    out = c.op.multiply(c.emit(c.reshape(normal, shape)), c.per_channel(c.input(n, 1), spatial))
    return c.op.add(out, c.per_channel(c.input(n, 2), spatial))


def _batch_check(n: View) -> str | None:
    if n.attr("training_mode", 0) or any(n.wants(index) for index in range(1, len(n.node.outputs))):
        return "BatchNormalization in training mode has no lowering to TVM"
    return None


@lowers("BatchNormalization", dtypes=FLOATS, check=_batch_check)
def batch_norm(c: Lowering, n: View) -> list[Expr | None]:
    import numpy as np

    spatial, dtype, epsilon = n.rank(0) - 2, n.dtype(0), float(n.attr("epsilon", 1e-5))
    known = [n.const(index) for index in range(1, 5)]
    if all(array is not None for array in known):
        scale, bias, mean, variance = (np.asarray(array, np.float64) for array in known)
        factor = scale / np.sqrt(variance + epsilon)
        rows = [c.const(row.astype(dtype)) for row in (factor, bias - mean * factor)]
    else:
        scale, bias, mean, variance = (c.input(n, index) for index in range(1, 5))
        spread = c.op.sqrt(c.op.add(variance, c.const(epsilon, dtype)))
        factor = c.emit(c.op.divide(scale, spread))
        rows = [factor, c.emit(c.op.subtract(bias, c.op.multiply(mean, factor)))]
    scaled = c.op.multiply(c.input(n, 0), c.per_channel(rows[0], spatial))
    return [c.op.add(scaled, c.per_channel(rows[1], spatial)), *[None] * (len(n.node.outputs) - 1)]


@lowers("LpNormalization", dtypes=FLOATS)
def lp_norm(c: Lowering, n: View) -> Expr:
    x, axis, dtype = c.input(n, 0), [n.axis(-1)], n.dtype(0)
    if int(n.attr("p", 2)) == 1:
        norm = c.op.sum(c.op.abs(x), axis=axis, keepdims=True)
    else:
        norm = c.op.sqrt(c.op.sum(c.op.multiply(x, x), axis=axis, keepdims=True))
    norm = c.emit(norm)
    return c.op.divide(x, c.op.where(c.op.equal(norm, c.const(0, dtype)), c.const(1, dtype), norm))


@lowers("MeanVarianceNormalization", dtypes=FLOATS)
def mean_variance_norm(c: Lowering, n: View) -> Expr:
    return centred(c, c.input(n, 0), list(n.attr("axes", (0, 2, 3))), 1e-9, n.dtype(0))
