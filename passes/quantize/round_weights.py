"""Weights of a static quantization rounded anew, by what they are multiplied with instead of to the nearest code.

Works on what quantize-static made, in the same pipeline. Not here: the algorithms (graphopt/quantization/rounding.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_tensor
from graphopt.manager.base import Pass, Tolerance
from graphopt.passes.quantize._kinds import weight_axis
from graphopt.passes.quantize._refine import exchange, twins
from graphopt.passes.quantize._weights8 import adds_in_pairs, from_kernel_rows, kernel_rows
from graphopt.quantization.affine import QParams, dequantize, qtype
from graphopt.quantization.saturation import is_safe, make_safe

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._weight_calibrated import Calibrated
    from graphopt.passes.quantize._weight_sites import Weight

_WORTH = 0.98
"""Codes are exchanged where that leaves less than this part of the error on held-out samples."""


class RoundWeights(Pass):
    """codes -> the codes Q with the least sum over samples of |W x - Q x|^2, for the scales that are there.

    Layer by layer in the order of the graph, on the inputs that the quantized layers before make; the codes of a layer
    are exchanged only where that lowers the error on samples that were held out. Closed forms and linear algebra only.
    Sources: GPTQ, arXiv 2210.17323; AdaRound's objective, arXiv 2004.10568, by coordinate descent.
    """

    name: ClassVar[str] = "round-weights"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    calibrated: ClassVar[bool] = True
    tolerance: ClassVar[Tolerance] = "lossy"
    after: ClassVar[tuple[str, ...]] = ("quantize-static",)
    scope = "main"

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.passes.quantize._weight_calibrated import Calibrated

        weights = {node: _weight(node, original) for node, original in twins(model, ctx).items()}
        if not weights:
            return
        calibrated = Calibrated(ctx, weights)
        for node, weight in weights.items():
            self._round(ctx, node, weight, calibrated)

    def _round(self, ctx: Context, node: ir.Node, weight: Weight, calibrated: Calibrated) -> None:
        def make(op: Builder) -> tuple[ir.Value, str]:
            codes, left = _better_codes(node, weight, calibrated)
            return _with_codes(op, node, codes), f"{left:.2f} of the error of rounding to nearest"

        exchange(ctx, node, make)


def _weight(node: ir.Node, original: ir.Node) -> Weight:
    from graphopt.passes.quantize._weight_sites import Weight

    value = original.inputs[1]
    tensor, axis = const_tensor(value), weight_axis(original)
    assert value is not None and tensor is not None and axis is not None
    count = int(tensor.shape.numpy()[axis])
    return Weight(node, value, 1, tensor, axis == 1, count, tensor.size // count)


def _better_codes(node: ir.Node, weight: Weight, calibrated: Calibrated) -> tuple[np.ndarray, float]:
    """New codes in the layout of the weights, and the part of the held-out error that they leave.

    Raises:
        NoMatch: there are none, or no moments of the input.
    """
    import numpy as np

    from graphopt.quantization.rounding import coordinate_descent, gptq, output_error

    moments = calibrated.moments(weight)
    old, scale = _stored(node)
    qt = qtype(old.dtype.name)
    rows, before = weight.rows(0, weight.count), _as_rows(old, weight)
    per_row = np.broadcast_to(scale.astype(np.float32), (weight.count,)).reshape(-1, 1)
    groups = len(moments.fit)
    split = [slice(i * weight.count // groups, (i + 1) * weight.count // groups) for i in range(groups)]
    after = np.empty_like(before)
    params = [
        QParams(qt, per_row[part], np.zeros((part.stop - part.start, 1), np.int64), 1, weight.width) for part in split
    ]
    for index, part in enumerate(split):
        codes = gptq(rows[part], moments.fit[index], params[index])
        codes = coordinate_descent(rows[part], moments.fit[index], params[index], codes)
        after[part] = np.clip(codes, -qt.qmax, qt.qmax)
    layout = _as_layout(after, weight, old.shape)
    if adds_in_pairs(node) and _all_safe(node, old) and not _all_safe(node, layout):
        layout = from_kernel_rows(node, np.stack([make_safe(group) for group in kernel_rows(node, layout)]), old.shape)
        after = _as_rows(layout, weight)
    errors = [0.0, 0.0]
    for index, part in enumerate(split):
        for which, codes in enumerate((before, after)):
            errors[which] += output_error(rows[part], moments.held_out()[index], dequantize(codes[part], params[index]))
    if not errors[1] < _WORTH * errors[0]:
        raise NoMatch("rounding to nearest does as well on held-out samples")
    return layout, errors[1] / errors[0]


def _all_safe(node: ir.Node, codes: np.ndarray) -> bool:
    return all(is_safe(group) for group in kernel_rows(node, codes))


def _stored(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a quantized node's weights.

    Raises:
        NoMatch: they are too large to be read, or not symmetric.
    """
    value = node.inputs[1]
    maker = value.producer() if value is not None else None
    assert maker is not None
    codes, scale = const_array(maker.inputs[0]), const_array(maker.inputs[1])
    zero = const_array(maker.inputs[2]) if len(maker.inputs) > 2 else None
    if codes is None or scale is None:
        raise NoMatch("its codes are too large to be read")
    if zero is not None and zero.any():
        raise NoMatch("its codes are not symmetric")
    return codes, scale


def _as_rows(array: np.ndarray, weight: Weight) -> np.ndarray:
    return array.T if weight.across else array.reshape(weight.count, weight.width)


def _as_layout(rows: np.ndarray, weight: Weight, shape: tuple[int, ...]) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray(rows.T if weight.across else rows.reshape(shape))


def _with_codes(op: Builder, node: ir.Node, codes: np.ndarray) -> ir.Value:
    value = node.inputs[1]
    maker = value.producer() if value is not None else None
    assert maker is not None and maker.inputs[0] is not None
    old = maker.inputs[0]
    stored = op.const(codes, str(old.name), dtype=old.dtype)
    inputs = list(node.inputs)
    inputs[1] = op.clone(maker, [stored, *maker.inputs[1:]])
    made: ir.Value = op.clone(node, inputs)
    return made
