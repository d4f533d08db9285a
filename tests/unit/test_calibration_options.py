"""The calibration options of a run, through optimize, compile, bisect, the reproducer and the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from graphopt.blame import bisect
from graphopt.cli import main
from graphopt.cli.common import parse_bytes
from graphopt.driver import Options, compile, make_plans, optimize
from graphopt.errors import GraphoptError, PassError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager import registry
from graphopt.manager.base import Pass

MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3] x) => (float[N, 3] y) <float[3, 3] w = {1, 0, 0, 0, 2, 0, 0, 0, 3}> {
  h = MatMul (x, w)
  y = Relu (h) }"""


@dataclass(frozen=True)
class ClipToSeen(Pass):
    """Relu(x) -> Clip(x, 0, largest seen): a pass that needs calibration."""

    name: ClassVar[str] = "clip-to-seen"
    tolerance = "lossy"
    fail: bool = False

    def run(self, model: Any, ctx: Any) -> None:
        (node,) = [node for node in model.graph if node.op_type == "Relu"] or [None]
        stats = ctx.need_calibration().statistics(model, ["h"])["h"]
        if self.fail:
            raise ValueError(f"on purpose, at {stats.high:g}")
        if node is not None:
            op = ctx.rewriter.builder(node)
            low, high = (
                op.const(np.asarray(end, np.float32), name) for end, name in ((0, "low"), (stats.high, "high"))
            )
            ctx.rewriter.replace(node, [op.Clip(node.inputs[0], low, high)], op)


@pytest.fixture(autouse=True)
def clip_to_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._loaded, ClipToSeen.name, ClipToSeen)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(from_text(MODEL), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "calib.npz", x=np.linspace(-1, 1, 30, dtype=np.float32).reshape(10, 3))
    return tmp_path / "calib.npz"


def high(model: Any) -> float:
    return float(model.graph.initializers["high"].const_value.numpy())


def test_a_pass_sees_the_data(model: Path, data: Path) -> None:
    result = optimize(model, options=Options(passes="clip-to-seen", calibration_data=data))
    assert high(result.model) == 3
    assert not [remark for remark in result.summary["remarks"] if remark["pass"] == "calibration"]
    with pytest.raises(GraphoptError, match="needs samples of real inputs: give --calibration-data"):
        optimize(model, options=Options(passes="clip-to-seen"))
    few = optimize(model, options=Options(passes="clip-to-seen", calibration_data=data, calibration_samples=1))
    assert high(few.model) < 0 and "one sample only" in str(few.summary["remarks"])
    assert make_plans(model, options=Options(passes="clip-to-seen", calibration_data=data)) == []


