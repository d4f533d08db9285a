"""How far the outputs of a changed model are from those of the original, and how sure that is.

Per-sample scores over two lists of outputs (one array per sample), and bootstrap intervals over samples.
Not here: which samples, which outputs, and what is good enough (graphopt/gates.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    import numpy as np

    Arrays = Sequence[np.ndarray]

RESAMPLES = 2000
_PER_CHUNK = 1 << 22  # indices that are drawn at once


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval; `low` and `high` are the value itself where there is one sample."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.5g} [{self.low:.5g}, {self.high:.5g}]"

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of a rising function of the value."""
        return Interval(function(self.value), function(self.low), function(self.high))


def top1(reference: Arrays, other: Arrays) -> np.ndarray:
    """Per sample the share of positions with argmax_c x[..., c] = argmax_c y[..., c]; classes lie on the last axis.

    A position where y holds a NaN does not agree, unless x holds one too.

    Raises:
        GraphoptError: the lists differ in length or shape, or an array has no class axis.
    """
    import numpy as np

    def one(x: np.ndarray, y: np.ndarray) -> float:
        if x.ndim == 0 or x.shape[-1] == 0:
            raise GraphoptError(f"top-1 wants classes on the last axis, an output has shape {list(x.shape)}")
        agree = np.argmax(x, axis=-1) == np.argmax(y, axis=-1)
        agree &= np.isnan(y).any(axis=-1) <= np.isnan(x).any(axis=-1)
        return float(np.mean(agree)) if agree.size else 1.0

    return _each(one, reference, other)


def cosine(reference: Arrays, other: Arrays) -> np.ndarray:
    """Per sample sum(x y) / sqrt(sum(x^2) sum(y^2)); 1 for two zero vectors, 0 for one, NaN where a value is NaN."""
    import numpy as np

    def one(x: np.ndarray, y: np.ndarray) -> float:
        norm = float(np.linalg.norm(x)), float(np.linalg.norm(y))
        if 0.0 in norm:
            return 1.0 if norm[0] == norm[1] else 0.0
        # Each vector is scaled first: the product of two large norms overflows.
        return float(np.dot((x / norm[0]).ravel(), (y / norm[1]).ravel()))

    return _each(one, reference, other)


def power(reference: Arrays, other: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Per sample the signal sum(x^2) and the noise sum((x - y)^2)."""
    import numpy as np

    def signal(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sum(np.square(x)))

    def noise(x: np.ndarray, y: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            return float(np.sum(np.square(np.where(x == y, 0.0, x - y))))  # equal infinities are no noise

    return _each(signal, reference, other), _each(noise, reference, other)


def decibels(ratio: float) -> float:
    """10 log10(ratio); -inf for 0, NaN below."""
    import math

    if math.isnan(ratio) or ratio < 0:
        return math.nan
    return 10 * math.log10(ratio) if ratio else -math.inf


def sqnr(reference: Arrays, other: Arrays) -> np.ndarray:
    """Per sample the signal to quantization noise 10 log10(sum(x^2) / sum((x - y)^2)) in dB; inf where x = y."""
    import numpy as np

    signal, noise = power(reference, other)
    return np.array([decibels(_quotient(a, b)) for a, b in zip(signal, noise, strict=True)])


def max_abs(reference: Arrays, other: Arrays) -> np.ndarray:
    """Per sample max |x - y|; 0 for empty arrays."""
    import numpy as np

    def one(x: np.ndarray, y: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            return float(np.max(np.abs(np.where(x == y, 0.0, x - y)), initial=0.0))

    return _each(one, reference, other)


def mean_interval(scores: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of per-sample scores, and the 2.5 and 97.5 percentiles of the means of resampled samples.

    Raises:
        GraphoptError: no scores.
    """
    import numpy as np

    values = _scores(scores)
    return _bootstrap(values[None], lambda means: means[0], seed, resamples, np.array([values.mean()]))


def ratio_interval(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """mean(a) / mean(b) of paired scores: each resample draws samples and takes both scores of each.

    Pairing removes what both models owe to the samples drawn, so the interval is much narrower than that of two means.
    A ratio of 0 / 0 is 1, of a / 0 is infinite.

    Raises:
        GraphoptError: no scores, or not one of each per sample.
    """
    import numpy as np

    a, b = _scores(numerator), _scores(denominator)
    if len(a) != len(b):
        raise GraphoptError(f"{len(a)} scores cannot be paired with {len(b)}")

    def quotient(means: np.ndarray) -> np.ndarray:
        return np.array([_quotient(float(x), float(y)) for x, y in means.T])

    return _bootstrap(np.stack([a, b]), quotient, seed, resamples, quotient(np.array([[a.mean()], [b.mean()]])))


def difference_interval(
    scores: Sequence[float] | np.ndarray,
    base: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """mean(a - b) of paired scores, with the interval of `mean_interval`.

    Raises:
        GraphoptError: no scores, or not one of each per sample.
    """
    a, b = _scores(scores), _scores(base)
    if len(a) != len(b):
        raise GraphoptError(f"{len(a)} scores cannot be paired with {len(b)}")
    return mean_interval(a - b, seed, resamples)


def _bootstrap(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int,
    resamples: int,
    whole: np.ndarray,
) -> Interval:
    """Percentile interval of a statistic of row means; `rows` is (k, samples), the statistic takes (k, resamples)."""
    import numpy as np

    count = rows.shape[1]
    value = float(whole[0])
    if count == 1:
        return Interval(value, value, value)
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    step = max(1, _PER_CHUNK // count)
    for start in range(0, resamples, step):
        picks = rng.integers(0, count, (min(step, resamples - start), count))
        found.append(statistic(rows[:, picks].mean(axis=2)))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975], method="nearest")
    return Interval(value, float(low), float(high))


def _quotient(a: float, b: float) -> float:
    if b:
        return a / b
    return float("nan") if a != a else float("inf") if a else 1.0


def _scores(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    import numpy as np

    values = np.asarray(scores, np.float64).reshape(-1)
    if not values.size:
        raise GraphoptError("there are no samples to score")
    return values


def _each(one: Callable[[np.ndarray, np.ndarray], float], reference: Arrays, other: Arrays) -> np.ndarray:
    import numpy as np

    if len(reference) != len(other):
        raise GraphoptError(f"{len(reference)} outputs cannot be compared with {len(other)}")
    scores = []
    for x, y in zip(reference, other, strict=True):
        if x.shape != y.shape:
            raise GraphoptError(f"an output of shape {list(x.shape)} cannot be compared with one of {list(y.shape)}")
        scores.append(one(x.astype(np.float64), y.astype(np.float64)))
    return np.array(scores, np.float64)
