"""quantize-weights with samples: what is rounded by them, how much it helps, and where it falls back to nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrating import Calibrating
from graphopt.errors import GraphoptError
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
RANDOM = np.random.default_rng(0)
MIX = RANDOM.standard_normal((6, 32)).astype(np.float32)
"""Inputs are mixtures of six sources: what makes rounding by samples worth it."""


def sources(count: int) -> np.ndarray:
    return np.asarray(RANDOM.standard_normal((count, 6)), np.float32)


def mixed(count: int) -> np.ndarray:
    return sources(count) @ MIX + 0.1 * np.asarray(RANDOM.standard_normal((count, 32)), np.float32)


MATMUL = "g (float[N, 32] x) => (float[N, 16] y) <float[32, 16] w> { y = MatMul (x, w) }"
GEMM = "g (float[N, 32] x) => (float[N, 16] y) <float[16, 32] w> { y = Gemm <transB = 1, alpha = 0.5> (x, w) }"
ACROSS = """g (float[N, 32] x) => (float[N, 16] y) <float[32, 16] w> {
  t = Transpose <perm = [1, 0]> (x)
  y = Gemm <transA = 1> (t, w) }"""
GROUPED = """g (float[N, 4, 6, 6] x) => (float[N, 8, H, W] y) <float[8, 2, 3, 3] w> {
  y = Conv <group = 2> (x, w) }"""
TWO = """g (float[N, 32] x) => (float[N, 16] y) <float[32, 32] v, float[32, 16] w> {
  t = MatMul (x, v)
  r = Relu (t)
  y = MatMul (r, w) }"""


def quantize(text: str, options: str, data: Any, folder: Path, target: str | None = "cpu") -> tuple[Any, Context]:
    model = from_text(f"{HEAD}\n{text}")
    name_nodes(model)
    calibration = None
    if data is not None:
        np.savez(folder / "samples.npz", **data)
        calibration = Calibrating(model, folder / "samples.npz", folder)
    chosen = registry.make_target(target) if target else None
    ctx = Context(model, target=chosen, calibration=calibration)
    interface = Interface.of(model)
    run(model, parse(f"quantize-weights{{{options} bits=4 compute=float}}"), ctx)
    verify(model, interface)
    return model, ctx


def told(ctx: Context) -> list[str]:
    return [r.reason for r in ctx.remarks if r.status == "applied"]


@pytest.mark.parametrize("method", ["gptq", "descent"])
@pytest.mark.parametrize(
    ("text", "target"),
    [(MATMUL, "cpu"), (MATMUL, None), (GEMM, "cpu"), (ACROSS, "cpu"), (TWO, "cpu")],
    ids=["matmul", "dequantize", "gemm", "transposed input", "two"],
)
def test_products_change_less(text: str, target: str | None, method: str, tmp_path: Path, run_model: Any) -> None:
    samples, fresh = {"x": mixed(200)}, {"x": mixed(300)}
    want = run_model(from_text(f"{HEAD}\n{text}"), fresh)["y"]
    errors = {}
    for choice in ("rtn", method):
        model, ctx = quantize(text, f"method={choice} group=16", samples, tmp_path, target)
        errors[choice] = float(np.square(run_model(model, fresh)["y"] - want).sum())
    assert errors[method] < 0.6 * errors["rtn"], "on samples that it has not seen"
    assert all(f"; {method}: 0." in reason for reason in told(ctx))


@pytest.mark.parametrize("method", ["gptq", "descent"])
@pytest.mark.parametrize(
    ("shape", "attributes", "limit"),
    [
        ((8, 4, 3, 3), "pads = [1, 1, 1, 1]", 0.75),
        ((8, 2, 3, 3), "group = 2, strides = [2, 2]", 0.75),
        ((4, 1, 3, 3), 'group = 4, auto_pad = "SAME_UPPER"', 0.9),  # nine weights leave little to choose
    ],
)
def test_a_conv_changes_less(
    shape: tuple[int, ...], attributes: str, limit: float, method: str, tmp_path: Path, run_model: Any
) -> None:
    def images(count: int) -> np.ndarray:
        field = RANDOM.standard_normal((count, 4, 14, 14)).astype(np.float32)
        smooth = sum(np.roll(field, (i, j), (2, 3)) for i in range(3) for j in range(3))
        return np.asarray(smooth + smooth[:, ::-1], np.float32)

    dims = ", ".join(map(str, shape))
    text = f"g (float[N, 4, 14, 14] x) => (float[N, M, H, W] y) <float[{dims}] w> {{ y = Conv <{attributes}> (x, w) }}"
    samples, fresh = {"x": images(30)}, {"x": images(30)}
    want = run_model(from_text(f"{HEAD}\n{text}"), fresh)["y"]
    errors = {}
    for choice in ("rtn", method):
        model, ctx = quantize(text, f"ops=[Conv] method={choice}", samples, tmp_path)
        errors[choice] = float(np.square(run_model(model, fresh)["y"] - want).sum())
    assert errors[method] < limit * errors["rtn"]
    assert f"; {method}: 0." in told(ctx)[0]


def test_what_does_no_better_on_held_out_samples_is_rounded_to_nearest(tmp_path: Path, run_model: Any) -> None:
    x = mixed(100)
    x[4::5] = 3 * RANDOM.standard_normal((20, 32))  # the fifth sample of five is of another kind
    model, ctx = quantize(MATMUL, "method=gptq", {"x": x}, tmp_path)
    assert told(ctx) == [
        "weight of 4 bits, groups of 32, in MatMulNBits; gptq does no better than nearest on held-out samples"
    ]
    nearest, _ = quantize(MATMUL, "", None, tmp_path)
    assert np.array_equal(run_model(model, {"x": x})["y"], run_model(nearest, {"x": x})["y"])


def test_samples_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match="needs samples of real inputs"):
        quantize(MATMUL, "method=gptq", None, tmp_path)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (np.full((8, 32), 1e30, np.float32), "its inputs hold NaN or infinities on the samples"),
        (np.zeros((8, 32), np.float32), "its inputs are zero on all samples"),
    ],
)
def test_samples_without_use_are_a_reason(x: Any, reason: str, tmp_path: Path) -> None:
    text = MATMUL.replace("(x, w)", "(z, w)").replace("{ y", "{ z = Mul (x, x)\n y")
    _, ctx = quantize(text, "method=gptq", {"x": x}, tmp_path)
    assert told(ctx)[0].endswith(f"rounded to nearest: {reason}")


def test_subgraphs_constants_and_tables_are_rounded_to_nearest(tmp_path: Path) -> None:
    text = """g (float[N, 32] x, int64[N] i) => (float[N, 32] y)
      <bool flag = {1}, float[32, 32] w, float[32, 32] v, float[3, 32] c, float[32, 32] table, float[32, 32] u> {
      e = Gather (table, i)
      z = If (flag) <then_branch = yes () => (float[N, 32] a) { a = MatMul (x, v) },
                     else_branch = no () => (float[N, 32] b) { b = Relu (x) }>
      t = MatMul (c, u)
      m = ReduceMean <keepdims = 1> (t)
      s = Add (z, m)
      q = Add (s, e)
      y = MatMul (q, w) }"""
    _, ctx = quantize(text, "method=gptq", {"x": mixed(10), "i": np.arange(10)}, tmp_path)
    found = {r.site: r.reason.partition("; ")[2] for r in ctx.remarks if r.status == "applied"}
    assert found["Gather_0"] == ""
    assert "inside a subgraph" in found["If_0.then_branch/MatMul_0"]
    assert found["MatMul_0"] == "rounded to nearest: its input is constant"
    assert found["MatMul_1"].startswith("gptq")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (MATMUL, (32,)),
        (GROUPED, (4, 6, 6)),
    ],
    ids=["matmul", "conv"],
)
def test_a_few_rows_at_a_time_give_the_same(
    text: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.passes.quantize import _weight_codes

    data = {"x": RANDOM.standard_normal((20, *shape)).astype(np.float32)}
    whole, _ = quantize(text, "ops=[MatMul Conv] method=gptq", data, tmp_path)
    monkeypatch.setattr(_weight_codes, "_PIECE", 60)
    pieces, _ = quantize(text, "ops=[MatMul Conv] method=gptq", data, tmp_path)
    for name, value in whole.graph.initializers.items():
        other = pieces.graph.initializers[name].const_value
        assert np.allclose(value.const_value.numpy().astype(np.float32), other.numpy().astype(np.float32), rtol=1e-5)
