"""quantize-static in old opsets: nothing is written that an opset lacks, and every refusal says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrating import Calibrating
from graphopt.errors import GraphoptError
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

NET = """g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) <float[8, 3, 3, 3] w, float[8] b> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  y = Relu (c) }"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)}


def quantized(tmp_path: Path, opset: int, spec: str, net: str = NET) -> Context:
    model = from_text(f'<ir_version: 8, opset_import: ["": {opset}]>\n{net}')
    name_nodes(model)
    ctx = Context(model, calibration=Calibrating(model, [FEEDS], tmp_path))
    run(model, parse(spec), ctx)
    return ctx


@pytest.mark.parametrize("name", ["quantize-static", "search-precision"])
@pytest.mark.parametrize(
    ("opset", "options", "why"),
    [
        (9, "per_channel=false", "opset 9 has no QuantizeLinear; raise it with convert-opset"),
        (9, "weight=int4", "opset 9 has no QuantizeLinear; raise it with convert-opset"),
        (12, "", "opset 12 has no scale per channel; raise it with convert-opset, or give per_channel=false"),
    ],
)
def test_an_opset_without_the_scales_is_named(tmp_path: Path, name: str, opset: int, options: str, why: str) -> None:
    ctx = quantized(tmp_path, opset, f"{name}{{method=minmax {options}}}")
    assert not ctx.rewriter.changes
    assert [r.reason for r in ctx.remarks if r.status == "missed"] == [f"stays float: {why}"]
    assert [r.reason for r in ctx.remarks if r.status == "note"] == [why]


@pytest.mark.parametrize("opset", [10, 12])
def test_one_scale_per_tensor_needs_no_axis(tmp_path: Path, run_model: Any, opset: int) -> None:
    before = from_text(f'<ir_version: 8, opset_import: ["": {opset}]>\n{NET}')
    ctx = quantized(tmp_path, opset, "quantize-static{method=minmax per_channel=false}")
    assert ctx.rewriter.changes == 2
    want, got = run_model(before, FEEDS)["y"], run_model(ctx.model, FEEDS)["y"]
    assert np.abs(want - got).max() < 0.03 * np.abs(want).max()


@pytest.mark.parametrize("name", ["quantize-static", "search-precision"])
@pytest.mark.parametrize("option", ["weight=int4", "weight=int16", "activation=uint16", "activation=int16"])
def test_types_that_the_opset_lacks_are_refused(tmp_path: Path, name: str, option: str) -> None:
    with pytest.raises(GraphoptError, match=f"{option} needs opset 21, the model has 17; raise it with convert-opset"):
        quantized(tmp_path, 17, f"{name}{{method=minmax {option}}}")
    raised = quantized(tmp_path, 17, f"convert-opset{{to=21}},quantize-static{{method=minmax {option}}}")
    assert raised.rewriter.changes > 1
