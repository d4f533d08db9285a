"""Rounding by second moments: lower output error than to nearest, and what the moments of layers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.quantization.affine import INT4, UINT4, QParams, QType, dequantize, quantize
from graphopt.quantization.moments import Moments, PairSums, Windows, bytes_of, why_useless
from graphopt.quantization.rounding import coordinate_descent, gptq, output_error, refit_scales
from graphopt.quantization.weights import weight_params

RANDOM = np.random.default_rng(0)
K, N = 96, 24
MIX = RANDOM.standard_normal((12, K)) * RANDOM.uniform(0.1, 3, K)
INPUTS = (RANDOM.standard_normal((400, 12)) @ MIX + 0.3 * RANDOM.standard_normal((400, K))).astype(np.float32)
"""Correlated, as activations are."""
MOMENTS = (INPUTS.T @ INPUTS).astype(np.float64)
ROWS = RANDOM.standard_normal((N, K)).astype(np.float32)


def error(codes: np.ndarray, params: QParams) -> float:
    return output_error(ROWS, MOMENTS, dequantize(codes, params))


def test_the_error_is_that_of_the_products() -> None:
    other = ROWS + 0.01
    want = np.square(INPUTS.astype(np.float64) @ (ROWS - other).T).sum()
    assert output_error(ROWS, MOMENTS, other) == pytest.approx(want, rel=1e-4)
    assert output_error(ROWS, MOMENTS, ROWS) == 0


@pytest.mark.parametrize("group", [0, 16, 32])
@pytest.mark.parametrize("qtype", [INT4, UINT4], ids=str)
def test_each_step_lowers_the_error(qtype: QType, group: int) -> None:
    params = weight_params(ROWS, qtype, group, symmetric=qtype.signed)
    nearest = quantize(ROWS, params)
    closed = gptq(ROWS, MOMENTS, params)
    assert error(closed, params) < 0.5 * error(nearest, params)
    from_nearest = coordinate_descent(ROWS, MOMENTS, params, nearest)
    assert error(from_nearest, params) < 0.6 * error(nearest, params)
    polished = coordinate_descent(ROWS, MOMENTS, params, closed)
    assert error(polished, params) < error(closed, params)
    fitted = refit_scales(ROWS, MOMENTS, params, polished)
    assert error(polished, fitted) < error(polished, params)
    for codes in (closed, from_nearest, polished):
        assert codes.dtype == nearest.dtype and codes.shape == nearest.shape
        assert codes.min() >= qtype.qmin and codes.max() <= qtype.qmax


def test_descent_ends_where_no_single_code_helps() -> None:
    rows, moments = ROWS[:2, :8], MOMENTS[:8, :8]
    params = weight_params(rows, UINT4, 0)
    codes = coordinate_descent(rows, moments, params, quantize(rows, params), sweeps=50, damping=0)
    best = output_error(rows, moments, dequantize(codes, params))
    for spot in np.ndindex(*codes.shape):
        for step in (-1, 1):
            other = codes.astype(np.int64)
            other[spot] = np.clip(other[spot] + step, 0, 15)
            assert output_error(rows, moments, dequantize(other, params)) >= best * (1 - 1e-5)


def test_uncorrelated_inputs_leave_nothing_to_gain() -> None:
    params = weight_params(ROWS, UINT4, 32)
    nearest = quantize(ROWS, params)
    assert np.array_equal(gptq(ROWS, np.eye(K), params), nearest)
    assert np.array_equal(coordinate_descent(ROWS, np.eye(K), params, nearest), nearest)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    dead = MOMENTS.copy()
    dead[:, 5:40] = dead[5:40] = 0
    params = weight_params(ROWS, UINT4, 32)
    for moments in (dead, np.zeros((K, K))):
        for codes in (gptq(ROWS, moments, params), coordinate_descent(ROWS, moments, params, quantize(ROWS, params))):
            assert np.abs(dequantize(codes, params) - ROWS)[:, 5:40].max() < params.scale.max() * 8
            assert np.isfinite(refit_scales(ROWS, moments, params, codes).scale).all()
    assert np.array_equal(gptq(ROWS, np.zeros((K, K)), params), quantize(ROWS, params))


def test_fewer_samples_than_columns() -> None:
    few = INPUTS[:20].T @ INPUTS[:20]
    params = weight_params(ROWS, UINT4, 32)
    codes = gptq(ROWS, few.astype(np.float64), params)
    assert error(codes, params) < 1.5 * error(quantize(ROWS, params), params), "damping keeps it from overfitting"


# -- moments --------------------------------------------------------------------------------------------------------


def test_moments_are_summed_over_batches_and_split_by_sample() -> None:
    x = RANDOM.standard_normal((10, 7, 6)).astype(np.float32)
    moments = Moments(6)
    for start, stop in ((0, 3), (3, 4), (4, 10)):
        moments.update(x[start:stop])
    held = x[[4, 9]].reshape(-1, 6)
    kept = np.delete(x, [4, 9], axis=0).reshape(-1, 6)
    assert np.allclose(moments.check[0], held.T @ held, atol=1e-4)
    assert np.allclose(moments.fit[0], kept.T @ kept, atol=1e-4)
    assert moments.samples == 10
    assert bytes_of(6) == moments.fit.nbytes + moments.check.nbytes


def test_one_sample_is_checked_with_itself() -> None:
    moments = Moments(6)
    moments.update(RANDOM.standard_normal((1, 7, 6)).astype(np.float32))
    assert moments.held_out() is moments.fit


def test_batches_with_nan_or_infinities_do_not_count() -> None:
    moments = Moments(2)
    moments.update(np.array([[1, np.inf]], np.float32))
    assert not moments.finite and moments.samples == 0 and not moments.fit.any()


@pytest.mark.parametrize("size", [1e-22, 1e25])
def test_squares_that_float32_cannot_hold_are_of_no_use(size: float) -> None:
    x = (RANDOM.standard_normal((1, 40, 8)) * size).astype(np.float32)
    single, sums = Moments(8), PairSums.zero(1, 8, same=True)
    single.update(x[0])
    sums.add(x, x)
    for found in (single.fit, sums.yy):
        assert (
            why_useless(found) == "its inputs on the samples are too large or too small for sums of squares in float32"
        )
    assert why_useless(np.eye(8)[None]) is None
    assert why_useless(np.zeros((1, 8, 8))) == "its inputs are zero on all samples"


@pytest.mark.parametrize(
    ("attributes", "windows"),
    [
        ({}, Windows((3, 2), (1, 1), (1, 1), (0, 0, 0, 0))),
        ({"pads": [1, 0, 2, 1]}, Windows((3, 2), (1, 1), (1, 1), (1, 0, 2, 1))),
        ({"strides": [2, 3], "dilations": [2, 1]}, Windows((3, 2), (2, 3), (2, 1), (0, 0, 0, 0))),
        ({"group": 2}, Windows((3, 2), (1, 1), (1, 1), (0, 0, 0, 0), 2)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, Windows((3, 2), (2, 2), (1, 1), "same-upper")),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, Windows((3, 2), (2, 2), (1, 1), "same-lower")),
    ],
)
def test_patches_are_what_a_convolution_reads(attributes: dict[str, Any], windows: Windows) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    x = RANDOM.standard_normal((2, 4, 9, 8)).astype(np.float32)
    w = RANDOM.standard_normal((6, 4 // windows.groups, 3, 2)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    kinds = [onnx.helper.make_tensor_value_info(name, 1, None) for name in "xwy"]
    graph = onnx.helper.make_graph([node], "g", kinds[:2], kinds[2:])
    (want,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, {"x": x, "w": w})
    patches = windows.patches(x)
    rows = w.reshape(windows.groups, -1, patches.shape[2])
    got = np.einsum("grk,gnk->rgn", patches, rows).reshape(-1, 6)
    assert np.allclose(got, np.moveaxis(want, 1, -1).reshape(-1, 6), atol=1e-4)


def test_many_positions_are_thinned_out() -> None:
    windows = Windows((1,), (1,), (1,), (0, 0))
    assert windows.patches(np.zeros((3, 2, 5000), np.float32)).shape == (1, 3750, 2)