def test_statistics_are_saved_and_used_again(model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    optimize(model, options=Options(passes="clip-to-seen", calibration_data=data, save_calibration=path))
    saved = json.loads(path.read_text())
    assert (saved["origin"], saved["samples"], len(saved["data"])) == ("calib.npz", 10, 64)
    data.unlink()
    again = optimize(model, options=Options(passes="clip-to-seen", calibration=path))
    assert high(again.model) == 3
    write(from_text(MODEL.replace("{1,", "{7,")), model)
    with pytest.raises(GraphoptError, match="of another model, or of this one after other passes"):
        optimize(model, options=Options(passes="clip-to-seen", calibration=path))


def test_the_manifest_says_what_was_used(model: Path, data: Path, tmp_path: Path) -> None:
    options = Options(passes="clip-to-seen", calibration_data=data, save_calibration=tmp_path / "stats.json")
    record = compile(model, output=tmp_path / "build", options=options).manifest["calibration"]
    assert record == {"origin": "calib.npz", "samples": 10, "data": record["data"]} and len(record["data"]) == 64
    first = (tmp_path / "build" / "manifest.json").read_bytes()
    compile(model, output=tmp_path / "build", options=options)
    assert (tmp_path / "build" / "manifest.json").read_bytes() == first
    options = Options(passes="clip-to-seen", calibration=tmp_path / "stats.json")
    saved = compile(model, output=tmp_path / "saved", options=options).manifest["calibration"]
    assert saved == {**record, "statistics": saved["statistics"]} and len(saved["statistics"]) == 64
    made = compile(model, output=tmp_path / "made", options=Options(passes="clip-to-seen", calibration_data="random"))
    assert made.manifest["calibration"]["origin"] == "random"
    assert "the samples are random" in str(made.report["remarks"])
    unused = compile(model, output=tmp_path / "unused", options=Options(passes="dce", calibration_data=data))
    assert "calibration" not in unused.manifest
    assert "the calibration data was not used" in str(unused.report["remarks"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_samples": 3}, "--calibration-samples needs samples: give --calibration-data"),
        ({"save_calibration": Path("s.json")}, "--save-calibration needs samples"),
        ({"calibration": Path("missing.json")}, "--calibration: statistics missing.json cannot be read"),
        ({"calibration_data": "missing.npz"}, "--calibration-data: there is no file or folder missing.npz"),
        ({"calibration_data": "random", "calibration_samples": 0}, "at least one is needed"),
    ],
)
def test_options_that_do_not_fit(model: Path, options: Any, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        optimize(model, options=Options(passes="dce", **options))


def test_statistics_that_nobody_asked_for_are_not_saved(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match="no pass gathered statistics"):
        optimize(model, options=Options(passes="dce", calibration_data=data, save_calibration=tmp_path / "s.json"))


def test_bisect_and_the_reproducer_hand_it_on(model: Path, data: Path, tmp_path: Path) -> None:
    command = "sh -c '! grep -q Clip {}'"
    blame = bisect(model, options=Options(passes="dce,clip-to-seen", calibration_data=data), command=command)
    assert blame.rewrite is not None and blame.rewrite.pass_name == "clip-to-seen"
    with pytest.raises(PassError, match="on purpose, at 3.*reproducer is in") as caught:
        optimize(
            model,
            options=Options(passes="clip-to-seen{fail}", calibration_data=data, repro=tmp_path / "repro"),
        )
    assert (tmp_path / "repro" / "model.onnx").is_file(), caught.value
    replay = json.loads((tmp_path / "repro" / "repro.json").read_text())["replay"]
    assert replay.endswith(f"--calibration-data {data}")


def test_the_command_line(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = tmp_path / "stats.json"

    def status(*arguments: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main([*flags, *arguments])
        return int(caught.value.code or 0)

    flags = ["opt", str(model), "-p", "clip-to-seen", "-o", str(tmp_path / "out.onnx"), "--max-memory", "64M"]
    assert status("--calibration-data", str(data), "--save-calibration", str(stats)) == 0
    assert status("--calibration", str(stats)) == 0
    assert status("--calibration-data", str(data), "--calibration-samples", "2", "-q") == 0
    capsys.readouterr()
    assert status("--calibration-data", str(tmp_path / "none.npz")) == 2
    assert "there is no file or folder" in capsys.readouterr().err


def test_sizes_of_memory() -> None:
    texts = {"512M": 512 << 20, "2G": 2 << 30, "1.5GiB": 3 << 29, "100": 100, "64 kB": 64 << 10, "2g": 2 << 30}
    assert {text: parse_bytes(text) for text in texts} == texts and parse_bytes(None) is None
    for text in ("", "M", "two", "-1G", "0", "1T"):
        with pytest.raises(GraphoptError, match="wants a number of bytes, for example 512M"):
            parse_bytes(text)


def test_saved_statistics_alone_do_for_a_method_of_its_own(model: Path, data: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    spec = "quantize-static{saturation=ignore}"
    optimize(model, options=Options(passes=spec, calibration_data=data, save_calibration=stats, numerics="off"))
    with pytest.raises(GraphoptError, match="give --calibration-data as well; .* for example method=mse"):
        optimize(model, options=Options(passes=spec, calibration=stats, numerics="off"))
    for method in ("minmax", "moving-average", "sigma", "percentile", "entropy", "mse"):
        options = Options(passes=f"quantize-static{{method={method}}}", calibration=stats, numerics="off")
        assert optimize(model, options=options).run.effects()["quantize-static"]
