"""Quantizers for constant weights, whose rows (one per output) are cut into groups along the reduced axis.

    params = weight_params(rows, UINT4, 32)                 # rows (N, K): one scale per row and 32 columns
    codes = quantize(rows, params)

Not here: rounding that looks at the inputs (rounding.py), and how an op stores its weights (packing.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from graphopt.errors import GraphoptError
from graphopt.quantization.affine import SMALLEST_SCALE, QParams, QType, group_ranges, params_from_range

if TYPE_CHECKING:
    import numpy as np

Clip = Literal["mse", "none"]

SHRINKS = tuple(1 - step / 40 for step in range(1, 17))
"""Fractions of a group's range that the search tries, beside the whole: 0.975 down to 0.6."""


def weight_params(
    rows: np.ndarray,
    qtype: QType,
    group: int,
    *,
    symmetric: bool = False,
    clip: Clip = "mse",
    importance: np.ndarray | None = None,
    dtype: Any = "float32",
) -> QParams:
    """One quantizer per row and per `group` consecutive columns.

    clip="none" spans smallest to largest element. clip="mse" takes, for each group by itself, the fraction f of that
    range, of those in SHRINKS and 1, that minimises sum_k h_k (w_k - Q_f(w_k))^2; it is never worse by that measure.

    Args:
        rows: floats (N, K).
        qtype: the integer type.
        group: columns that share a scale; 0 for the whole row.
        symmetric: zero is the middle of the type.
        clip: how the range is found.
        importance: h, non-negative (K,): how much an error of a column counts, e.g. the mean square of its inputs.
        dtype: the float type in which scales are stored; they are rounded to it here.

    Returns:
        QParams along axis 1, scale and zero point of shape (N, ceil(K / group)).

    Raises:
        GraphoptError: NaN or infinities, or magnitudes beyond what `dtype` holds.
    """
    import numpy as np

    wide = rows.astype(np.float32, copy=False)
    group = group or max(1, rows.shape[1])
    low, high = group_ranges(wide, 1, group)
    best = _stored(params_from_range(low, high, qtype, symmetric=symmetric), dtype)
    if clip == "none":
        return best.along(1, group)
    blocks = _blocks(wide, group)
    weight = None if importance is None else _blocks(importance[None].astype(np.float32), group)[0]
    least = _errors(blocks, best, weight)
    for factor in SHRINKS:
        trial = _stored(params_from_range(low * factor, high * factor, qtype, symmetric=symmetric), dtype)
        errors = _errors(blocks, trial, weight)
        better = errors < least
        least = np.where(better, errors, least)
        scale = np.where(better, trial.scale, best.scale)
        best = replace(best, scale=scale, zero_point=np.where(better, trial.zero_point, best.zero_point))
    return best.along(1, group)


def lost_weights(rows: np.ndarray, values: np.ndarray) -> tuple[int, int]:
    """How many weights became zero, of those that were not, where `values` is what is left of `rows`.

    Beside a few huge weights all others round to zero; the squared error, which is that of the huge ones, hides it.
    """
    import numpy as np

    there = np.abs(rows) >= SMALLEST_SCALE  # smaller ones are zero for every quantizer
    return int(np.count_nonzero(there & (values == 0))), int(np.count_nonzero(there))


def _stored(params: QParams, dtype: Any) -> QParams:
    """The quantizer with scales as the float type holds them, kept off its denormals."""
    import numpy as np

    kind = np.dtype(dtype)
    if kind == np.float32:
        return params
    with np.errstate(over="ignore"):
        scale = np.maximum(params.scale, _smallest(kind)).astype(kind).astype(np.float32)
    if not np.isfinite(scale).all():
        raise GraphoptError(f"a scale is beyond {kind}")
    return replace(params, scale=scale)


def _smallest(kind: np.dtype) -> float:
    """The smallest normal number; also of the float types that numpy does not know."""
    import numpy as np

    return 2.0**-14 if kind == np.float16 else 2.0**-120


def _blocks(rows: np.ndarray, group: int) -> np.ndarray:
    """(N, K) as (N, groups, group); zeros, which no quantizer changes, fill the last group."""
    import numpy as np

    short = -rows.shape[1] % group
    full = np.pad(rows, ((0, 0), (0, short))) if short else rows
    return full.reshape(len(rows), -1, group)


def _errors(blocks: np.ndarray, params: QParams, weight: np.ndarray | None) -> np.ndarray:
    """sum_k h_k (w_k - Q(w_k))^2 of each group, (N, groups)."""
    import numpy as np

    scale, zero = params.scale[..., None], params.zero_point[..., None].astype(np.float32)
    codes = np.rint(blocks / scale)
    np.clip(codes, params.type.qmin - zero, params.type.qmax - zero, out=codes)
    codes *= scale
    codes -= blocks
    if weight is None:
        return np.einsum("ngk,ngk->ng", codes, codes)
    return np.einsum("ngk,ngk,gk->ng", codes, codes, weight)
