"""What quantize-static says of nodes that it leaves: their op, and whether they are float or quantized already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrating import Calibrating
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

NET = """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
g (float[N, 3, 8, 8] x) => (float[N, 64] y) <float[8, 3, 3, 3] w, float[8, 64] v, float[64, 64] u> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  t = GlobalAveragePool (c)
  f = Flatten (t)
  z = MatMul (f, v)
  y = MatMul (z, u) }"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)}
ALREADY = "it is quantized already"


def again(tmp_path: Path, before: str, target: str | None = "cpu", spec: str = "quantize-static") -> tuple[Any, ...]:
    """Ops and reasons of the sites that a pass leaves in a model that other passes have quantized, and its notes."""
    model = from_text(NET)
    name_nodes(model)
    for passes in (before, f"{spec}{{method=minmax}}"):
        chosen = registry.make_target(target) if target else None
        ctx = Context(model, target=chosen, calibration=Calibrating(model, [FEEDS], tmp_path))
        run(model, parse(passes), ctx)
    missed = [(r.op, r.reason) for r in ctx.remarks if r.status == "missed"]
    return sorted(missed), [r.reason for r in ctx.remarks if r.status == "note" and not r.site]


@pytest.mark.parametrize(
    ("before", "ops"),
    [
        ("quantize-static{method=minmax}", ["Conv", "MatMul", "MatMul"]),
        ("quantize-static{method=minmax},to-qoperator,dce", ["MatMul", "QLinearConv", "QLinearMatMul"]),
    ],
)
def test_a_quantized_model_is_told(tmp_path: Path, before: str, ops: list[str]) -> None:
    missed, notes = again(tmp_path, before)
    assert missed == [(op, ALREADY) for op in ops]
    assert notes == ["3 nodes with work are quantized already and stay as they are"]


@pytest.mark.parametrize(
    ("before", "ops"),
    [
        ("quantize-dynamic{skip=[MatMul_1]}", ["MatMulInteger"]),
        ("quantize-weights{bits=4 skip=[MatMul_0]}", ["MatMulNBits"]),
    ],
)
@pytest.mark.parametrize("spec", ["quantize-static", "search-precision"])
def test_beside_them_the_rest_is_quantized(tmp_path: Path, before: str, ops: list[str], spec: str) -> None:
    missed, notes = again(tmp_path, before, spec=spec)
    assert [(op, reason) for op, reason in missed if reason == ALREADY] == [(op, ALREADY) for op in ops]
    assert "1 nodes with work are quantized already and stay as they are" in notes


def test_the_op_of_what_stays_float_is_its_type(tmp_path: Path) -> None:
    model = from_text(NET.replace("z = MatMul (f, v)", "e = Exp (v)  z = MatMul (f, e)"))
    name_nodes(model)
    ctx = Context(model, calibration=Calibrating(model, [FEEDS], tmp_path))
    run(model, parse("quantize-static{method=minmax}"), ctx)
    (left,) = (r for r in ctx.remarks if r.status == "missed")
    assert (left.site, left.op) == ("MatMul_0", "MatMul") and left.reason.startswith("stays float: it multiplies two")
