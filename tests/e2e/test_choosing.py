"""`cpu{backend=auto}`: every candidate is compiled and verified, and the fastest is shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graphopt import artifact as artifacts
from graphopt import choosing, driver
from graphopt.cli import main
from graphopt.cli.report import _candidates
from graphopt.driver import Options
from graphopt.errors import FrozenError, GraphoptError, PassError, VerificationError
from graphopt.ir.hash import structural_hash
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.registry import make_target
from graphopt.target import Target
from graphopt.timing import BenchReport, BenchRow

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,16,8,8] x) => (float[1,16,8,8] y) <float[16,16,3,3] w>
{ h = Conv<pads=[1,1,1,1]>(x, w) y = Relu(h) }"""
UNIQUE = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,16,8,8] x) => (int64[N] y) <float[16,16,3,3] w>
{ h = Conv<pads=[1,1,1,1]>(x, w) r = Round(h) u = Unique(r) c = Cast<to=7>(u) y = Identity(c) }"""

AUTO = "cpu{backend=auto}"
PASSED = {"status": "passed", "tolerance": "exact", "reason": ""}
ONE, TWO = "cpu{threads=1}", "cpu{threads=2}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(from_text(MODEL), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def standing_for(monkeypatch: pytest.MonkeyPatch, *candidates: tuple[str, ...]) -> Target:
    """A target with these candidates."""
    target = make_target(AUTO)
    monkeypatch.setattr(type(target), "candidates", lambda self: candidates if self.backend == "auto" else ())
    return target


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target that stands for two others, both at hand wherever ONNX Runtime is."""
    return standing_for(monkeypatch, (ONE,), (TWO,))


