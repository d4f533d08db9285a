"""`compile --gate` and `--eval`: what is measured and refused, and what a gate does to the verdict on the numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import driver, timing
from graphopt.cli import main
from graphopt.driver import Options
from graphopt.errors import GateError, GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.registry import load_file

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N,16] x) => (float[N,4] y) <float[16,64] a, float[64,4] b>
{ [first] h = MatMul(x, a) [relu] r = Relu(h) [id] i = Identity(r) [second] y = MatMul(i, b) }"""
PASSES = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt import NodePass

@dataclass(frozen=True)
class RoundToStep(NodePass):
    """W -> round(W / step) * step"""
    name: ClassVar[str] = "round-to-step"
    tolerance: ClassVar[str] = "lossy"
    ops: ClassVar[tuple[str, ...]] = ("MatMul",)
    step: float = 0.01

    def rewrite_node(self, op, m, node):
        array = m.const(node.inputs[1])
        rounded = (np.round(array / self.step) * self.step).astype(np.float32)
        m.require(not np.array_equal(array, rounded), "rounded already")
        return op.MatMul(node.inputs[0], op.const(rounded))
'''
METRIC = """
import numpy as np

def labelled():
    rng = np.random.default_rng(5)
    return rng.standard_normal((200, 16)).astype(np.float32), rng.integers(0, 4, 200)

def accuracy(runner):
    x, labels = labelled()
    return float(np.mean(np.argmax(runner.run({"x": x})["y"], axis=-1) == labels))

def hits(runner):
    x, labels = labelled()
    return np.argmax(runner.run({"x": x})["y"], axis=-1) == labels

def broken(runner):
    raise ValueError("no labels here")

def nothing(runner):
    return float("nan")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    write(from_text(MODEL), folder / "model.onnx")
    (folder / "rounding.py").write_text(PASSES)
    (folder / "metric.py").write_text(METRIC)
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32))
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    load_file(made / "rounding.py")
    return made


def options(step: float = 0.01, **changes: Any) -> Options:
    return Options(passes=f"eliminate-identity,round-to-step{{step={step}}},dce", repro=None, **changes)


def run(step: float = 0.01, output: str = "out", **changes: Any) -> Any:
    return driver.compile("model.onnx", "cpu", output, options(step, **changes))


def test_a_gate_judges_the_loss(folder: Path) -> None:
    artifact = run(data=Path("x.npz"), gates=("cosine>=0.99,sqnr>=20", "max-abs<=1", "size<=1.5x"), output="judged")
    assert artifact.manifest["numerics"]["status"] == "passed"
    assert artifact.manifest["numerics"]["judged_by"] == ["cosine>=0.99", "sqnr>=20", "max-abs<=1"]
    assert artifact.manifest["gates"] == ["cosine>=0.99", "sqnr>=20", "max-abs<=1", "size<=1.5x"]
    found = artifact.report["evaluation"]
    assert [row["met"] for row in found["gates"]] == [True] * 4
    assert found["agreement"]["samples"] == 40
    assert found["agreement"]["outputs"][0]["top1"]["value"] > 0.9


def test_agreement_is_what_was_measured_by_hand(folder: Path) -> None:
    artifact = run(0.1, data=Path("x.npz"), gates=("sqnr>=1",), output="hand")
    weights = {name: item.const_value.numpy() for name, item in from_text(MODEL).graph.initializers.items()}
    x = np.load("x.npz")["x"]

    def forward(step: float) -> np.ndarray:
        a, b = (np.round(weights[k] / step) * step if step else weights[k] for k in "ab")
        return np.maximum(x @ a, 0) @ b

    y, z = forward(0), forward(0.1)
    expected = 10 * np.log10(np.sum(y**2) / np.sum((y - z) ** 2))
    assert artifact.report["evaluation"]["agreement"]["outputs"][0]["sqnr"]["value"] == pytest.approx(
        expected, abs=1e-3
    )


def test_without_a_gate_on_accuracy_the_loss_stays_unjudged(folder: Path) -> None:
    artifact = run(gates=("size<=1.5x",), output="size")
    assert artifact.manifest["numerics"]["status"] == "not-checked"
    assert "judged_by" not in artifact.manifest["numerics"]


def test_require_numerics_is_satisfied_by_a_gate(folder: Path) -> None:
    with pytest.raises(GraphoptError, match="--require-numerics"):
        run(require_numerics=True, output="never")
    run(require_numerics=True, data=Path("x.npz"), gates=("cosine>=0.9",), output="required")


def test_nothing_is_written_when_a_gate_is_missed(folder: Path) -> None:
    with pytest.raises(GateError, match=r"gate cosine>=0\.9999 is not met: nearest is cosine 0\.\d+ \[") as caught:
        run(0.5, data=Path("x.npz"), gates=("cosine>=0.9999", "size<=2x"), output="missed")
    assert caught.value.exit_code == 3
    assert "met: size<=2x with size" in str(caught.value)
    assert not Path("missed").exists()


def test_the_users_metric_side_by_side(folder: Path) -> None:
    artifact = run(evaluate="metric.py:hits", gates=("metric>=0.9x",), output="metric")
    found = artifact.report["evaluation"]["metric"]
    assert found["samples"] == 200
    assert found["float"]["low"] < found["float"]["value"] < found["float"]["high"]
    assert found["ratio"]["value"] == pytest.approx(found["compiled"]["value"] / found["float"]["value"])
    # Both models are scored on the same samples, so the ratio is known better than either value.
    assert found["ratio"]["high"] - found["ratio"]["low"] < found["float"]["high"] - found["float"]["low"]
    assert artifact.manifest["numerics"]["judged_by"] == ["metric>=0.9x"]


def test_a_metric_that_is_one_number_has_no_interval(folder: Path) -> None:
    artifact = run(evaluate="metric.py:accuracy", output="number")
    found = artifact.report["evaluation"]
    assert found["metric"]["samples"] == 0
    assert found["gates"] == []
    with pytest.raises(GateError, match=r"metric>=1\.5x is not met: nearest is metric .*metric.py:accuracy: float 0\."):
        run(evaluate="metric.py:accuracy", gates=("metric>=1.5x",), output="never")


def test_a_metric_from_python(folder: Path) -> None:
    def size_of_output(runner: Any) -> float:
        return float(runner.run({"x": np.ones((3, 16), np.float32)})["y"].size)

    artifact = run(evaluate=size_of_output, gates=("metric>=12",), output="python")
    assert artifact.report["evaluation"]["metric"]["name"] == "size_of_output"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": ("cosine>=0.9",)}, "needs samples to compare outputs on: give --data or --calibration-data"),
        ({"gates": ("metric>=0.9x",)}, "needs a metric: give --eval"),
        ({"evaluate": "metric.py:accurcy"}, "did you mean 'accuracy'"),
        ({"evaluate": "absent.py:f"}, "there is no file absent.py"),
        ({"evaluate": "metric.py:broken"}, "raised ValueError: no labels here"),
        ({"evaluate": "metric.py:nothing"}, "must return a finite number"),
        ({"gates": ("cosine>=0.9",), "data": Path("nowhere.npz")}, "nowhere.npz"),
    ],
)
def test_what_cannot_be_measured(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphoptError, match=re.escape(message)):
        run(**changes, output="never")
    assert not Path("never").exists()


def test_without_lossy_passes_the_model_is_the_float_model(folder: Path) -> None:
    wanted = Options(passes="eliminate-identity", gates=("size<=1x", "cosine>=1"), data=Path("x.npz"), repro=None)
    artifact = driver.compile("model.onnx", "cpu", "same", wanted)
    assert artifact.manifest["numerics"] == {"status": "passed", "tolerance": "exact", "reason": ""}


def test_a_model_in_memory(folder: Path) -> None:
    """The float model is made from what came in, not from the model that the passes changed."""
    artifact = driver.compile(from_text(MODEL), "cpu", "memory", options(0.1, gates=("sqnr>=1",), data=Path("x.npz")))
    assert artifact.report["evaluation"]["agreement"]["outputs"][0]["sqnr"]["value"] < 60


def test_a_target_that_is_not_here(folder: Path) -> None:
    if driver.make_target("cuda").available() is None:
        pytest.skip("this machine runs the target")
    with pytest.raises(GateError, match="cosine>=0.9 cannot be judged here"):
        driver.compile("model.onnx", "cuda", "never", options(gates=("cosine>=0.9",), data=Path("x.npz")))
    driver.compile("model.onnx", "cuda", "elsewhere", options(gates=("size<=1.5x",)))


def test_one_gate_may_be_given_as_text(folder: Path) -> None:
    assert run(gates="size<=1.5x", output="text").manifest["gates"] == ["size<=1.5x"]


def test_optimize_has_no_gates(folder: Path) -> None:
    with pytest.raises(GraphoptError, match="compile the model"):
        driver.optimize("model.onnx", options=Options(gates=("size<=1x",)))


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", "model.onnx", "--load", "rounding.py", "-p", "round-to-step", "--data", "x.npz"]
    gates = ["--gate", "cosine>=0.9", "--eval", "metric.py:hits", "--gate", "metric>=0.5x"]
    with pytest.raises(SystemExit) as done:
        main([*words, *gates, "-o", "cli", "--json"])
    assert not done.value.code
    out, err = capsys.readouterr()
    assert json.loads(out)["numerics"]["judged_by"] == ["cosine>=0.9", "metric>=0.5x"]
    assert "gate     cosine>=0.9 is met: 0.99" in err
    assert "numerics passed by cosine>=0.9" in err
    assert "metric   metric.py:hits: float 0." in err
    with pytest.raises(SystemExit) as done:
        main([*words, "--gate", "sqnr>=200", "-o", "nothing"])
    assert done.value.code == 3
    assert "nearest is sqnr" in capsys.readouterr().err


def test_latency_is_measured_in_turns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that adds work is measured to be slower, and a gate on that fails; the same model is not."""
    rng = np.random.default_rng(0)
    big = from_text(MODEL.replace("16,64", "16,1024").replace("64,4", "1024,4"))
    for name, shape in (("a", (16, 1024)), ("b", (1024, 4))):
        big.graph.initializers[name].const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
    write(big, "big.onnx")
    np.savez("big.npz", x=rng.standard_normal((256, 16)).astype(np.float32))
    Path("slow.py").write_text(SLOW)
    load_file(Path("slow.py"))
    monkeypatch.setattr("graphopt.evaluation.LATENCY", timing.BenchPlan(seconds=0.3))
    changes: dict[str, Any] = {"data": Path("big.npz"), "repro": None}
    same = Options(passes="eliminate-identity", gates=("latency<=1x", "latency<=1000ms"), **changes)
    assert driver.compile("big.onnx", "cpu", "fast", same).report["evaluation"]["latency"]["rounds"] >= 20
    with pytest.raises(GateError, match=r"latency<=1\.2x is not met: nearest is latency \d\.\d+x \[.*A/A within"):
        driver.compile("big.onnx", "cpu", "never", Options(passes="add-work", gates=("latency<=1.2x",), **changes))


SLOW = '''
from dataclasses import dataclass
from typing import ClassVar

from graphopt import NodePass

@dataclass(frozen=True)
class AddWork(NodePass):
    """Relu(x) -> Relu(Sin(Sin(Sin(x))))"""
    name: ClassVar[str] = "add-work"
    tolerance: ClassVar[str] = "lossy"
    ops: ClassVar[tuple[str, ...]] = ("Relu",)

    def rewrite_node(self, op, m, node):
        x = node.inputs[0]
        m.require(x.producer().op_type != "Sin", "done")
        for _ in range(8):
            x = op.Sin(x)
        return op.Relu(x)
'''
