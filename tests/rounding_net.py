"""A small net and samples on which rounding errors add up: what tests of refined weights quantize.

model, ctx = made(f"{STATIC},round-weights", tmp_path)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from graphopt.calibrating import Calibrating
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 4, 8, 8] x) => (float[N, 5] y) <float[8, 4, 3, 3] w, float[8] b, float[8, 1, 3, 3] d, float[8, 5] v> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu (c)
  e = Conv <group = 8, pads = [1, 1, 1, 1]> (r, d)
  m = GlobalAveragePool (e)
  f = Flatten (m)
  y = MatMul (f, v) }"""
STATIC = "quantize-static{method=minmax weight=int4 saturation=ignore}"
RNG = np.random.default_rng(0)
# Inputs far from zero and alike from channel to channel: rounding errors add up instead of cancelling.
FEEDS = {"x": (RNG.standard_normal((64, 1, 8, 8)) + 2 + 0.3 * RNG.standard_normal((64, 4, 8, 8))).astype(np.float32)}


def net() -> Any:
    model = from_text(NET)
    name_nodes(model)
    return model


def made(passes: str, folder: Path) -> tuple[Any, Context]:
    model = net()
    batches = [{"x": FEEDS["x"][start : start + 8]} for start in range(0, 64, 8)]
    ctx = Context(model, calibration=Calibrating(model, batches, folder))
    run(model, parse(passes), ctx)
    return model, ctx
