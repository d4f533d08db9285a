"""Attention under masks: rows that are hidden partly or as a whole, with every way of writing the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.registry import make_target
from graphopt.manager.runner import run

RELATIVE = 2e-6
"""Largest difference relative to the output's maximum: the sums run in another order."""

MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, S, 16] x, {mask}) => (float[N, S, 16] y) <float[16, 16] wq, float[16, 16] wk, float[16, 16] wv,
  int64[4] heads = {{0, 0, 2, 8}}, int64[3] merged = {{0, 0, 16}}, float s = {{0.35}}, float zero = {{0}},
  float low = {{-3.4028234663852886e+38}}, float[1] inf = {{-inf}}, int64[1] one = {{1}}, int64[2] two = {{1, 2}},
  float unit = {{1}}> {{
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  v = MatMul (x, wv)
  rq = Reshape (q, heads)
  rk = Reshape (k, heads)
  rv = Reshape (v, heads)
  tq = Transpose <perm = [0, 2, 1, 3]> (rq)
  tk = Transpose <perm = [0, 2, 3, 1]> (rk)
  tv = Transpose <perm = [0, 2, 1, 3]> (rv)
  a0 = MatMul (tq, tk)
  a = Mul (a0, s)
{body}
  z = MatMul (p, tv)
  tz = Transpose <perm = [0, 2, 1, 3]> (z)
  y = Reshape (tz, merged)
}}"""

PLAIN = "  p = Softmax <axis = -1> (d)"
SAFE = "  p0 = Softmax <axis = -1> (d)\n  nan = IsNaN (p0)\n  p = Where (nan, zero, p0)"
KEYS, ROWS = "bool[N, 1, 1, S] seen", "bool[N, 1, S, S] seen"
WRITINGS = {
    "lowest float, keys": (KEYS, "  m = Where (seen, zero, low)\n  d = Add (a, m)\n" + PLAIN),
    "lowest float, rows, NaN to 0": (ROWS, "  m = Where (seen, zero, low)\n  d = Add (m, a)\n" + SAFE),
    "-inf, keys, NaN to 0": (KEYS, "  m = Where (seen, zero, inf)\n  d = Add (a, m)\n" + SAFE),
    "-inf, rows, NaN to 0": (ROWS, "  m = Where (seen, zero, inf)\n  d = Add (a, m)\n" + SAFE),
    "-inf, rows, NaN stays": (ROWS, "  m = Where (seen, zero, inf)\n  d = Add (a, m)\n" + PLAIN),
    "filled with the lowest float": (ROWS, "  d = Where (seen, a, low)\n" + PLAIN),
    "filled with -inf, NaN to 0": (ROWS, "  d = Where (seen, a, inf)\n" + SAFE),
    "as numbers": (
        "float[N, S] given",
        "  g1 = Unsqueeze (given, two)\n  g2 = Sub (unit, g1)\n  m = Mul (g2, low)\n  d = Add (a, m)\n" + PLAIN,
    ),
    "added from outside": ("float[N, 1, S, S] given", "  d = Add (a, given)\n" + SAFE),
    "two masks": (
        KEYS + ", float[S, S] given",
        "  m = Where (seen, zero, low)\n  d0 = Add (a, given)\n  d = Add (d0, m)\n" + PLAIN,
    ),
}


def _feeds(model: Any, batch: int, length: int) -> dict[str, np.ndarray]:
    """Batch element 0 is hidden partly, 1 as a whole, 2 not at all; below rows also the upper triangle."""
    random = np.random.default_rng(length)
    sizes = {"N": batch, "S": length}
    feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape]
        if value.name == "x":
            feeds["x"] = random.standard_normal(shape).astype(np.float32)
            continue
        shown = np.ones(shape, bool)
        shown[0, ..., length // 2 :] = False
        if shape[0] == batch:
            shown[1] = False
        if len(shape) == 4 and shape[2] == length:
            shown &= np.tri(length, dtype=bool)
        if value.name == "seen":
            feeds["seen"] = shown
        elif len(shape) == 4:
            feeds["given"] = np.where(shown, 0.0, -np.inf).astype(np.float32)
        else:
            feeds["given"] = (shown if shape[0] == batch else random.standard_normal(shape)).astype(np.float32)
    return feeds


@pytest.mark.parametrize("writing", WRITINGS)
def test_masked_rows_keep_their_numbers(writing: str, run_model: Any) -> None:
    mask, body = WRITINGS[writing]
    before, after = (from_text(MODEL.format(mask=mask, body=body)) for _ in range(2))
    name_nodes(after)
    result = run(after, parse("fuse-attention,dce"), Context(after, target=make_target("cpu")))
    assert result.effects()["fuse-attention"] == 1, [remark.reason for remark in result.ctx.remarks]
    assert not any(node.op_type == "Softmax" for node in all_nodes(after))
    for batch, length in ((3, 6), (2, 9)):
        feeds = _feeds(before, batch, length)
        want, got = run_model(before, feeds)["y"], run_model(after, feeds)["y"]
        assert np.array_equal(np.isnan(want), np.isnan(got))
        scale = float(np.nanmax(np.abs(want)))
        np.testing.assert_allclose(got, want, rtol=0, atol=RELATIVE * scale)


@pytest.mark.parametrize(
    ("mask", "dropped"),
    [
        ("bool[1, 1, 1, 1] seen = {1}", True),
        ("bool[1, 1, 1, 2] seen = {1, 1}", True),
        ("bool[1, 1, 1, 2] seen = {1, 0}", False),
    ],
)
def test_a_mask_that_hides_nothing_is_dropped(mask: str, dropped: bool) -> None:
    text = MODEL.format(mask="float[N] unused", body="  m = Where (seen, zero, low)\n  d = Add (a, m)\n" + PLAIN)
    text = text.replace("S, 16]", "2, 16]").replace("float unit", f"{mask}, float unit")
    model = from_text(text)
    name_nodes(model)
    run(model, parse("fuse-attention,dce"), Context(model, target=make_target("cpu")))
    (fused,) = [node for node in all_nodes(model) if node.domain == "com.microsoft"]
    assert (len(fused.inputs) < 6 or fused.inputs[5] is None) == dropped


def test_nothing_is_fused_without_a_target() -> None:
    mask, body = WRITINGS["lowest float, keys"]
    model = from_text(MODEL.format(mask=mask, body=body))
    name_nodes(model)
    result = run(model, parse("fuse-attention"), Context(model))
    assert result.effects()["fuse-attention"] == 0
    assert any("no target is set" in remark.reason for remark in result.ctx.remarks)


def test_weights_in_a_file_of_their_own_are_not_copied(tmp_path: Any, run_model: Any) -> None:
    from graphopt.frontends.onnx import load
    from graphopt.ir.writer import write

    mask, body = WRITINGS["lowest float, keys"]
    wide = MODEL.format(mask=mask, body=body).replace("16", "64").replace("2, 8}", "2, 32}")  # large enough for a file
    model = from_text(wide)
    write(model, tmp_path / "m.onnx", "always")
    fused = load(tmp_path / "m.onnx")
    run(fused, parse("fuse-attention,dce"), Context(fused, target=make_target("cpu")))
    assert [node.op_type for node in all_nodes(fused) if node.domain] == ["MultiHeadAttention"]
    feeds = _feeds(model, 3, 6)
    want, got = run_model(model, feeds)["y"], run_model(fused, feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=RELATIVE * float(np.abs(want).max()))
