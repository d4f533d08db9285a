"""A runtime that crashes or hangs on the model: one line, exit code 2, nothing written."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from graphopt import checks
from graphopt.cli import main
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.targets.onnxruntime.target import Cpu

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors divide the least integer by -1"
)
HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
# The least integer over -1 has no answer in 64 bits, and the processor stops the program.
CRASHES = """g (int64[4] x) => (int64[4] y) <int64 nil = {0}, int64 least = {-9223372036854775808}, int64 back = {-1}>
{ z = Mul (x, nil) a = Add (z, least) y = Div (a, back) }"""
FOLDS = """g (int64[4] x) => (int64[4] y) <int64 least = {-9223372036854775808}, int64 back = {-1}>
{ d = Div (least, back) y = Add (d, x) }"""
HANGS = """g (float x) => (float y)
{ n = Constant <value_int = 9223372036854775807> () c = Constant <value = bool {1}> ()
  y = Loop (n, c, x) <body = t (int64 i, bool d, float a) => (bool e, float b) { e = Identity (d) b = Cos (a) }> }"""
FINE = "g (int64[4] x) => (int64[4] y) { y = Identity (x) }"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("crashes", CRASHES), ("folds", FOLDS), ("hangs", HANGS), ("fine", FINE)):
        write(from_text(f"{HEAD} {text}"), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones(4, np.int64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(args))
    return int(done.value.code or 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["opt", "crashes.onnx", "-o", "out.onnx"], "ONNX Runtime was killed by SIGFPE while running crashes.onnx"),
        (["compile", "crashes.onnx", "-o", "out"], "SIGFPE"),
        (["compile", "crashes.onnx", "-o", "out", "--data", "x.npz"], "SIGFPE"),
        (["run", "crashes.onnx"], "SIGFPE"),
        (["bench", "crashes.onnx"], "SIGFPE"),
        (["verify", "crashes.onnx", "crashes.onnx"], "SIGFPE"),
        (["bisect", "crashes.onnx"], "SIGFPE"),
        (["explain", "crashes.onnx", "--realized"], "SIGFPE"),
        (["opt", "folds.onnx", "-o", "out.onnx"], "SIGFPE"),
        (["opt", "hangs.onnx", "-o", "out.onnx"], "running hangs.onnx took over 5 s"),
        (["compile", "hangs.onnx", "-o", "out"], "took over 5 s"),
        (["run", "hangs.onnx", "--time-limit", "4"], "running hangs.onnx took over 4 s and was stopped"),
        (["bench", "fine.onnx", "hangs.onnx", "--time-limit", "0"], "0.0 is not in the range"),
        (["run", "fine.onnx", "--time-limit", "nan"], "nan is not a number"),
        (["bench", "hangs.onnx", "--time-limit", "4"], "--time-limit"),
        (["explain", "hangs.onnx", "--realized"], "took over 5 s"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_it_is_one_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    if "hangs.onnx" in args:
        monkeypatch.setattr(checks, "RUN_SECONDS", 5.0)
        monkeypatch.setattr(Cpu.load, "__kwdefaults__", {"time_limit": 5.0})
    before = sorted(path.name for path in folder.iterdir())
    assert call(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("graphopt: ") and message in line
    assert sorted(path.name for path in folder.iterdir()) == before


def test_without_numerics_the_model_is_written(folder: Path) -> None:
    assert call("opt", "crashes.onnx", "-o", "out.onnx", "--numerics", "off", "-q") == 0
    assert (folder / "out.onnx").is_file()


def test_a_result_that_dies_where_the_model_did_not_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", "fine.onnx", "crashes.onnx") == 1
    assert "the result does not run" in capsys.readouterr().out
