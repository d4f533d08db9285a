"""`compile --no-keep-slow`: a quantized model that is slower here is not shipped, nor are its slow places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import driver, paying
from graphopt.cli import main
from graphopt.driver import Options
from graphopt.errors import GateError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.quantization.metrics import Interval
from graphopt.timing import BenchPlan

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,4,3,3] v, float[4,4,3,3] w>
{ [first] h = Conv<pads=[1,1,1,1]>(x, v) [sin] s = Sin(h)
  [second] t = Conv<pads=[1,1,1,1]>(s, w) [id] y = Identity(t) }"""


class Timed:
    """In place of `evaluation.Latency`: ratios that the test says, one per candidate."""

    ratios: tuple[float, ...] = ()
    asked: int = 0
    error = 0.01

    def __init__(self, candidates: list[Any], base: Any, feeds: Any) -> None:
        type(self).asked = len(candidates)

    def make_sure(self, limit: float) -> None:
        assert limit == 1.0

    def ratio(self, index: int = 0) -> Interval:
        return Interval(self.ratios[index], self.ratios[index], self.ratios[index])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(from_text(MODEL), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((16, 4, 8, 8)).astype(np.float32))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, ratios: tuple[float, ...], slow: dict[str, float], **changes: Any) -> Any:
    monkeypatch.setattr(Timed, "ratios", ratios)
    monkeypatch.setattr(paying, "Latency", Timed)
    monkeypatch.setattr(paying, "time_nodes", lambda models, feeds: [{}, {}])
    monkeypatch.setattr(paying, "slow_sites", lambda *args: slow)
    return compile_(**changes)


def compile_(source: Any = "model.onnx", **changes: Any) -> Any:
    chosen: dict[str, Any] = {"passes": "eliminate-identity,quantize-static", "calibration_data": "calib.npz"}
    options = Options(**{**chosen, "keep_slow": False, "repro": None, **changes})
    return driver.compile(source, "cpu", "build", options)


def ops(artifact: Any) -> list[str]:
    from graphopt.frontends.onnx import load

    return [node.op_type for node in load(artifact.main).graph]


def missed(artifact: Any) -> dict[str, str]:
    return {row["site"]: row["reason"] for row in artifact.report["remarks"] if row["status"] == "missed"}


def notes(artifact: Any) -> list[str]:
    return [row["reason"] for row in artifact.report["remarks"] if row["status"] == "note"]


def test_what_is_faster_is_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(monkeypatch, (0.7,), {})
    assert ops(artifact).count("QuantizeLinear") == 4
    record = artifact.report["slowness"]
    assert set(record) == {"shipped", "ratios", "resolution", "sites"}
    assert record["shipped"] == "quantized"
    assert record["ratios"]["quantized"]["value"] == 0.7
    assert artifact.manifest["not_reproducible"] == ["model.onnx"]


def test_slow_places_stay_float_with_a_remark(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(monkeypatch, (1.2, 0.9), {"second": 1.5})
    assert artifact.report["slowness"]["shipped"] == "mixed"
    assert ops(artifact).count("QuantizeLinear") == 2
    assert "skip=[second]" in artifact.manifest["pipeline"]
    assert missed(artifact)["second"] == "int8 takes 1.50x of float here; --keep-slow keeps int8"
    assert any("1 places stay float, where int8 is slower" in text for text in notes(artifact))
    artifact.check_files()
    plans = json.loads((artifact.path / "plans.json").read_text())["plans"]
    assert list(plans[0]["decisions"]["nodes"]) == ["first"]


def test_a_model_that_is_slower_anyhow_is_shipped_in_float(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(monkeypatch, (1.3, 1.05), {"second": 1.5})
    assert artifact.report["slowness"]["shipped"] == "float"
    assert ops(artifact) == ["Conv", "Sin", "Conv"]
    assert artifact.manifest["numerics"] == {"status": "passed", "tolerance": "exact", "reason": ""}
    assert artifact.manifest["pipeline"] == "eliminate-identity"
    said = [row["reason"] for row in artifact.report["remarks"] if row["status"] == "note"]
    assert any(
        text.startswith("int8 takes 1.30x of float on this machine, and 1.05x where the 1 slow") for text in said
    )
    artifact.check_files()
    assert not (artifact.path / "plans.json").exists()


def test_when_every_place_is_slow_there_is_no_mixed_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(monkeypatch, (1.3,), {"first": 1.4, "second": 1.5})
    assert Timed.asked == 1
    assert artifact.report["slowness"]["shipped"] == "float"


def test_a_miss_within_the_error_of_the_timing_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, (1.009,), {}).report["slowness"]["shipped"] == "quantized"
    assert run(monkeypatch, (1.011,), {}).report["slowness"]["shipped"] == "float"


@pytest.mark.parametrize("keep", [True, None])
def test_what_is_slow_is_kept_when_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keep: bool | None
) -> None:
    artifact = run(monkeypatch, (9.0,), {"second": 9.0}, keep_slow=keep)
    assert ops(artifact).count("QuantizeLinear") == 4
    assert "slowness" not in artifact.report
    assert artifact.manifest["not_reproducible"] == []


def test_models_without_a_quantizer_are_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(monkeypatch, (), {}, passes="eliminate-identity", calibration_data=None)
    assert "slowness" not in artifact.report


def test_places_of_dynamic_quantization(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    agraph (float[N,16] x) => (float[N,16] y) <float[16,16] v, float[16,16] w>
    { [first] h = MatMul(x, v) [sin] s = Sin(h) [second] y = MatMul(s, w) }"""
    changes = {"source": from_text(text), "passes": "quantize-dynamic", "calibration_data": None}
    artifact = run(monkeypatch, (1.2, 0.9), {"first": 2.0}, **changes)
    assert artifact.report["slowness"]["shipped"] == "mixed"
    assert ops(artifact).count("MatMulInteger") == 1
    assert "skip=[first]" in artifact.manifest["pipeline"]


def test_a_model_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(monkeypatch, (1.2, 0.9), {"second": 1.5}, source=from_text(MODEL))
    assert artifact.report["slowness"]["shipped"] == "mixed"
    assert ops(artifact).count("QuantizeLinear") == 2


def test_gates_judge_what_is_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = run(monkeypatch, (1.3,), {}, gates=("cosine>=1", "size<=1x"))
    assert artifact.report["slowness"]["shipped"] == "float"
    artifact = run(monkeypatch, (1.2, 0.9), {"second": 1.5}, gates=("cosine>=0.9",))
    assert artifact.manifest["numerics"]["judged_by"] == ["cosine>=0.9"]
    assert artifact.report["evaluation"]["agreement"]["outputs"][0]["cosine"]["value"] < 1


def test_a_gate_that_is_missed_for_speed_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match=r"size<=0\.9x is not met: .*; int8 is left out, being slower .*--keep-slow"):
        run(monkeypatch, (1.3,), {}, gates=("size<=0.9x",))


def test_really_timed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shipped is not slower than float by the figures of the report, whichever way it went here."""
    monkeypatch.setattr("graphopt.evaluation.LATENCY", BenchPlan(seconds=0.3))
    words = ["-p", "quantize-static", "--calibration-data", "calib.npz", "--no-keep-slow", "--json", "-q"]
    with pytest.raises(SystemExit) as done:
        main(["compile", "model.onnx", "-o", "real", *words])
    assert not done.value.code
    record = json.loads(capsys.readouterr().out)["slowness"]
    if record["shipped"] == "float":
        assert min(item["value"] for item in record["ratios"].values()) > 1
    else:
        assert record["ratios"][record["shipped"]]["value"] <= 1 + record["resolution"]
