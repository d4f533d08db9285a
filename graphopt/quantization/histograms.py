"""Quantiles, divergence and squared error over the histogram of a tensor: the arithmetic behind ranges.py.

Elements are taken to be spread evenly within a bin, and within what was really seen at the two ends. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from graphopt.quantization.statistics import BINS

if TYPE_CHECKING:
    import numpy as np

    from graphopt.quantization.affine import QType
    from graphopt.quantization.statistics import TensorStats

_WINDOWS = 128
_SMALLEST_SHARE = 2.0**-8
_COARSE_BINS = 512


class Density(NamedTuple):
    """The occupied part of a histogram: int64[n] counts between float64[n + 1] edges."""

    counts: np.ndarray
    edges: np.ndarray


def density(stats: TensorStats) -> Density:
    """The bins between the smallest and the largest element, the outermost cut there."""
    import numpy as np

    there = stats.counts.nonzero()[0]
    first, last = int(there[0]), int(there[-1]) + 1
    edges = (np.arange(first, last + 1) - BINS // 2) * stats.width
    return Density(stats.counts[first:last], np.clip(edges, stats.low, stats.high))


def quantile(stats: TensorStats, share: float) -> float:
    """The value that `share` of the elements lie below."""
    return _inverse(*density(stats), share)


def magnitude_quantile(stats: TensorStats, share: float) -> float:
    """The magnitude that `share` of the elements' magnitudes lie below."""
    import numpy as np

    half = BINS // 2
    folded = stats.counts[half:] + stats.counts[half - 1 :: -1]
    last = int(folded.nonzero()[0][-1]) + 1
    edges = np.arange(last + 1) * stats.width
    return _inverse(folded[:last], np.clip(edges, 0, max(-stats.low, stats.high)), share)


def _inverse(counts: np.ndarray, edges: np.ndarray, share: float) -> float:
    import numpy as np

    below = np.concatenate([[0], np.cumsum(counts)])
    return float(np.interp(share * below[-1], below, edges))


def least_divergence(stats: TensorStats, qtype: QType, symmetric: bool) -> float:
    """The t whose window [-t, t] has the smallest KL divergence between what was seen and what is left of it.

    Windows grow from as many bins as the type has levels to all bins, in at most 128 steps. Zero is exact in every
    quantizer and often holds half of the elements; its bin counts as its larger neighbour does.
    """
    import numpy as np

    levels = qtype.qmax - qtype.qmin + 1
    there = stats.counts.nonzero()[0]
    half = BINS // 2
    counts = stats.counts.copy()
    counts[half] = min(counts[half], max(counts[half - 1], counts[half + 1], 1))
    first, last = int(there[0]), int(there[-1]) + 1
    whole = max(half - first, last - half)  # bins to either side of zero
    reach = max(-stats.low, stats.high)

    def window(bins: int) -> tuple[int, int]:
        return (half - bins, half + bins) if symmetric else (max(first, half - bins), min(last, half + bins))

    smallest = next((k for k in range(1, whole + 1) if np.subtract(*window(k)[::-1]) >= levels), whole)
    tried = np.unique(np.linspace(smallest, whole, _WINDOWS).astype(int))
    costs = [_divergence(counts, *window(int(bins)), levels) for bins in tried]
    best = int(tried[int(np.argmin(costs))])
    return reach if best == whole else best * stats.width


