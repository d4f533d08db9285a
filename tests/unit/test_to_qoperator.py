"""to-qoperator: the codes stay what they were, up to one where kernels round a rounded ratio; the rest stays QDQ."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrating import Calibrating
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
NET = """g (float[N, 3, 8, 8] x) => (float[N, 5] y)
  <float[8, 3, 3, 3] w, float[8] b, float[8, 1, 3, 3] d, float[8, 8, 1, 1] p, float[8, 5] v, float zero = {0},
   float six = {6}> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Clip (c, zero, six)
  e = Conv <group = 8, pads = [1, 1, 1, 1], strides = [2, 2]> (r, d)
  s = Relu (e)
  q = Conv (s, p)
  m = GlobalAveragePool (q)
  f = Flatten (m)
  y = MatMul (f, v) }"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)}


def made(passes: str, folder: Path, net: str = NET) -> tuple[Any, Context]:
    model = from_text(f"{HEAD}\n{net}")
    name_nodes(model)
    ctx = Context(model, calibration=Calibrating(model, [FEEDS], folder))
    interface = Interface.of(model)
    run(model, parse(passes), ctx)
    verify(model, interface)
    return model, ctx


def rewritten(net: str) -> tuple[Any, list[str]]:
    """The model after to-qoperator and dce, and why it left what it left."""
    model = from_text(f"{HEAD}\n{net}")
    name_nodes(model)
    ctx = Context(model)
    run(model, parse("to-qoperator,dce"), ctx)
    verify(model, Interface.of(model))
    return model, [remark.reason for remark in ctx.remarks if remark.status == "missed"]


# With symmetric int8 codes the clips at zero stay, and the groups around them; the last product gives floats.
@pytest.mark.parametrize(
    ("options", "convs"), [("", 3), (" per_channel=false", 3), (" symmetric=true activation=int8", 1)]
)
def test_codes_stay_within_one(options: str, convs: int, tmp_path: Path, run_model: Any) -> None:
    static = f"quantize-static{{method=minmax saturation=safe{options}}}"
    plain, _ = made(static, tmp_path)
    model, _ = made(f"{static},to-qoperator,dce", tmp_path)
    ops = Counter(node.op_type for node in model.graph)
    assert (ops["QLinearConv"], ops["Conv"], ops["MatMul"]) == (convs, 3 - convs, 1)
    want, got = run_model(plain, FEEDS)["y"], run_model(model, FEEDS)["y"]
    assert np.abs(want - got).max() <= 3 * np.abs(want).max() / 127


def test_a_matmul_gives_and_takes_codes(run_model: Any) -> None:
    model, remarks = (
        rewritten("""g (uint8[N, 4] x) => (uint8[N, 3] y) <float s = {0.1}, uint8 z = {128}, float t = {0.2},
      uint8 u = {100}, int8[4, 3] w, float[3] ws = {0.02, 0.01, 0.03}, int8[3] wz = {0, 0, 0}> {
  a = DequantizeLinear (x, s, z)
  b = DequantizeLinear <axis = 1> (w, ws, wz)
  m = MatMul (a, b)
  y = QuantizeLinear (m, t, u) }""")
    )
    assert [node.op_type for node in model.graph] == ["QLinearMatMul"] and not remarks
    codes = {"x": np.arange(40, dtype=np.uint8).reshape(10, 4) * 6}
    w = model.graph.initializers["w"].const_value.numpy().astype(np.float32)
    want = np.rint((codes["x"].astype(np.float32) - 128) * 0.1 @ (w * [0.02, 0.01, 0.03]) / 0.2) + 100
    assert np.abs(run_model(model, codes)["y"].astype(int) - np.clip(want, 0, 255)).max() <= 1


def test_a_product_with_another_reader_stays() -> None:
    model, remarks = rewritten("""g (uint8[N, 4] x) => (uint8[N, 3] y, float[N, 3] r) <float s = {0.1}, uint8 z = {128},
      float t = {0.2}, uint8 u = {100}, int8[4, 3] w, float ws = {0.02}, int8 wz = {0}> {
  a = DequantizeLinear (x, s, z)
  b = DequantizeLinear (w, ws, wz)
  m = MatMul (a, b)
  r = Neg (m)
  y = QuantizeLinear (m, t, u) }""")
    assert len(remarks) == 1 and remarks[0].startswith("multiple-uses: value 'm' has 2 uses")
    assert "MatMul" in {node.op_type for node in model.graph}


def test_a_clip_that_codes_do_not_replace_stays(tmp_path: Path) -> None:
    net = """g (uint8[N, 4] x) => (uint8[N, 3] y) <float s = {0.1}, uint8 z = {128}, float t = {0.2}, uint8 u = {100},
      int8[4, 3] w, float ws = {0.02}, int8 wz = {0}> {
  a = DequantizeLinear (x, s, z)
  b = DequantizeLinear (w, ws, wz)
  m = MatMul (a, b)
  r = Relu (m)
  y = QuantizeLinear (r, t, u) }"""
    model, remarks = rewritten(net)
    assert remarks == ["its codes go below zero, where the clip cuts"]
    assert "MatMul" in {node.op_type for node in model.graph}
