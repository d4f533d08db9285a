"""round-weights and correct-bias behind quantize-static: they lower the error, and stay out where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounding_net import FEEDS, RNG, STATIC, made, net

from graphopt import ir
from graphopt.calibrating import Calibrating
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.quantization.affine import sqnr_db
from graphopt.quantization.moments import PairSums
from graphopt.quantization.rounding import fit_rows, mean_shift, pair_error, second_moments
from graphopt.quantization.saturation import is_safe


@pytest.mark.parametrize("refine", ["round-weights", "correct-bias", "round-weights,correct-bias"])
def test_refining_lowers_the_error_of_the_outputs(refine: str, tmp_path: Path, run_model: Any) -> None:
    want = run_model(net(), FEEDS)["y"]
    plain, _ = made(STATIC, tmp_path)
    better, ctx = made(f"{STATIC},{refine}", tmp_path)
    applied = [remark for remark in ctx.remarks if remark.status == "applied" and remark.pass_name in refine]
    assert applied
    assert sqnr_db(want, run_model(better, FEEDS)["y"]) > sqnr_db(want, run_model(plain, FEEDS)["y"]) + 1


def test_codes_that_cannot_saturate_stay_so(tmp_path: Path) -> None:
    model, ctx = made("quantize-static{method=minmax saturation=safe},round-weights", tmp_path)
    assert any(remark.pass_name == "round-weights" for remark in ctx.remarks)
    from graphopt.passes.quantize._weights8 import adds_in_pairs, kernel_rows

    checked = 0
    for node in model.graph:
        if node.op_type in ("Conv", "MatMul") and adds_in_pairs(node):
            codes = node.inputs[1].producer().inputs[0].const_value.numpy()
            assert all(is_safe(rows) for rows in kernel_rows(node, codes))
            checked += 1
    assert checked == 2


@pytest.mark.parametrize("name", ["round-weights", "correct-bias"])
def test_without_quantize_static_before_it_a_pass_says_so(name: str, tmp_path: Path) -> None:
    model, _ = made(STATIC, tmp_path)
    ctx = Context(model, calibration=Calibrating(model, [FEEDS], tmp_path))
    result = run(model, parse(name), ctx)
    assert result.effects()[name] == 0
    assert any("quantize-static has to come before it" in remark.reason for remark in ctx.remarks)


def test_one_array_stands_for_the_sums_of_equal_inputs() -> None:
    x = RNG.standard_normal((2, 50, 3)).astype(np.float32)
    whole, shared = PairSums.zero(2, 3), PairSums.zero(2, 3, same=True)
    for sums in (whole, shared):
        sums.add(x, x)
        sums.add(x[:, :9], x[:, :9])
    for name in ("xx", "xy", "yy", "x", "y", "count"):
        np.testing.assert_allclose(getattr(shared, name), getattr(whole, name), rtol=1e-6)
    assert shared.xx is shared.yy
    rows = RNG.standard_normal((4, 3)).astype(np.float32)
    assert fit_rows(rows, shared, 1, shifts=True) is rows


def test_a_layer_makes_up_for_what_the_layers_before_did_to_its_inputs() -> None:
    """With y = 0.8 x + noise, the fitted weights are those of the least squares fit, and W where y is x."""
    x = RNG.standard_normal((1, 4000, 6)).astype(np.float32)
    rows = RNG.standard_normal((3, 6)).astype(np.float32)
    same, other = PairSums.zero(1, 6), PairSums.zero(1, 6)
    y = (0.8 * x + 0.1 * RNG.standard_normal(x.shape) + 0.5).astype(np.float32)
    same.add(x, x)
    other.add(x, y)
    np.testing.assert_allclose(fit_rows(rows, same, 0, shifts=True), rows, atol=1e-5)
    fitted = fit_rows(rows, other, 0, shifts=True, damping=1e-9)
    centred = [part[0] - part[0].mean(axis=0) for part in (x, y)]
    want = np.linalg.lstsq(centred[1], centred[0] @ rows.T, rcond=None)[0].T
    np.testing.assert_allclose(fitted, want, atol=1e-3)
    shift = mean_shift(rows, fitted, other, 0)
    gaps = x[0] @ rows.T - y[0] @ fitted.T - shift
    assert np.abs(gaps.mean(axis=0)).max() < 1e-4
    np.testing.assert_allclose(pair_error(rows, fitted, other, 0, shift), np.square(gaps).sum(), rtol=1e-3)
    assert pair_error(rows, fitted, other, 0, shift) < 0.3 * pair_error(rows, rows, other, 0)


STEADY = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 4, 8, 8] x) => (float[N, 5] y) <float[8, 4, 3, 3] w, float[8] b, float[8, 5] v, float[5] u> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu (c)
  m = GlobalAveragePool (r)
  f = Flatten (m)
  y = Gemm (f, v, u) }"""


def refined(x: np.ndarray, folder: Path, scale: float = 1.0) -> tuple[dict[str, str], Any]:
    """Why round-weights left nodes alone by op type, and the model behind the passes of int8."""
    model = from_text(STEADY)
    name_nodes(model)
    weights = RNG.standard_normal((8, 4, 3, 3)) * scale
    model.graph.initializers["w"].const_value = ir.Tensor(weights.astype(np.float32), name="w")
    model.graph.initializers["b"].const_value = ir.Tensor(np.linspace(0.1, 3, 8, dtype=np.float32), name="b")
    ctx = Context(model, calibration=Calibrating(model, {"x": x}, folder))
    run(model, parse("quantize-static{method=minmax},round-weights,correct-bias"), ctx)
    missed = [item for item in ctx.remarks if item.pass_name == "round-weights" and item.status == "missed"]
    return {item.op: item.reason for item in missed}, model


@pytest.mark.parametrize(("samples", "scale"), [(1, 1.0), (64, 1e-40)], ids=["one sample", "weights of nothing"])
def test_inputs_that_do_not_vary_are_rounded_to_nearest(samples: int, scale: float, tmp_path: Path) -> None:
    """What the Gemm is given, less its mean, is nothing but rounding errors."""
    missed, model = refined(FEEDS["x"][:samples], tmp_path, scale)
    assert missed["Gemm"] == "its inputs are the same on all samples, which tells nothing of how to round"
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    codes, step = (value.const_value.numpy() for value in gemm.inputs[1].producer().inputs[:2])
    v = from_text(STEADY).graph.initializers["v"].const_value.numpy()
    np.testing.assert_array_equal(codes, np.clip(np.rint(v / step), -127, 127))


def test_a_small_variance_is_told_from_rounding_beside_a_large_mean() -> None:
    x = (RNG.standard_normal((1, 500, 6)) * 0.01 + 1000).astype(np.float32)
    x[..., 4:] = 7.7
    sums = PairSums.zero(1, 6, same=True)
    for part in np.split(x, 5, axis=1):
        sums.add(part, part)
    want = np.cov(x[0].astype(np.float64).T) * 499
    want[4:] = want[:, 4:] = 0
    np.testing.assert_allclose(second_moments(sums, 0, shifts=True), want, atol=1e-4 * want.max())


def test_what_a_steady_input_does_not_tell_leaves_the_weights() -> None:
    """Two samples of the quantized model that are one: nothing to fit to, with codes of a wrong mean as well."""
    y = np.full((1, 50, 6), 0.3, np.float32)
    sums = PairSums.zero(1, 6)
    sums.add(y + RNG.standard_normal(y.shape).astype(np.float32), y)
    rows = RNG.standard_normal((3, 6)).astype(np.float32)
    np.testing.assert_array_equal(fit_rows(rows, sums, 0, shifts=True), rows)
