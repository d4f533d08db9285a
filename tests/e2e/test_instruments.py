"""Instruments on the command line: what each pass took, and when the rules of the IR are checked."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from graphopt.cli import main
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N] x) => (float[N] y) { [neg] a = Neg (x) [id] b = Identity (a) [relu] y = Relu (b) }"""
PLUGIN = '''
from typing import ClassVar
from graphopt import Pass

class Shuffle(Pass):
    """Puts the last node first: uses come before what they use"""
    name: ClassVar[str] = "shuffle"

    def run(self, model, ctx):
        if model.graph[0].op_type == "Relu":
            return
        ctx.rewriter.count_model()
        last = model.graph[-1]
        model.graph.remove(last)
        model.graph.insert_before(model.graph[0], last)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(from_text(MODEL), tmp_path / "model.onnx")
    (tmp_path / "plug.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(args))
    return int(done.value.code or 0)


def test_time_passes_has_a_line_per_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("opt", "model.onnx", "-p", "fix(eliminate-identity,dce),cse", "--time-passes") == 0
    lines = capsys.readouterr().err.splitlines()
    rows = [found.groups() for line in lines if (found := re.fullmatch(r" +\d+\.\d{3} +(\d+) +(\d+)  (\S+)", line))]
    assert sorted(rows) == [("1", "0", "cse"), ("1", "0", "dce"), ("2", "1", "eliminate-identity")]
    assert lines[-1].startswith("  seconds: capture ")


@pytest.mark.parametrize(
    ("when", "where"), [("each", "after pass 'shuffle'"), ("end", "after the pipeline"), (None, "after pass 'shuffle'")]
)
def test_a_broken_rule_is_found_when_it_is_looked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], when: str | None, where: str
) -> None:
    given = ["--verify", when] if when else []
    assert call("opt", "model.onnx", "--load", "plug.py", "-p", "shuffle,dce", "-o", "out.onnx", *given) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert where in error and "relu" in error
    assert not (folder / "out.onnx").exists()


def test_verify_off_looks_at_nothing(folder: Path) -> None:
    args = ("opt", "model.onnx", "--load", "plug.py", "-p", "shuffle", "--verify", "off", "--numerics", "off", "-q")
    assert call(*args) == 0


@pytest.mark.parametrize("verb", [("run", "model.onnx"), ("bench", "model.onnx"), ("compile", "model.onnx", "-o", "b")])
def test_without_a_runtime_one_line_says_what_to_install(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name, *rest)
    )
    code = call(*verb)
    text = capsys.readouterr().err
    assert 'pip install "graphopt[cpu]"' in text
    assert code == (0 if verb[0] == "compile" else 2)
    if verb[0] == "compile":  # what could not be checked here is said
        assert "not-checked" in text
