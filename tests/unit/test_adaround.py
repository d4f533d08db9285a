"""Rounding by gradients: what AdaRound promises of its codes, and round-weights{method=gradient}."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounding_net import FEEDS, STATIC, made, net

from graphopt.errors import MissingDependency
from graphopt.ir.hash import structural_hash
from graphopt.quantization.affine import QTYPES, QParams, dequantize, quantize, sqnr_db
from graphopt.quantization.rounding import output_error


def problem(groups: int = 2) -> tuple[np.ndarray, np.ndarray, list[QParams]]:
    """Rows, second moments of inputs that go together, and int4 quantizers."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((groups, 500, 4)) @ rng.standard_normal((groups, 4, 24))
    x = x + 0.3 * rng.standard_normal(x.shape) + 0.3
    rows = rng.standard_normal((groups, 6, 24)).astype(np.float32)
    scales = np.abs(rows).max(axis=2, keepdims=True) / 7
    zero = np.zeros((6, 1), np.int64)
    params = [QParams(QTYPES["int4"], scale.astype(np.float32), zero, 1, 24) for scale in scales]
    return rows, x.transpose(0, 2, 1) @ x, params


def error(rows: np.ndarray, moments: np.ndarray, params: list[QParams], codes: Any) -> float:
    return sum(output_error(w, h, dequantize(q, p)) for w, h, p, q in zip(rows, moments, params, codes, strict=True))


@pytest.mark.torch
def test_the_error_falls_and_each_weight_goes_to_a_neighbour() -> None:
    pytest.importorskip("torch")
    from graphopt.quantization.adaround import adaround

    rows, moments, params = problem()
    codes = adaround(rows, moments, params, steps=300)
    exact = rows / np.stack([item.scale for item in params])
    assert codes.dtype == np.int8 and (np.abs(codes - exact) < 1).all() and np.abs(codes).max() <= 7
    nearest = [quantize(w, p) for w, p in zip(rows, params, strict=True)]
    assert error(rows, moments, params, codes) < 0.5 * error(rows, moments, params, nearest)
    np.testing.assert_array_equal(codes, adaround(rows, moments, params, steps=300))


@pytest.mark.torch
def test_weights_that_are_codes_stay_there() -> None:
    pytest.importorskip("torch")
    from graphopt.quantization.adaround import adaround

    rows, moments, params = problem(1)
    params = [replace(params[0], scale=np.full((6, 1), 0.5, np.float32))]
    exact = np.clip(np.round(rows * 3), -7, 7).astype(np.float32)
    assert exact.min() == -7 and exact.max() == 7
    np.testing.assert_array_equal(adaround(exact / 2, moments, params, steps=50), exact)


@pytest.mark.torch
def test_the_pass_refines_every_layer_by_gradients(tmp_path: Path, run_model: Any) -> None:
    pytest.importorskip("torch")
    want = run_model(net(), FEEDS)["y"]
    plain, _ = made(STATIC, tmp_path)
    better, ctx = made(f"{STATIC},round-weights{{method=gradient}}", tmp_path)
    applied = [remark for remark in ctx.remarks if remark.status == "applied" and remark.pass_name == "round-weights"]
    assert applied and all("of the error of rounding to nearest" in remark.reason for remark in applied)
    assert sqnr_db(want, run_model(better, FEEDS)["y"]) > sqnr_db(want, run_model(plain, FEEDS)["y"]) + 1
    again, _ = made(f"{STATIC},round-weights{{method=gradient}}", tmp_path)
    assert structural_hash(again) == structural_hash(better)


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "torch" else there(name))
    with pytest.raises(MissingDependency, match=r"round-weights\{method=gradient\} needs .*graphopt\[torch\]"):
        made(f"{STATIC},round-weights{{method=gradient}}", tmp_path)
    made(f"{STATIC},round-weights", tmp_path)  # the closed form needs nothing
