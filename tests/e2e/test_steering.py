"""Gates that steer search-precision: a missed gate on accuracy has it search again, until the gate holds or nothing is
left in int8 that could be given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import driver
from graphopt.driver import Options
from graphopt.errors import GateError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3, 8, 8] x) => (float[N, 5] y)
  <float[8, 3, 3, 3] w, float[8, 8, 3, 3] p, float[8, 5] v> {
  [first] c = Conv <pads = [1, 1, 1, 1]> (x, w)
  [relu] r = Relu (c)
  [second] q = Conv <pads = [1, 1, 1, 1]> (r, p)
  [add] t = Add (q, r)
  [mean] m = GlobalAveragePool (t)
  [flat] f = Flatten (m)
  [last] y = MatMul (f, v) }"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(from_text(NET), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32))
    return tmp_path


def compile(gate: str, out: str, **changes: Any) -> Any:
    passes = "search-precision{sqnr=20 method=minmax by=work}"
    return driver.compile(
        "model.onnx", "cpu", out, Options(passes=passes, calibration_data=Path("x.npz"), gates=gate, **changes)
    )


def test_a_missed_gate_searches_again_until_it_holds(folder: Path) -> None:
    artifact = compile("sqnr>=45", "steered")
    assert artifact.report["evaluation"]["gates"][0]["value"] >= 45
    assert float(artifact.manifest["pipeline"].partition("sqnr=")[2].partition(" ")[0].rstrip("}")) in (44.0, 50.0)
    kept = [remark for remark in artifact.report["remarks"] if "alone it costs" in remark["reason"]]
    assert 0 < len(kept) < 3
    assert any("searched again" in remark["reason"] for remark in artifact.report["remarks"])


def test_a_gate_that_holds_is_not_searched_for_again(folder: Path) -> None:
    artifact = compile("sqnr>=20", "plain")
    assert "sqnr" not in artifact.manifest["pipeline"]  # 20 is the default
    assert artifact.manifest["not_reproducible"] == []
    assert not any("searched again" in remark["reason"] for remark in artifact.report["remarks"])


def test_what_no_search_can_help_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(GateError, match="size<=0.001x is not met"):
        compile("size<=0.001x", "small")
    assert not (folder / "small").exists()
