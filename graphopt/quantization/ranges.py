"""Ways to choose the range [low, high] that a quantizer spans, from the statistics of a tensor.

    low, high = parse_method("percentile{p=99.9}").choose(stats, INT8, symmetric=True)

Pure functions of the statistics. Every range holds zero; a symmetric one is [-t, t]. Not here: the search for the
entropy and the squared error over histograms (histograms.py), and scales (affine.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.quantization import histograms
from graphopt.quantization.affine import QType
from graphopt.quantization.statistics import TensorStats
from graphopt.spec import build, parse_spec, unbuild


@dataclass(frozen=True)
class Method(ABC):
    """One way to choose a range; its fields are its options."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:  # noqa: B027 (a method without options to check has nothing to override)
        """Validate the options; raise GraphoptError with one clear line."""

    def __str__(self) -> str:
        return str(unbuild(self, self.name))

    def choose(self, stats: TensorStats, qtype: QType, symmetric: bool = False) -> tuple[float, float]:
        """The range of a tensor.

        Args:
            stats: of its finite values; whether others were seen is for the caller to judge (`stats.finite`).
            qtype: the integer type that it is for.
            symmetric: zero in the middle.

        Returns:
            (low, high) with low <= 0 <= high, within what was seen (and zero); (-t, t) when symmetric.

        Raises:
            GraphoptError: nothing was seen.
        """
        if not stats.count:
            raise GraphoptError("no finite value of the tensor was seen, so there is no range to choose")
        low, high = self.between(stats, qtype, symmetric)
        low = min(max(low, stats.low), 0.0)
        high = max(min(high, stats.high), 0.0)
        if symmetric:
            high = max(-low, high)
            low = -high
        return low, high

    @abstractmethod
    def between(self, stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
        """What this method finds; `choose` brings zero into it."""


@dataclass(frozen=True)
class MinMax(Method):
    """low = min x, high = max x: nothing is clipped."""

    name: ClassVar[str] = "minmax"

    def between(self, stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
        return stats.low, stats.high


@dataclass(frozen=True)
class MovingAverage(Method):
    """low, high = moving averages (momentum 0.9) of the batches' minima and maxima, so that single outliers count less.

    After Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3.1. Depends on how many samples make a batch.
    """

    name: ClassVar[str] = "moving-average"

    def between(self, stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
        return stats.moving_low, stats.moving_high


@dataclass(frozen=True)
class Sigma(Method):
    """low, high = mean -+ k sqrt(variance), as batch-norm based ranges do (Nagel et al. 2019, k = 6).

    Options:
        k: standard deviations to either side.
    """

    name: ClassVar[str] = "sigma"
    k: float = 6.0

    def check(self) -> None:
        if not 0 < self.k < math.inf:
            raise GraphoptError(f"range method {self.name!r}: k={self.k:g} is not a positive number")

    def between(self, stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
        reach = self.k * math.sqrt(stats.variance)
        return stats.mean - reach, stats.mean + reach


@dataclass(frozen=True)
class Percentile(Method):
    """P(x < low) = P(x > high) = (100 - p) / 200; symmetric: P(|x| > t) = (100 - p) / 100.

    Read off the histogram, linear within a bin. After Wu et al. 2020, "Integer Quantization for Deep Learning
    Inference: Principles and Empirical Evaluation".

    Options:
        p: percent of the elements that the range holds.
    """

    name: ClassVar[str] = "percentile"
    p: float = 99.99

    def check(self) -> None:
        if not 50 <= self.p <= 100:
            raise GraphoptError(f"range method {self.name!r}: p={self.p:g} is not between 50 and 100")

    def between(self, stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
        if self.p == 100:
            return stats.low, stats.high
        if symmetric:
            reach = histograms.magnitude_quantile(stats, self.p / 100)
            return -reach, reach
        cut = (100 - self.p) / 200
        return histograms.quantile(stats, cut), histograms.quantile(stats, 1 - cut)


@dataclass(frozen=True)
class Entropy(Method):
    """The t that loses least information: min over t of KL(P || Q), P what is seen clipped to [-t, t], Q quantized P.

    KL(P || Q) = sum P log(P / Q). After Migacz 2017, "8-bit Inference with TensorRT", with the histogram signed, so
    that a one-sided tensor has all levels on its side. With more levels than occupied bins it is min-max.
    """

    name: ClassVar[str] = "entropy"

    def between(self, stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
        reach = histograms.least_divergence(stats, qtype, symmetric)
        return -reach, reach


@dataclass(frozen=True)
class Mse(Method):
    """low, high = argmin E (x - dequantize(quantize(x)))^2, rounding and clipping weighed against each other.

    The expectation is over the histogram, elements evenly spread within a bin. After Sung et al. 2015 and Banner et al.
    2019, who assume a distribution; here it is the one that was seen.
    """

    name: ClassVar[str] = "mse"

    def between(self, stats: TensorStats, qtype: QType, symmetric: bool) -> tuple[float, float]:
        return histograms.least_squared_error(stats, qtype, symmetric)


METHODS: dict[str, type[Method]] = {
    item.name: item for item in (MinMax, MovingAverage, Sigma, Percentile, Entropy, Mse)
}


def parse_method(text: str) -> Method:
    """The method that the text names, with its options: `minmax`, `sigma{k=4}`, `percentile{p=99.9}`.

    Raises:
        GraphoptError: there is no such method or option (with the nearest one), or a value out of its range.
    """
    spec = parse_spec(text)
    if spec.name not in METHODS:
        raise GraphoptError(f"there is no range method {spec.name!r}{did_you_mean(spec.name, METHODS)}")
    return build(METHODS[spec.name], spec, "range method")
