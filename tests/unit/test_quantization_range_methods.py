"""Range methods: properties that all of them have, and each against the definition in its docstring."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.errors import GraphoptError
from graphopt.quantization import histograms
from graphopt.quantization.affine import INT4, INT8, INT16, QTYPES, UINT8, QType, fake_quantize, params_from_range
from graphopt.quantization.ranges import METHODS, parse_method
from graphopt.quantization.statistics import TensorStats

SMALL = [QTYPES[name] for name in ("int4", "uint4", "int8", "uint8")]
DATA = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


def stats_of(x: np.ndarray) -> TensorStats:
    stats = TensorStats()
    stats.update(x)
    return stats


def normal(n: int = 100_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(DATA, st.sampled_from(SMALL), st.booleans(), st.sampled_from(sorted(METHODS)))
def test_ranges_hold_zero_and_nothing_unseen(x: np.ndarray, qtype: QType, symmetric: bool, name: str) -> None:
    low, high = parse_method(name).choose(stats_of(x), qtype, symmetric)
    assert low <= 0 <= high
    if symmetric:
        assert low == -high and high <= np.abs(x).max()
    else:
        assert min(x.min(), 0) <= low and high <= max(x.max(), 0)
    params_from_range(low, high, qtype, symmetric=symmetric)


@settings(max_examples=30, deadline=None)
@given(DATA, st.integers(-20, 20), st.booleans(), st.sampled_from(sorted(METHODS)))
def test_ranges_follow_the_scale_of_the_data(x: np.ndarray, power: int, symmetric: bool, name: str) -> None:
    method, factor = parse_method(name), 2.0**power
    before = method.choose(stats_of(x.astype(np.float64)), INT8, symmetric)
    after = method.choose(stats_of(x.astype(np.float64) * factor), INT8, symmetric)
    assert after == pytest.approx(tuple(np.multiply(before, factor)), rel=1e-6, abs=1e-30)


@settings(max_examples=30, deadline=None)
@given(DATA, st.sampled_from(SMALL), st.booleans())
@example(np.array([989596, 1698, 254977, 19460, 1506] + 27 * [-667137], np.float32), QTYPES["uint4"], True)
def test_mse_is_never_worse_than_minmax(x: np.ndarray, qtype: QType, symmetric: bool) -> None:
    stats = stats_of(x)
    errors = []
    for name in ("mse", "minmax"):
        low, high = parse_method(name).choose(stats, qtype, symmetric)
        ends = np.array([low]), np.array([high])
        errors.append(float(histograms.squared_error(histograms.density(stats), *ends, qtype, symmetric)[0]))
    assert errors[0] <= errors[1] * (1 + 1e-9)


@pytest.mark.parametrize("qtype", SMALL, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ends", [(-2.0, 3.0), (-0.7, 2.0), (0.0, 4.0)])
def test_expected_error_is_that_of_the_quantizer(qtype: QType, symmetric: bool, ends: tuple[float, float]) -> None:
    x = normal() * 1.3
    ends = (-max(-ends[0], ends[1]), max(-ends[0], ends[1])) if symmetric else ends
    params = params_from_range(*ends, qtype, symmetric=symmetric)
    really = float(np.mean((x - fake_quantize(x, params)).astype(np.float64) ** 2))
    arrays = np.array([ends[0]]), np.array([ends[1]])
    expected = histograms.squared_error(histograms.density(stats_of(x)), *arrays, qtype, symmetric)
    assert float(expected[0]) == pytest.approx(really, rel=0.02)


@pytest.mark.parametrize("qtype", [INT4, INT8], ids=str)
def test_mse_finds_what_trying_all_finds(qtype: QType) -> None:
    x = normal(50_000)
    reaches = np.linspace(1, float(np.abs(x).max()), 150)
    grids = [params_from_range(-reach, reach, qtype, symmetric=True) for reach in reaches]
    errors = [float(np.mean((x - fake_quantize(x, grid)).astype(np.float64) ** 2)) for grid in grids]
    low, high = parse_method("mse").choose(stats_of(x), qtype, True)
    assert low == -high
    chosen = params_from_range(low, high, qtype, symmetric=True)
    assert float(np.mean((x - fake_quantize(x, chosen)).astype(np.float64) ** 2)) <= min(errors) * 1.005


def test_mse_of_a_skewed_tensor_keeps_the_short_side() -> None:
    x = normal()
    gelu_like = np.maximum(x, 0) + np.where(x < 0, -0.17 * np.exp(x), 0).astype(np.float32)
    low, high = parse_method("mse").choose(stats_of(gelu_like), UINT8)
    assert -0.17 <= low < -0.12 and 2 < high <= gelu_like.max()


def test_percentiles_are_those_of_the_data() -> None:
    x = normal()
    stats = stats_of(x)
    low, high = parse_method("percentile{p=99}").choose(stats, INT8)
    assert (low, high) == pytest.approx((np.quantile(x, 0.005), np.quantile(x, 0.995)), abs=2 * stats.width)
    _, reach = parse_method("percentile{p=99}").choose(stats, INT8, True)
    assert reach == pytest.approx(np.quantile(np.abs(x), 0.99), abs=2 * stats.width)
    for symmetric in (False, True):
        whole = parse_method("minmax").choose(stats, INT8, symmetric)
        assert parse_method("percentile{p=100}").choose(stats, INT8, symmetric) == whole


def test_entropy_cuts_a_long_thin_tail_and_keeps_a_uniform_tensor_whole() -> None:
    tail = np.concatenate([normal(), np.linspace(10, 60, 40, dtype=np.float32)])
    for qtype, symmetric in ((INT8, True), (UINT8, False)):
        _, high = parse_method("entropy").choose(stats_of(tail), qtype, symmetric)
        assert 3 < high < 20
    uniform = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    assert parse_method("entropy").choose(stats_of(uniform), INT8, True)[1] > 0.97


def test_zeros_do_not_move_the_entropy() -> None:
    half = np.maximum(normal(), 0)
    assert parse_method("entropy").choose(stats_of(half), UINT8)[1] > 3.5
    many = np.concatenate([half, np.zeros(10**6, np.float32)])
    chosen = [parse_method("entropy").choose(stats_of(x), UINT8) for x in (half, many)]
    assert chosen[0] == chosen[1]


def test_entropy_with_more_levels_than_bins_is_minmax() -> None:
    stats = stats_of(normal())
    assert parse_method("entropy").choose(stats, INT16) == (stats.low, stats.high)


def test_sigma_and_moving_average() -> None:
    x = normal()
    low, high = parse_method("sigma{k=2}").choose(stats_of(x), INT8)
    assert (low, high) == pytest.approx((-2, 2), abs=0.02)
    stats = stats_of(x[:10])
    stats.update(x[10:20])
    assert parse_method("moving-average").choose(stats, INT8) == pytest.approx((stats.moving_low, stats.moving_high))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_constant_and_zero_tensors(name: str) -> None:
    method = parse_method(name)
    assert method.choose(stats_of(np.zeros(9, np.float32)), INT8) == (0, 0)
    low, high = method.choose(stats_of(np.full(9, 3.0, np.float32)), INT8)
    assert (low, high) == (0, 3)
    low, high = method.choose(stats_of(np.full(9, -3.0, np.float32)), INT8)
    assert (low, high) == (-3, 0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_text_comes_back(name: str) -> None:
    assert str(parse_method(name)) == name
    with pytest.raises(GraphoptError, match="no finite value"):
        parse_method(name).choose(TensorStats(), INT8)


def test_options_are_read_and_checked() -> None:
    assert str(parse_method("percentile{p=99.5}")) == "percentile{p=99.5}"
    for text, message in (
        ("minmaxx", "no range method 'minmaxx'; did you mean 'minmax'"),
        ("percentile{q=1}", "range method 'percentile' has no option 'q'"),
        ("percentile{p=101}", "p=101 is not between 50 and 100"),
        ("sigma{k=0}", "k=0 is not a positive number"),
    ):
        with pytest.raises(GraphoptError, match=message):
            parse_method(text)
