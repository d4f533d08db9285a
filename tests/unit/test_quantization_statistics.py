"""TensorStats against numpy on the whole data, however it is cut into batches; the file that keeps it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.errors import GraphoptError
from graphopt.quantization.statistics import BINS, MOMENTUM, SUBSET, Statistics, TensorStats, _stride

# Of far smaller values beside far larger ones float32 cannot even tell the sign.
MAGNITUDES = st.floats(2.0**-60, 2.0**60, width=32)
FLOATS = st.just(0.0) | MAGNITUDES | MAGNITUDES.map(lambda value: -value)
ARRAYS = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)


def stats_of(*batches: Any) -> TensorStats:
    stats = TensorStats()
    for batch in batches:
        stats.update(np.asarray(batch))
    return stats


def direct(x: np.ndarray, exponent: int) -> np.ndarray:
    """The histogram in one go, in float64."""
    index = np.floor(x.astype(np.float64) * 2.0 ** (BINS.bit_length() - 2 - exponent)).astype(int) + BINS // 2
    return np.bincount(index, minlength=BINS)


@settings(max_examples=80, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=5))
def test_statistics_are_those_of_all_batches_together(batches: list[np.ndarray]) -> None:
    stats, x = stats_of(*batches), np.concatenate(batches)
    assert stats.count == x.size == stats.counts.sum()
    if not x.size:
        assert stats.low == math.inf and stats.batches == 0
        return
    wide = x.astype(np.float64)
    assert (stats.low, stats.high) == (x.min(), x.max())
    largest = np.abs(wide).max()
    assert stats.mean == pytest.approx(wide.mean(), rel=1e-5, abs=1e-5 * largest)
    assert stats.variance == pytest.approx(wide.var(), rel=1e-3, abs=1e-6 * largest**2)
    if largest:
        assert stats.exponent is not None
        assert largest < 2.0**stats.exponent and (stats.exponent == -100 or largest * 2 >= 2.0**stats.exponent)
        np.testing.assert_array_equal(stats.counts, direct(x, stats.exponent))


@settings(max_examples=80, deadline=None)
@given(st.lists(ARRAYS, max_size=4), st.lists(ARRAYS, max_size=4))
def test_merging_is_seeing_the_rest(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    merged, whole = stats_of(*first), stats_of(*first, *second)
    merged.merge(stats_of(*second))
    assert (merged.count, merged.batches, merged.exponent) == (whole.count, whole.batches, whole.exponent)
    assert (merged.low, merged.high) == (whole.low, whole.high)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    for name in ("mean", "m2", "moving_low", "moving_high"):
        size = max(abs(whole.low), abs(whole.high)) ** (2 if name == "m2" else 1) if whole.count else 0
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-9 * size * whole.count)


def test_more_elements_than_a_piece() -> None:
    x = np.random.default_rng(0).normal(3, 2, (5, 40000)).astype(np.float32)
    stats = stats_of(x)
    assert stats.batches == 1 and stats.count == 200000
    assert stats.mean == pytest.approx(x.mean(dtype=np.float64), rel=1e-6)
    assert stats.variance == pytest.approx(x.var(dtype=np.float64), rel=1e-5)
    np.testing.assert_array_equal(stats.counts, direct(x.ravel(), 4))
    np.testing.assert_array_equal(stats_of(x.T).counts, stats.counts)  # not contiguous


def test_large_values_do_not_overflow_the_moments() -> None:
    stats = stats_of(np.array([3e38, -3e38, 3e38], np.float32))
    assert stats.variance == pytest.approx(8e76, rel=1e-3) and stats.exponent == 128


def test_moving_averages_are_bias_corrected() -> None:
    assert stats_of([2.0, 4.0]).moving_high == pytest.approx(4)
    stats = stats_of([0.0, 4.0], [0.0, 8.0], [0.0, 2.0])
    weights = np.array([MOMENTUM**2, MOMENTUM, 1])
    assert stats.moving_high == pytest.approx(float(weights @ [4, 8, 2] / weights.sum()))
    assert stats.moving_low == 0


def test_nan_and_infinities_are_counted_apart() -> None:
    stats = stats_of(np.array([1, np.nan, -np.inf, np.inf, 2], np.float32), np.array([np.nan], np.float32))
    assert (stats.count, stats.nan, stats.inf, stats.batches) == (2, 2, 2, 1)
    assert (stats.low, stats.high, stats.finite) == (1, 2, False)
    assert stats_of([1.0]).finite


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_float_types(dtype: str) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    stats = stats_of(np.array([-1.5, 0.25], kind))
    assert (stats.low, stats.high, stats.count) == (-1.5, 0.25, 2)


def test_other_types_are_refused() -> None:
    with pytest.raises(GraphoptError, match="of float tensors, not of int64"):
        stats_of(np.arange(3))


def test_zeros_have_no_width_until_something_else_comes() -> None:
    stats = stats_of(np.zeros(5, np.float32))
    assert stats.exponent is None and stats.width == 0 and stats.counts[BINS // 2] == 5
    stats.update(np.array([1e-30, -3.0], np.float32))
    np.testing.assert_array_equal(stats.counts, direct(np.array([0] * 5 + [1e-30, -3]), 2))


def test_statistics_come_back_from_their_file(tmp_path: Path) -> None:
    stats = stats_of([-1.0, 2.0, np.nan], [7.0])
    kept = Statistics("calib.npz", 2, "ab" * 32)
    kept.add("hash", {"x": stats, "empty": TensorStats()})
    path = tmp_path / "folder" / "stats.json"
    kept.save(path)
    found = Statistics.load(path)
    assert (found.origin, found.samples, found.data) == ("calib.npz", 2, "ab" * 32)
    values = found.find("hash", ["x", "empty"])
    assert values is not None and found.find("other", ["x"]) is None and found.find("hash", ["y"]) is None
    assert values["x"].to_json() == stats.to_json() and values["empty"].low == math.inf
    assert found.find("other", []) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "not JSON.*--save-calibration"),
        ("[]", "holds no calibration statistics"),
        ('{"format": 9, "origin": "x", "samples": 1, "models": []}', "have format 9, this version reads 1"),
        ('{"format": 1, "origin": "x", "samples": 1, "models": [{}]}', "wants the keys model, values"),
        ('{"format": 1, "origin": "x", "samples": 1, "models": [{"model": "h", "values": {"x": {}}}]}', "KeyError"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "stats.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GraphoptError, match=message):
        Statistics.load(path)


@pytest.mark.parametrize(("key", "value"), [("count", 0), ("low", 9.0), ("first", -3), ("counts", [3, -1])])
def test_contradictions_are_refused(key: str, value: Any) -> None:
    data = stats_of([1.0, 2.0]).to_json()
    TensorStats.from_json(json.loads(json.dumps(data)))
    with pytest.raises(GraphoptError, match="no statistics of a tensor"):
        TensorStats.from_json({**data, key: value})


def test_later_batches_are_thinned_out_evenly() -> None:
    """Of what comes after the first, some elements stand for all: from every channel, and none counts twice as much."""
    rng = np.random.default_rng(0)
    scale = np.array([1, 1, 1, 50], np.float32)  # one channel of four is far wider
    batches = [rng.standard_normal((100_000, 4)).astype(np.float32) * scale for _ in range(6)]
    stats, x = stats_of(*batches), np.concatenate(batches).astype(np.float64)
    assert (stats.count, stats.batches) == (x.size, 6)
    assert (stats.low, stats.high) == (x.min(), x.max())
    assert stats.counts.sum() == pytest.approx(x.size, rel=1e-3)
    assert stats.variance == pytest.approx(x.var(), rel=0.03)
    wide = np.abs(np.arange(BINS) + 0.5 - BINS / 2) * stats.width > 10
    assert stats.counts[wide].sum() / stats.counts.sum() == pytest.approx((np.abs(x) > 10).mean(), rel=0.03)
    assert TensorStats.from_json(stats.to_json()).to_json() == stats.to_json()


def test_a_rare_value_is_found_however_many_are_left_out() -> None:
    x = np.zeros(3_000_000, np.float32)
    stats = stats_of(x)
    x[1_234_567] = 9
    stats.update(x)
    x[1_234_567] = np.nan
    stats.update(x)
    assert (stats.high, stats.nan, stats.count) == (9, 1, 8_999_999)


@pytest.mark.parametrize("size", [1, 2**14, 3 * 2**20, 2310 * 1000, 10**7 + 19])
def test_what_stands_for_a_tensor_is_spread_over_its_channels(size: int) -> None:
    stride = _stride(size)
    assert math.gcd(stride, size) == 1 and size / stride >= min(size, SUBSET)
