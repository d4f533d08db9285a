"""search-precision on a machine with a clock: whichever way the times come out, the artifact says what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import driver, slowness
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 16, 16, 16] x) => (float[N, 10] y)
  <float[32, 16, 3, 3] w, float[32, 32, 3, 3] p, float[32, 10] v> {
  [first] c = Conv <pads = [1, 1, 1, 1]> (x, w)
  [relu] r = Relu (c)
  [second] q = Conv <pads = [1, 1, 1, 1]> (r, p)
  [add] t = Add (q, r)
  [mean] m = GlobalAveragePool (t)
  [flat] f = Flatten (m)
  [last] y = MatMul (f, v) }"""
PASSES = "search-precision{sqnr=15 method=minmax}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(from_text(NET), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((8, 16, 16, 16)).astype(np.float32))
    return tmp_path


def compile(out: str, **changes: Any) -> Any:
    given: dict[str, Any] = {"passes": PASSES, "calibration_data": Path("x.npz"), **changes}
    return driver.compile("model.onnx", "cpu", out, Options(**given))


def test_nodes_are_timed_and_a_plan_repeats_the_choice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = compile("timed")
    plan = json.loads((folder / "timed" / "plans.json").read_text())["plans"][0]["decisions"]
    assert plan["by"] == "time" and set(plan["seconds"]) == {"first", "second", "last"}
    assert all(0 < times[kind] < 1 for times in plan["seconds"].values() for kind in ("float", "int8"))
    assert plan["error"] <= 10**-1.5
    left = {row["site"] for row in artifact.report["remarks"] if row["status"] == "missed"}
    assert left == set(plan["kept"])
    assert artifact.manifest["not_reproducible"] == ["model.onnx", "plans.json"]
    artifact.check_files()

    def never(*_: Any) -> Any:
        raise AssertionError("timed")

    monkeypatch.setattr("graphopt.slowness.time_nodes", never)
    again = compile("again", plan=folder / "timed" / "plans.json")
    assert again.manifest["files"] == artifact.manifest["files"]
    assert again.manifest["not_reproducible"] == []


def test_a_slow_place_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really timed, but of the int8 model one node takes a second, the rest nothing; nor do changes of layout."""

    really = slowness.time_nodes

    def timed(*args: Any) -> Any:
        floats, ints = really(*args, seconds=0.1)
        slow = [name for name in ints if name.startswith("second")]
        assert slow
        fast = {name: replace(item, seconds=0.0) for name, item in ints.items()}
        floats |= {name: replace(item, seconds=0.0) for name, item in floats.items() if item.op.startswith("Reorder")}
        return [floats, fast | {name: replace(ints[name], seconds=1.0) for name in slow}]

    monkeypatch.setattr("graphopt.slowness.time_nodes", timed)
    artifact = compile("slow")
    reasons = {row["site"]: row["reason"] for row in artifact.report["remarks"] if row["status"] == "missed"}
    assert list(reasons) == ["second"] and reasons["second"].endswith("x of float on this machine")


def test_without_a_target_time_is_refused(folder: Path) -> None:
    options = Options(passes=PASSES.replace("sqnr", "by=time sqnr"), calibration_data=Path("x.npz"))
    with pytest.raises(GraphoptError, match="by=time: nodes cannot be timed: no target is set"):
        driver.optimize("model.onnx", None, options)
