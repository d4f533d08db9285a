"""`--precision` from the command line: what it runs, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from graphopt.cli import cli
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3, 8, 8] x) => (float[N, 5] y) <float[8, 3, 3, 3] w, float[8, 5] v> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  m = GlobalAveragePool (r)
  f = Flatten (m)
  y = MatMul (f, v) }"""
NO_WORK = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Tanh (x) }"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(from_text(NET), tmp_path / "net.onnx")
    write(from_text(NO_WORK), tmp_path / "tanh.onnx")
    samples = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=samples)
    return tmp_path / "net.onnx"


def call(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, list(words))
    code = 2 if isinstance(done.exception, GraphoptError) else done.exit_code
    return code, done.stdout, done.stderr + (str(done.exception) if done.exception else "")


def test_int8_makes_an_artifact_with_its_plan_and_says_what_was_used(net: Path) -> None:
    words = ("--precision", "int8", "--calibration-data", "calibration.npz", "--keep-slow", "-o", "out")
    code, _, err = call("compile", str(net), *words)
    assert code == 0, err
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert "plans.json" in manifest["files"] and manifest["calibration"]["samples"] == 16
    assert manifest["numerics"]["tolerance"] == "lossy" and "quantize-static" in manifest["pipeline"]
    assert "2 nodes with work run in int8" in err and "lossy passes are measured" in err


@pytest.mark.parametrize("words", [("--precision", "int8"), ("-p", "search-precision{by=work sqnr=10}")])
def test_a_fixed_batch_of_several_is_quantized_by_whole_batches(net: Path, words: tuple[str, ...]) -> None:
    """Passes that ask for one sample, or a few, get as few as the model takes."""
    write(from_text(NET.replace("float[N", "float[4")), Path("four.onnx"))
    given = ("--target", "cpu", "--calibration-data", "calibration.npz", "--calibration-samples", "9")
    code, _, err = call("opt", "four.onnx", *words, *given, "-o", "out.onnx")
    assert code == 0 and "2 nodes with work run in int8" in err, err
    assert "samples asked for: 9; used: 8, as the model takes 4 at a time" in err


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weights", "int4", "fp16"])
def test_other_precisions_need_no_samples(net: Path, precision: str) -> None:
    code, _, err = call("opt", str(net), "--precision", precision, "--target", "cpu", "-o", "out.onnx")
    assert code == 0 and Path("out.onnx").is_file(), err


def test_a_model_without_work_is_told(net: Path) -> None:
    code, _, err = call("opt", "tanh.onnx", "--precision", "int8", "--calibration-data", "calibration.npz")
    assert code == 0 and "nothing to do for --precision int8" in err and "quantize-static" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int9"), "there is no precision 'int9'; did you mean 'int8'"),
        (("--precision", "int8"), "--calibration-data"),
        (("--precision", "int8", "-p", "dce"), "give it or a pipeline, not both"),
        (("--precision", "fp16", "--target", "cuda{precision=fp16}"), "give the precision in one place"),
    ],
)
def test_what_does_not_go_together_is_one_line(net: Path, words: tuple[str, ...], message: str) -> None:
    code, _, err = call("opt", str(net), *words, "-o", "out.onnx")
    assert code == 2 and message in err and not Path("out.onnx").exists()
