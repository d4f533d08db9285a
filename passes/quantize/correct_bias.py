"""Bias correction: what rounding the weights adds to a layer's mean output is taken out of its bias again.

Works on what quantize-static made, in the same pipeline: the float weights are needed beside the codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.constants import const_array
from graphopt.manager.base import Pass, Tolerance
from graphopt.passes.quantize._refine import bias_of, exchange, twins, with_bias
from graphopt.quantization.affine import QParams, dequantize, qtype

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context


class CorrectBias(Pass):
    """b -> b + (W - W_q) E[x]: per output channel, the mean that rounding the weights took away is given back.

    The means are those of half of the samples; a layer is corrected only where the correction brings its mean output,
    on the other half, nearer to that of the float model. Nodes without a bias input stay as they are.
    Source: Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.2.
    """

    name: ClassVar[str] = "correct-bias"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    calibrated: ClassVar[bool] = True
    tolerance: ClassVar[Tolerance] = "lossy"
    after: ClassVar[tuple[str, ...]] = ("quantize-static", "round-weights")
    scope = "main"

    def run(self, model: ir.Model, ctx: Context) -> None:
        pairs = twins(model, ctx)
        if ctx.floats is None or not pairs:
            return
        floats = _Means()
        codes = _Means()
        for node, original in pairs.items():
            floats.watch(original.inputs[0], original)
            floats.watch(original.outputs[0], original)
            codes.watch(node.outputs[0], node)
        calibration = ctx.need_calibration()
        calibration.fold(ctx.floats, floats.watched)
        calibration.fold(model, codes.watched)
        for node, original in pairs.items():
            self._correct(ctx, node, original, floats, codes)

    def _correct(self, ctx: Context, node: ir.Node, original: ir.Node, floats: _Means, codes: _Means) -> None:
        import numpy as np

        site = ctx.rewriter.site(node)
        mean = floats.of(original.inputs[0], original, half=0)
        wanted, got = floats.of(original.outputs[0], original, half=1), codes.of(node.outputs[0], node, half=1)
        if mean is None or wanted is None or got is None:
            ctx.remarks.missed(self.name, site, node.op_type, "too few samples to check the correction on")
            return
        weights, rounded = const_array(original.inputs[1], ctx.max_bytes), _weights_of(node, ctx.max_bytes)
        if weights is None or rounded is None:
            ctx.remarks.missed(self.name, site, node.op_type, f"its weights have more than {ctx.max_bytes} bytes")
            return
        shift = _times_mean(node, weights.astype(np.float64) - rounded, mean)
        away, left = float(np.square(wanted - got).sum()), float(np.square(wanted - got - shift).sum())
        if not left < away:
            ctx.remarks.missed(self.name, site, node.op_type, f"would move the mean away: {away:.3g} to {left:.3g}")
            return
        reason = f"squared error of the mean {away:.3g} to {left:.3g}"
        exchange(ctx, node, lambda op: (with_bias(op, node, node.inputs[1], bias_of(node) + shift), reason))


class _Means:
    """Mean per channel of values of one model, of even and of odd batches."""

    def __init__(self) -> None:
        self.watched: dict[str, _Value] = {}

    def watch(self, value: ir.Value | None, reader: ir.Node) -> None:
        assert value is not None
        self.watched.setdefault(str(value.name), _Value()).axes.setdefault(_channel_axis(reader), _Halves())

    def of(self, value: ir.Value | None, reader: ir.Node, half: int) -> np.ndarray | None:
        """Of one half of the samples; None when none fell into it."""
        assert value is not None
        return self.watched[str(value.name)].axes[_channel_axis(reader)].mean(half)


class _Value:
    """An Accumulator of one value: its means along each axis that somebody takes for channels."""

    def __init__(self) -> None:
        self.axes: dict[int, _Halves] = {}

    def update(self, array: np.ndarray) -> None:
        for axis, halves in self.axes.items():
            halves.update(array, axis)


class _Halves:
    def __init__(self) -> None:
        self._sums: list[Any] = [0.0, 0.0]
        self._counts = [0, 0]
        self._turn = 0

    def update(self, array: np.ndarray, axis: int) -> None:
        import numpy as np

        rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
        self._sums[self._turn] = self._sums[self._turn] + rows.sum(axis=0, dtype=np.float64)
        self._counts[self._turn] += len(rows)
        self._turn = 1 - self._turn

    def mean(self, half: int) -> np.ndarray | None:
        return self._sums[half] / self._counts[half] if self._counts[half] else None


def _channel_axis(node: ir.Node) -> int:
    return 1 if node.op_type == "Conv" else -1


def _weights_of(node: ir.Node, max_bytes: int) -> np.ndarray | None:
    """The weights that the codes of a quantized node stand for."""
    import numpy as np

    value = node.inputs[1]
    maker = value.producer() if value is not None else None
    assert maker is not None
    codes, scale = (const_array(item, max_bytes) for item in maker.inputs[:2])
    if codes is None or scale is None:
        return None
    zero = const_array(maker.inputs[2]) if len(maker.inputs) > 2 else np.zeros(scale.shape)
    assert zero is not None
    axis = maker.attributes["axis"].as_int() if "axis" in maker.attributes else 1
    kind = qtype(codes.dtype.name)
    return dequantize(codes, QParams(kind, scale, zero.astype(np.int64), axis if scale.ndim else None))


def _times_mean(node: ir.Node, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What weights make of an input that is everywhere its mean, per output channel; borders are not looked at."""
    import numpy as np

    if node.op_type != "Conv":
        trans = node.attributes.get("transB")
        return weights @ mean if node.op_type == "Gemm" and trans is not None and trans.as_int() else mean @ weights
    flat = weights.sum(axis=tuple(range(2, weights.ndim)))
    groups = len(mean) // flat.shape[1]
    of_group = np.repeat(mean.reshape(groups, -1), len(flat) // groups, axis=0)
    return (flat * of_group).sum(axis=1)
