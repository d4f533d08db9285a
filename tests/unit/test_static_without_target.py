"""quantize-static where nobody says what the model runs on: its codes are right on every CPU, and a note says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibrating import Calibrating
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.quantization.saturation import is_safe

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 64] x) => (float[N, 32] y) <float[64, 32] w> { y = MatMul (x, w) }"""


@pytest.mark.parametrize("name", ["quantize-static", "search-precision"])
@pytest.mark.parametrize(
    ("target", "options", "safe", "noted"),
    [
        (None, "", True, True),
        (None, "saturation=ignore", False, False),
        (None, "saturation=safe", True, False),
        ("cpu{isa=avx512vnni}", "", False, False),
        ("cpu{isa=avx2}", "", True, False),
    ],
)
def test_weights_cannot_saturate(tmp_path: Path, name: str, target: Any, options: str, safe: bool, noted: bool) -> None:
    model = from_text(NET)
    weights = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    weights[10:12] = 4  # neighbours of one sign at the end of the range
    model.graph.initializers["w"].const_value = ir.Tensor(weights, name="w")
    name_nodes(model)
    feeds = {"x": np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)}
    chosen = registry.make_target(target) if target else None
    ctx = Context(model, target=chosen, calibration=Calibrating(model, [feeds], tmp_path))
    by = "by=work" if name == "search-precision" else ""
    run(model, parse(f"{name}{{method=minmax {by} {options}}}"), ctx)
    assert is_safe(model.graph.initializers["w_quantized"].const_value.numpy()) is safe
    notes = [r.reason for r in ctx.remarks if r.status == "note"]
    assert any("no target is set, so the weights cannot saturate" in note for note in notes) is noted
