"""Weights that cannot saturate: int8 weights whose u8s8 products fit the 16-bit sums of CPUs without VNNI.

Such kernels add two neighbouring products u8 * s8 in 16 bits with saturation (VPMADDUBSW). A pair (v, w) of weights is
safe for every pair of activations when its positive part and its negative part each stay within 128 steps:

    255 * (max(v, 0) + max(w, 0)) <= 32767   and   255 * (max(-v, 0) + max(-w, 0)) <= 32768

so signs that differ are always safe, and equal signs are when |v| + |w| <= 128. This is proven from the weights; data
do not matter. `make_safe` repairs codes, `safe_scales` chooses scales for which the repair costs least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PAIR_LIMIT = 128
"""Largest sum of the magnitudes of two neighbouring weights of one sign: 255 * 128 = 32640."""


def is_safe(codes: np.ndarray) -> bool:
    """Whether no activations can saturate a 16-bit sum.

    Args:
        codes: int8 weights (K, N), rows in the order in which the kernel adds them: rows 2i and 2i + 1 make a pair.
    """
    return bool((_excess(codes) <= 0).all())


def make_safe(codes: np.ndarray) -> np.ndarray:
    """The nearest safe codes: pairs beyond the limit move towards zero, both by half of what is too much.

    Args:
        codes: int8 (K, N), rows as for is_safe.
    """
    import numpy as np

    excess = np.maximum(_excess(codes), 0)
    if not excess.any():
        return codes
    paired = _pairs(codes)
    # The larger one gives the odd step.
    first_larger = np.abs(paired[:, 0]) >= np.abs(paired[:, 1])
    more, less = (excess + 1) // 2, excess // 2
    cut = np.stack([np.where(first_larger, more, less), np.where(first_larger, less, more)], axis=1)
    safe = np.sign(paired) * (np.abs(paired) - cut)
    return safe.reshape(-1, codes.shape[1])[: codes.shape[0]].astype(codes.dtype)


def safe_scales(weights: np.ndarray, scales: np.ndarray, steps: int = 24) -> np.ndarray:
    """Per column, the scale with the least squared error after rounding and repair.

    The candidates lie between the given scale, with which the repair may be large, and the one with which nothing
    needs repair: scale = max over pairs of the larger one-signed sum / 128.

    Args:
        weights: float (K, N), rows as for is_safe.
        scales: float32 (N,), positive: the scales chosen without regard to saturation.
        steps: candidates tried.

    Returns:
        float32 (N,), each at least the given one.
    """
    import numpy as np

    paired = _pairs(weights.astype(np.float64))
    positive, negative = np.maximum(paired, 0).sum(axis=1), np.maximum(-paired, 0).sum(axis=1)
    same_sign = (paired[:, 0] * paired[:, 1]) > 0
    sums = np.where(same_sign, np.maximum(positive, negative), 0.0)
    needed = sums.max(axis=0, initial=0.0) / PAIR_LIMIT
    best = scales.astype(np.float64)
    top = np.maximum(best, needed)
    least = _error(weights, best)
    start = best
    for step in range(1, steps + 1):
        candidate = start + (top - start) * (step / steps)
        error = _error(weights, candidate)
        better = error < least
        best, least = np.where(better, candidate, best), np.where(better, error, least)
    return np.maximum(best.astype(np.float32), scales.astype(np.float32))


def saturating_matmul(activations: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """u8 (M, K) times s8 (K, N) as a kernel without VNNI computes it: pairs add in 16 bits with saturation, then int32.

    The model of the hardware that tests compare real kernels and exact arithmetic with.
    """
    import numpy as np

    k = codes.shape[0]
    if k % 2:
        activations = np.pad(activations, ((0, 0), (0, 1)))
        codes = np.pad(codes, ((0, 1), (0, 0)))
    a, b = activations.astype(np.int32), codes.astype(np.int32)
    sums = a[:, 0::2, None] * b[None, 0::2] + a[:, 1::2, None] * b[None, 1::2]
    return np.clip(sums, -32768, 32767).sum(axis=1, dtype=np.int32)


def _error(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    import numpy as np

    codes = np.clip(np.rint(weights / scales), -127, 127).astype(np.int32)
    return np.square(make_safe(codes) * scales - weights).sum(axis=0)


def _pairs(rows: np.ndarray) -> np.ndarray:
    """(K, N) as (ceil(K / 2), 2, N); an odd last row is paired with zeros, as the kernel pads."""
    import numpy as np

    if rows.shape[0] % 2:
        rows = np.pad(rows, ((0, 1), (0, 0)))
    wide = rows.astype(np.int32) if rows.dtype.kind in "iu" else rows
    return wide.reshape(-1, 2, rows.shape[1])


def _excess(codes: np.ndarray) -> np.ndarray:
    """Per pair, by how many steps its one-signed sum is beyond the limit; (ceil(K / 2), N)."""
    import numpy as np

    paired = _pairs(codes)
    magnitude = np.abs(paired).sum(axis=1)
    return np.where(paired[:, 0] * paired[:, 1] > 0, magnitude - PAIR_LIMIT, 0)