def timed(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> None:
    """Ratios of the candidates in place of this machine's."""

    def report(paths: Any, *rest: Any) -> BenchReport:
        rows = [BenchRow("", str(path), ratio, 0, 1, ratio, ratio, ratio, 0, 0) for path, ratio in zip(paths, ratios)]  # noqa: B905
        return BenchReport((rows[0], *rows), 1, 2, 0.0)

    monkeypatch.setattr(choosing, "bench", report)


def refuse(target: str, error: Exception) -> Any:
    """The driver's compile, but one target fails."""

    def compile_one(source: Any, chosen: Target, out: Path, options: Options) -> Any:
        if str(chosen) == target:
            raise error
        return driver.compile(source, chosen, out, options)

    return compile_one


@pytest.mark.parametrize(("ratios", "shipped"), [((1.0, 0.8), TWO), ((1.0, 1.2), ONE)])
def test_the_fastest_is_shipped(
    model: Path, asked: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratios: Any, shipped: str
) -> None:
    timed(monkeypatch, *ratios)
    made = driver.compile(model, asked, tmp_path / "out")
    assert made.manifest["target"] == shipped
    assert made.manifest["asked_target"] == AUTO
    assert made.manifest["not_reproducible"] == ["model.onnx"]
    rows = made.report["candidates"]
    assert [(row["target"], row["shipped"]) for row in rows] == [(ONE, shipped == ONE), (TWO, shipped == TWO)]
    assert [row["ratio"] for row in rows] == list(ratios)
    read = artifacts.load(tmp_path / "out")
    read.check_files()
    assert read.manifest == made.manifest


def test_what_does_not_verify_is_out_with_its_reason(model: Path, asked: Target, tmp_path: Path) -> None:
    wrong = refuse(TWO, VerificationError("numerics failed: y"))
    made = choosing.compile_fastest(wrong, model, asked, tmp_path / "out", Options())
    assert made.manifest["target"] == ONE
    assert made.report["candidates"] == [
        {"target": ONE, "shipped": True, "numerics": PASSED},
        {"target": TWO, "shipped": False, "refused": "numerics failed: y"},
    ]


def unchecked(source: Any, chosen: Target, out: Path, options: Options) -> Any:
    """The driver's compile, but the second target's numbers are not checked."""
    return driver.compile(source, chosen, out, replace(options, numerics="off") if str(chosen) == TWO else options)


@pytest.fixture
def only_one_is_the_reference(asked: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(asked), "is_reference", lambda self: str(self) == ONE)


@pytest.mark.usefixtures("only_one_is_the_reference")
def test_what_was_not_checked_loses_against_the_reference_runtime(
    model: Path, asked: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 1.0, 0.5)
    made = choosing.compile_fastest(unchecked, model, asked, tmp_path / "out", Options())
    assert made.manifest["target"] == ONE and made.manifest["numerics"]["status"] == "passed"
    first, second = made.report["candidates"]
    assert first == {"target": ONE, "shipped": True, "numerics": PASSED}
    assert second["numerics"] == {"status": "not-checked", "tolerance": "exact", "reason": "numerics are off"}
    assert second["refused"] == f"its numbers were not checked: numerics are off; {ONE} computes as the reference"
    for compile_one, mark in ((unchecked, f"shipped: {ONE}: there is no other choice"), (driver.compile, "slower")):
        rows = choosing.compile_fastest(compile_one, model, asked, tmp_path / "out", Options()).report["candidates"]
        told = list(_candidates(rows))
        assert told[0].startswith(mark) and told[0].endswith(", numerics passed")


@pytest.mark.usefixtures("only_one_is_the_reference")
def test_what_was_not_checked_is_shipped_where_nothing_else_runs(model: Path, asked: Target, tmp_path: Path) -> None:
    def alone(source: Any, chosen: Target, out: Path, options: Options) -> Any:
        if str(chosen) == ONE:
            raise GraphoptError("no kernel")
        return unchecked(source, chosen, out, options)

    made = choosing.compile_fastest(alone, model, asked, tmp_path / "out", Options())
    assert made.manifest["target"] == TWO
    assert [row.get("numerics", {}).get("status") for row in made.report["candidates"]] == [None, "not-checked"]


def test_nothing_is_written_when_none_verifies(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = standing_for(monkeypatch, (ONE,))
    with pytest.raises(VerificationError, match="numerics failed"):
        wrong = refuse(ONE, VerificationError("numerics failed: y"))
        choosing.compile_fastest(wrong, model, target, tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


def test_a_broken_pass_is_no_choice(model: Path, asked: Target, tmp_path: Path) -> None:
    with pytest.raises(PassError):
        choosing.compile_fastest(refuse(TWO, PassError("bug")), model, asked, tmp_path / "out", Options())


def test_alternatives_end_with_the_first_that_compiles(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = standing_for(monkeypatch, (ONE, TWO, "cpu{threads=3}"))
    made = choosing.compile_fastest(
        refuse(ONE, VerificationError("no")), model, target, tmp_path / "out", Options()
    )  # fmt: skip
    assert [row["target"] for row in made.report["candidates"]] == [ONE, TWO]


def test_frozen_takes_the_choice_that_is_there(
    model: Path, asked: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, 1.0, 0.8)
    first = driver.compile(model, asked, tmp_path / "out")
    timed(monkeypatch, 1.0, 1.2)
    again = driver.compile(model, asked, tmp_path / "out", Options(frozen=True))
    assert again.manifest == first.manifest
    assert [row["target"] for row in again.report["candidates"]] == [TWO]
    driver.compile(model, ONE, tmp_path / "out")
    with pytest.raises(FrozenError, match="target differs"):
        driver.compile(model, asked, tmp_path / "out", Options(frozen=True))
    with pytest.raises(FrozenError, match="no artifact"):
        driver.compile(model, asked, tmp_path / "nothing", Options(frozen=True))


def test_a_model_in_memory_is_left_as_it_is(asked: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 1.0, 0.8)
    source = from_text(MODEL)
    before = structural_hash(source)
    driver.compile(source, asked, tmp_path / "out")
    assert structural_hash(source) == before


def test_an_isa_leaves_nothing_to_measure() -> None:
    with pytest.raises(GraphoptError, match="measures on this machine"):
        make_target("cpu{backend=auto isa=avx2}")


def run(*arguments: str) -> int:
    """The command line's exit code."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_bench_times_every_candidate(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    standing_for(monkeypatch, (ONE,), ("nowhere", TWO))
    assert run("bench", str(model), "--target", AUTO, "--duration", "0.02", "--json") == 0
    names = [Path(row["path"]).name for row in json.loads(capsys.readouterr().out)["rows"]]
    assert names == [f"model.onnx {ONE}", f"model.onnx {ONE}", f"model.onnx {TWO}"]


@pytest.mark.tvm
@pytest.mark.parametrize(("text", "second"), [(MODEL, "tvm"), (UNIQUE, "tvm{fallback=onnxruntime}")])
def test_with_tvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, second: str
) -> None:
    pytest.importorskip("tvm")
    short = replace(choosing._TIMING, seconds=0.2)
    monkeypatch.setattr(choosing, "_TIMING", short)
    write(from_text(text), tmp_path / "model.onnx")
    out = tmp_path / "out"
    assert run("compile", str(tmp_path / "model.onnx"), "--target", AUTO, "-o", str(out)) == 0
    rows = json.loads((out / "report.json").read_text())["candidates"]
    assert {row["numerics"]["status"] for row in rows if "refused" not in row} == {"passed"}
    assert [row["target"] for row in rows if "refused" not in row] == ["cpu", second]
    fastest = min((row for row in rows if "refused" not in row), key=lambda row: row["ratio"])
    assert fastest["shipped"]
    assert artifacts.load(out).manifest["target"] == fastest["target"]
    told = capsys.readouterr().err
    assert f"shipped: {fastest['target']}: " in told
    assert run("verify", str(tmp_path / "model.onnx"), str(out)) == 0
