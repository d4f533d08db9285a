"""Weights of a static quantization rounded anew, by what they are multiplied with instead of to the nearest code.

Works on what quantize-static made, in the same pipeline. Not here: the algorithms (rounding.py and adaround.py in
graphopt/quantization).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_tensor
from graphopt.manager.base import Pass, Tolerance
from graphopt.passes.quantize._kinds import weight_axis
from graphopt.passes.quantize._refine import bias_of, exchange, twins, with_bias
from graphopt.passes.quantize._weights8 import adds_in_pairs, from_kernel_rows, kernel_rows
from graphopt.quantization.adaround import need_torch
from graphopt.quantization.affine import QParams, dequantize, qtype
from graphopt.quantization.saturation import is_safe, make_safe

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._paired import Paired
    from graphopt.passes.quantize._weight_sites import Weight
    from graphopt.quantization.moments import PairedMoments, PairSums

_FEW = 8
"""With fewer codes than this on each side of zero, the choice of scales counts as much as that of codes."""
_WORTH = 0.98
"""Codes are exchanged where that leaves less than this part of the error on held-out samples."""


Method = Literal["closed", "gradient"]


@dataclass(frozen=True)
class RoundWeights(Pass):
    """codes, b -> the codes Q and bias c with the least sum over samples of |W x + b - Q y - c|^2.

    Options:
        method: where the exchange of single codes starts: `closed` from GPTQ, `gradient` from AdaRound, which needs
            the torch extra, takes longer and may leave less of the error.

    x is what the layer is given in the float model and y what the quantized layers before make of it, layer by layer in
    the order of the graph: each makes up for the errors of those before. With 4 bits the scales of Q are chosen too. A
    layer changes only where that lowers the error on samples that were held out.
    Sources: GPTQ, arXiv 2210.17323, and with both inputs arXiv 2504.02692; AdaRound, arXiv 2004.10568.
    """

    name: ClassVar[str] = "round-weights"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    calibrated: ClassVar[bool] = True
    tolerance: ClassVar[Tolerance] = "lossy"
    after: ClassVar[tuple[str, ...]] = ("quantize-static",)
    scope = "main"
    method: Method = "closed"

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.passes.quantize._paired import Paired

        if self.method == "gradient":
            need_torch(f"pass {self}")
        originals = twins(model, ctx)
        weights = {node: _weight(node, original) for node, original in originals.items()}
        if not weights:
            return
        few = any(value.dtype is not None and value.dtype.bitwidth < 8 for value in map(_codes_of, weights))
        paired = Paired(ctx, weights, originals, one_by_one=few)
        for node, weight in weights.items():
            self._round(ctx, node, weight, paired)

    def _round(self, ctx: Context, node: ir.Node, weight: Weight, paired: Paired) -> None:
        def make(op: Builder) -> tuple[ir.Value, str]:
            better = _better(node, weight, paired.moments(node), self.method)
            return _with(op, node, better), f"{better.left:.2f} of the error of rounding to nearest"

        exchange(ctx, node, make)


@dataclass(frozen=True)
class _Better:
    """New codes in the layout of the weights, their scales, what the bias gains, and the part of the error left."""

    codes: np.ndarray
    scale: np.ndarray
    shift: np.ndarray | None
    left: float


def _weight(node: ir.Node, original: ir.Node) -> Weight:
    from graphopt.passes.quantize._weight_sites import Weight

    value = original.inputs[1]
    tensor, axis = const_tensor(value), weight_axis(original)
    assert value is not None and tensor is not None and axis is not None
    count = int(tensor.shape.numpy()[axis])
    return Weight(node, value, 1, tensor, axis == 1, count, tensor.size // count)


def _better(node: ir.Node, weight: Weight, moments: PairedMoments, method: Method) -> _Better:
    """What leaves less of the error on held-out samples.

    Raises:
        NoMatch: nothing does.
    """
    import numpy as np

    from graphopt.quantization.rounding import mean_shift, pair_error

    old, scale = _stored(node)
    qt = qtype(old.dtype.name)
    rows, before = weight.rows(0, weight.count), _as_rows(old, weight)
    per_row = np.broadcast_to(scale.astype(np.float32), (weight.count,)).reshape(-1, 1)
    groups = len(moments.fit.yy)
    split = [slice(i * weight.count // groups, (i + 1) * weight.count // groups) for i in range(groups)]
    zero = np.zeros((weight.count, 1), np.int64)
    given = [QParams(qt, per_row[part], zero[part], 1, weight.width) for part in split]
    moves = qt.qmax < _FEW and scale.ndim == 1 and not _powers_of_two(scale)
    shifts = node.op_type != "MatMul"
    codes, used = _rounded(np.stack([rows[part] for part in split]), moments.fit, given, method, shifts, moves)
    after = np.clip(codes.reshape(before.shape), -qt.qmax, qt.qmax).astype(before.dtype)
    layout = _as_layout(after, weight, old.shape)
    if adds_in_pairs(node) and _all_safe(node, old) and not _all_safe(node, layout):
        layout = from_kernel_rows(node, np.stack([make_safe(group) for group in kernel_rows(node, layout)]), old.shape)
        after = _as_rows(layout, weight)
    shift = np.zeros(weight.count)
    errors = [0.0, 0.0]
    for index, part in enumerate(split):
        nearest, refined = dequantize(before[part], given[index]), dequantize(after[part], used[index])
        if shifts:
            shift[part] = mean_shift(rows[part], refined, moments.fit, index)
        errors[0] += pair_error(rows[part], nearest, moments.held_out(), index)
        errors[1] += pair_error(rows[part], refined, moments.held_out(), index, shift[part])
    if not errors[1] < _WORTH * errors[0]:
        raise NoMatch("rounding to nearest does as well on held-out samples")
    chosen = np.concatenate([params.scale[:, 0] for params in used]) if moves else scale
    return _Better(layout, chosen, shift if shifts else None, errors[1] / errors[0])


def _rounded(
    rows: np.ndarray, sums: PairSums, given: list[QParams], method: Method, shifts: bool, moves: bool
) -> tuple[np.ndarray, list[QParams]]:
    """Codes (groups, N, K) and the quantizers that they are of; scales are chosen too where `moves`.

    Raises:
        NoMatch: the inputs do not vary.
    """
    import numpy as np

    from graphopt.quantization.adaround import adaround
    from graphopt.quantization.rounding import (
        coordinate_descent,
        fit_rows,
        gptq,
        refit_scales,
        search_scales,
        second_moments,
    )

    groups = range(len(rows))
    hs = [second_moments(sums, index, shifts=shifts) for index in groups]
    if not any(item.any() for item in hs):
        raise NoMatch("its inputs are the same on all samples, which tells nothing of how to round")
    fitted = np.stack([fit_rows(rows[index], sums, index, shifts=shifts) for index in groups])
    used = [search_scales(fitted[i], hs[i], given[i]) for i in groups] if moves else given
    if method == "gradient":
        codes = adaround(fitted, np.stack(hs), used)
    else:
        codes = np.stack([gptq(fitted[i], hs[i], used[i]) for i in groups])
    codes = np.stack([coordinate_descent(fitted[i], hs[i], used[i], codes[i]) for i in groups])
    if moves:
        used = [refit_scales(fitted[i], hs[i], used[i], codes[i]) for i in groups]
        codes = np.stack([coordinate_descent(fitted[i], hs[i], used[i], codes[i]) for i in groups])
    return codes, used


def _powers_of_two(scale: np.ndarray) -> bool:
    import numpy as np

    return bool((np.frexp(scale)[0] == 0.5).all())


def _all_safe(node: ir.Node, codes: np.ndarray) -> bool:
    return all(is_safe(group) for group in kernel_rows(node, codes))


def _stored(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a quantized node's weights.

    Raises:
        NoMatch: they are too large to be read, or not symmetric.
    """
    maker = _maker(node.inputs[1])
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


def _with(op: Builder, node: ir.Node, better: _Better) -> ir.Value:
    """The node with other codes and scales of its weights, and another bias."""
    inputs = list(node.inputs)
    inputs[1] = _dequantized(op, _maker(inputs[1]), better.codes, better.scale)
    if better.shift is None:
        made: ir.Value = op.clone(node, inputs)
        return made
    return with_bias(op, node, inputs[1], bias_of(node) + better.shift)


def _dequantized(op: Builder, before: ir.Node, codes: np.ndarray, scale: np.ndarray) -> ir.Value:
    import numpy as np

    old, step = before.inputs[:2]
    assert old is not None and step is not None
    constants = [op.const(codes, str(old.name), dtype=old.dtype), op.const(scale.astype(np.float32), str(step.name))]
    made: ir.Value = op.clone(before, [*constants, *before.inputs[2:]])
    return made


def _codes_of(node: ir.Node) -> ir.Value:
    codes = _maker(node.inputs[1]).inputs[0]
    assert codes is not None
    return codes


def _maker(value: ir.Value | None) -> ir.Node:
    maker = value.producer() if value is not None else None
    assert maker is not None
    return maker
