"""Paired bootstrap: how sure one is of the difference between two models that were scored on the same samples.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 4000
_CHUNK = 200  # resamples drawn at once; bounds the memory


@dataclass(frozen=True)
class Difference:
    """mean(ours) - mean(base) over the same samples, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f} ({100 * self.low:+.2f} to {100 * self.high:+.2f})"


def paired_difference(ours: np.ndarray, base: np.ndarray, seed: int = 0) -> Difference:
    """The difference of the means of two score arrays [n] of the same samples, in the same order.

    Raises:
        ValueError: the arrays are empty or of different length.
    """
    import numpy as np

    if len(ours) != len(base) or not len(ours):
        raise ValueError(f"scores of the same samples are needed, there are {len(ours)} and {len(base)}")
    change = np.asarray(ours, np.float64) - np.asarray(base, np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _CHUNK):
        picks = rng.integers(0, len(change), (_CHUNK, len(change)))
        means[start : start + _CHUNK] = change[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(change.mean()), float(low), float(high))
