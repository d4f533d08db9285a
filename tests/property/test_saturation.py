"""Saturation-safe weights: safe whatever the activations, close to the given ones, and only where it is needed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from graphopt.quantization.saturation import is_safe, make_safe, safe_scales, saturating_matmul

CODES = arrays(np.int8, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.integers(-127, 127))
EXTREMES = st.sampled_from([0, 1, 127, 128, 254, 255])


@given(CODES, st.data())
@settings(max_examples=300, deadline=None)
def test_safe_codes_never_saturate(codes: np.ndarray, data: st.DataObject) -> None:
    safe = make_safe(codes)
    assert is_safe(safe) and safe.shape == codes.shape and safe.dtype == codes.dtype
    acts = data.draw(arrays(np.uint8, (5, codes.shape[0]), elements=EXTREMES))
    exact = acts.astype(np.int64) @ safe.astype(np.int64)
    np.testing.assert_array_equal(saturating_matmul(acts, safe), exact)


@given(CODES)
@settings(max_examples=300, deadline=None)
def test_unsafe_codes_do_saturate_for_some_activations(codes: np.ndarray) -> None:
    # All ones against all zeros in each pair: the worst that activations can do.
    worst = [np.where(mask, 255, 0).astype(np.uint8) for mask in (np.ones(len(codes), bool),)]
    signs = [(codes[:, c] > 0) if up else (codes[:, c] < 0) for c in range(codes.shape[1]) for up in (True, False)]
    acts = np.stack([*worst, *(np.where(mask, 255, 0).astype(np.uint8) for mask in signs)])
    exact = acts.astype(np.int64) @ codes.astype(np.int64)
    assert is_safe(codes) == bool((saturating_matmul(acts, codes) == exact).all())


@given(CODES)
@settings(max_examples=200, deadline=None)
def test_repair_moves_towards_zero_and_leaves_safe_pairs_alone(codes: np.ndarray) -> None:
    safe = make_safe(codes)
    assert (np.abs(safe.astype(int)) <= np.abs(codes.astype(int))).all()
    assert (np.sign(safe) * np.sign(codes.astype(int)) >= 0).all()
    if is_safe(codes):
        np.testing.assert_array_equal(safe, codes)
    np.testing.assert_array_equal(make_safe(safe), safe)


@given(arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(1, 4)), elements=st.floats(-3, 3, width=32)))
@settings(max_examples=200, deadline=None)
def test_chosen_scales_are_no_worse_than_seven_bits(weights: np.ndarray) -> None:
    largest = np.maximum(np.abs(weights).max(axis=0), 1e-3)
    scales = safe_scales(weights, (largest / 127).astype(np.float32))

    def error(scale: np.ndarray, low: int, high: int, repair: bool) -> np.ndarray:
        codes = np.clip(np.rint(weights / scale), low, high).astype(np.int32)
        return np.square((make_safe(codes) if repair else codes) * scale - weights.astype(np.float64)).sum(axis=0)

    assert (scales >= (largest / 127).astype(np.float32)).all()
    ours, reduced = error(scales, -127, 127, True), error(largest / 64, -64, 64, False)
    # Seven bits have half as many steps: rounding alone may favour them by half of one of their steps per weight.
    assert (ours <= reduced + len(weights) * np.square(largest / 127)).all()