def _divergence(counts: np.ndarray, start: int, stop: int, levels: int) -> float:
    """KL(P || Q) of bins [start, stop): P with the clipped elements in its last bins, Q in `levels` equal steps.

    A step's elements are spread over its occupied bins. Bins that only clipped elements are in get a small Q, so that
    the divergence stays finite (Migacz leaves that open; as in other implementations 1e-4 of an element).
    """
    import numpy as np

    inside = counts[start:stop].astype(np.float64)
    step = (np.arange(inside.size) * min(levels, inside.size)) // inside.size
    there = inside > 0
    sums = np.bincount(step, weights=inside)
    occupied = np.bincount(step, weights=there)
    spread = np.where(there, sums[step] / np.maximum(occupied[step], 1), 1e-4)
    clipped = inside.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    p, q = clipped / clipped.sum(), spread / spread.sum()
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def least_squared_error(stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
    """The range (holding zero) with the smallest expected squared error; found on a grid that is refined twice."""
    import numpy as np

    dense = density(stats)
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    # Shares of the seen range to keep below and above zero. A side that holds nothing, or mirrors the other, has none.
    one_sided = symmetric or low == 0 or high == 0
    below = above = np.geomspace(_SMALLEST_SHARE, 1, 48 if one_sided else 20)
    ratio = float(above[-1] / above[-2])
    best = whole = np.ones(2)
    for bins in (_COARSE_BINS, _COARSE_BINS, BINS):
        pairs = np.stack([above, above], 1) if one_sided else np.stack(np.meshgrid(below, above), -1).reshape(-1, 2)
        pairs = np.vstack([pairs, whole])  # finer bins may find the whole range best after all
        errors = squared_error(_coarser(dense, bins), pairs[:, 0] * low, pairs[:, 1] * high, qtype, symmetric)
        best = pairs[int(np.flatnonzero(errors == errors.min())[-1])]  # of equals, the widest
        around = np.geomspace(1 / ratio, ratio, 9)
        below, above = (np.unique(np.minimum(share * around, 1)) for share in best)
        ratio **= 0.25
    return float(best[0] * low), float(best[1] * high)


def _coarser(dense: Density, bins: int) -> Density:
    """Neighbouring bins put together, so that at most `bins` are left."""
    import numpy as np

    starts = np.arange(0, dense.counts.size, -(-dense.counts.size // bins))
    return Density(np.add.reduceat(dense.counts, starts), dense.edges[[*starts, -1]])


def squared_error(
    dense: Density, low: np.ndarray, high: np.ndarray, qtype: QType, symmetric: bool = False
) -> np.ndarray:
    """E (x - dequantize(quantize(x)))^2 for each candidate range, in the quantizer of affine.params_from_range.

    With step d and the grid's ends a and b, the error's square has the antiderivative

        G(x) = d^3 F(x / d),  F(u) = round(u) / 12 + (u - round(u))^3 / 3    for a <= x <= b
        G(x) = G(b) + (x - b)^3 / 3  for x > b, and the same below a

    so a bin between e and f that holds n elements contributes n (G(f) - G(e)) / (f - e).

    Args:
        dense: the histogram.
        low, high: float64[k], low <= 0 <= high.
        qtype, symmetric: the quantizer.

    Returns:
        float64[k].
    """
    import numpy as np

    low, high = low[:, None], high[:, None]
    if symmetric:
        middle = 0 if qtype.signed else (qtype.qmax + 1) // 2
        step = np.maximum(-low, high) / (qtype.qmax - middle)
        zero = np.full(step.shape, float(middle))
    else:
        step = (high - low) / (qtype.qmax - qtype.qmin)
    step = np.where(step == 0, 1.0, step)
    if not symmetric:
        zero = np.clip(np.rint(qtype.qmin - low / step), qtype.qmin, qtype.qmax)
    first, last = (qtype.qmin - zero), (qtype.qmax - zero)
    u = dense.edges[None, :] / step
    inner = np.clip(u, first, last)
    nearest = np.rint(inner)
    within = inner - nearest
    integral = (nearest / 12 + (within**3 + (u - inner) ** 3) / 3) * step**3
    widths = np.diff(dense.edges)
    points = widths <= 0  # all elements of the bin are equal
    part = np.diff(integral, axis=1) / np.where(points, 1.0, widths)
    if points.any():
        exact = ((u - nearest)[:, :-1] * step) ** 2
        part = np.where(points, exact, part)
    return (part * dense.counts).sum(axis=1) / dense.counts.sum()
