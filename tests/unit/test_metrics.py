"""Metrics between two lists of outputs, and bootstrap intervals, against answers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.quantization import metrics


def arrays(*rows: object) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


def test_top1_counts_positions() -> None:
    x = arrays([0, 1, 2], [3, 1, 2], [[1, 0], [0, 1]])
    y = arrays([0, 1, 9], [0, 1, 2], [[1, 0], [1, 0]])
    assert metrics.top1(x, y).tolist() == [1, 0, 0.5]


def test_top1_takes_nan_for_a_disagreement() -> None:
    nan = math.nan
    assert metrics.top1(arrays([nan, 1], [1, 0], [nan, 1]), arrays([nan, 1], [1, nan], [1, 0])).tolist() == [1, 0, 1]


def test_top1_wants_classes() -> None:
    with pytest.raises(GraphoptError, match="classes on the last axis"):
        metrics.top1(arrays(1.0), arrays(1.0))


def test_cosine() -> None:
    x = arrays([1, 0], [1, 1], [0, 0], [0, 0], [1e38, 1e38])
    y = arrays([0, 2], [2, 2], [0, 0], [1, 0], [-1e38, -1e38])
    np.testing.assert_allclose(metrics.cosine(x, y), [0, 1, 1, 0, -1], atol=1e-15)
    assert math.isnan(metrics.cosine(arrays([1, 1]), arrays([math.nan, 1]))[0])


def test_sqnr_in_decibels() -> None:
    x = arrays([10, 0], [1, 0], [1, 2], [0, 0])
    y = arrays([9, 0], [0, 0], [1, 2], [1, 0])
    assert metrics.sqnr(x, y).tolist() == [20, 0, math.inf, -math.inf]


def test_max_abs() -> None:
    inf = math.inf
    assert metrics.max_abs(arrays([1, -4], [inf, 0], []), arrays([1.5, -2], [inf, 0], [])).tolist() == [2, 0, 0]


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(GraphoptError, match="2 outputs cannot be compared with 1"):
        metrics.cosine(arrays([1], [2]), arrays([1]))
    with pytest.raises(GraphoptError, match=r"shape \[1\] cannot be compared with one of \[2\]"):
        metrics.sqnr(arrays([1]), arrays([1, 2]))


def test_mean_interval_of_a_known_spread() -> None:
    """The mean of n independent scores of deviation s lies within 1.96 s / sqrt(n) in 95 of 100 cases."""
    scores = np.tile([0.0, 1.0], 200)
    found = metrics.mean_interval(scores)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - half, abs=0.006)
    assert found.high == pytest.approx(0.5 + half, abs=0.006)


def test_pairing_removes_what_both_models_share() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 1, 300)
    paired = metrics.ratio_interval(0.99 * base, base)
    apart = metrics.ratio_interval(0.99 * rng.permutation(base), base)
    assert paired.value == pytest.approx(0.99)
    assert paired.high - paired.low < 1e-9
    assert apart.high - apart.low > 0.05


def test_coverage_of_the_ratio_interval() -> None:
    """Of intervals drawn from a population of known ratio, about 95 in 100 hold it."""
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        base = (rng.random(200) < 0.8).astype(float)
        other = np.where(rng.random(200) < 0.9, base, 0.0)
        found = metrics.ratio_interval(other, base, resamples=400)
        hits += found.low <= 0.9 <= found.high
    assert 88 <= hits <= 100


def test_ratios_without_a_denominator() -> None:
    assert metrics.ratio_interval([0, 0], [0, 0]).value == 1
    assert metrics.ratio_interval([1, 0], [0, 0]).value == math.inf


def test_difference_interval() -> None:
    assert metrics.difference_interval([1, 0, 1], [0.5, -0.5, 0.5]) == metrics.Interval(0.5, 0.5, 0.5)


def test_one_sample_has_no_spread() -> None:
    assert metrics.mean_interval([0.25]) == metrics.Interval(0.25, 0.25, 0.25)


def test_no_samples() -> None:
    with pytest.raises(GraphoptError, match="no samples"):
        metrics.mean_interval([])
    with pytest.raises(GraphoptError, match="2 scores cannot be paired with 1"):
        metrics.ratio_interval([1, 2], [1])


def test_intervals_repeat() -> None:
    scores = np.random.default_rng(1).random(50)
    assert metrics.mean_interval(scores) == metrics.mean_interval(scores)
