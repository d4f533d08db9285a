"""Models of any opset from 7 on are compiled at the working opset, or at the one that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from graphopt.cli import main
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

# IR version, opset, and a net in the words of that opset: attributes that became inputs, ops that changed their rules.
NETS = {
    "7": """<ir_version: 3, opset_import: ["" : 7]>
g (float[2,3,8,8] x, float[4,3,3,3] w) => (float[2,4] y, float[2,3,10,10] p) <float[4,3,3,3] w> {
  c = Conv (x, w)
  r = ReduceMean <axes = [2, 3], keepdims = 0> (c)
  t = Clip <min = -1.0, max = 1.0> (r)
  y = Softmax (t)
  p = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1], mode = "edge"> (x) }""",
    "9": """<ir_version: 4, opset_import: ["" : 9]>
g (float[2,3,8,8] x) => (float[2,3,16,16] y, float[2,1,3,8,8] u) <float[4] s = {1, 1, 2, 2}> {
  y = Upsample <mode = "nearest"> (x, s)
  u = Unsqueeze <axes = [1]> (x) }""",
    "11": """<ir_version: 6, opset_import: ["" : 11]>
g (float[2,6] x) => (float[2,3] a, float[2,3] b, float[2] s) {
  a, b = Split <axis = 1, split = [3, 3]> (x)
  s = ReduceSum <axes = [1], keepdims = 0> (x) }""",
    "17": """<ir_version: 8, opset_import: ["" : 17]>
g (float[2,6] x) => (float[2] m) { m = ReduceMax <axes = [1], keepdims = 0> (x) }""",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in NETS.items():
        write(from_text(text), tmp_path / f"{name}.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(args))
    return int(done.value.code or 0)


def opset(path: Path) -> int:
    (found,) = [item.version for item in onnx.load(path).opset_import if item.domain == ""]
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("level", ["1", "3"])
def test_an_old_model_comes_out_at_the_working_opset(
    name: str, level: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("compile", f"{name}.onnx", "-o", "out", "-O", level, "--require-numerics", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["numerics"]["status"] == "passed"
    assert opset(folder / "out" / "model.onnx") == 21
    assert any(remark["pass"] == "convert-opset" for remark in report["remarks"])
    onnx.checker.check_model(str(folder / "out" / "model.onnx"))


@pytest.mark.parametrize(
    ("asked", "found", "note"),
    [(19, 19, "opset 17 -> 19"), (23, 23, "opset 17 -> 23"), (17, 17, ""), (11, 17, "newer opsets only, not to 11")],
)
def test_the_opset_of_the_output_may_be_asked_for(
    asked: int, found: int, note: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("opt", "17.onnx", "-o", "out.onnx", "--opset", str(asked), "--require-numerics") == 0
    assert opset(folder / "out.onnx") == found
    notes = [line for line in capsys.readouterr().err.splitlines() if "note: convert-opset" in line]
    assert len(notes) == bool(note) and all(note in line for line in notes)
