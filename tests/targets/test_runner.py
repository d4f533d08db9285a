"""The ONNX Runtime runners: types that cross the wire, taps, limits, and what a dying runtime turns into."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from graphopt.errors import GraphoptError, RuntimeDied
from graphopt.targets.onnxruntime.runner import OrtRunner, open_runner
from graphopt.targets.onnxruntime.settings import SessionSettings

HEAD = '<ir_version: 10, opset_import: ["":21]> '


def write(folder: Path, text: str) -> Path:
    path = folder / "m.onnx"
    onnx.save(parser.parse_model(HEAD + text), path)
    return path


def write_big(folder: Path, megabytes: int) -> Path:
    """MatMul with a weight in external data."""
    size = int((megabytes * 2**20 / 4) ** 0.5)
    np.ones((size, size), np.float32).tofile(folder / "w.bin")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size, size], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name in "xy")
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("isolate", [True, False])
def test_types_that_numpy_lacks(tmp_path: Path, isolate: bool) -> None:
    path = write(
        tmp_path,
        """g(bfloat16[2] x, int4[3] q, float8e4m3fn[2] f) => (bfloat16[2] y, int8[3] r, int4[3] s, float8e4m3fn[2] t)
        { y = Identity(x) r = Cast<to=3>(q) s = Cast<to=22>(r) t = Identity(f) }""",
    )
    feeds = {
        "x": np.array([1.5, -2], ml_dtypes.bfloat16),
        "q": np.array([1, -8, 7], ml_dtypes.int4),
        "f": np.array([0.5, -448], ml_dtypes.float8_e4m3fn),
    }
    with open_runner(path, isolate=isolate) as runner:
        out = runner.run(feeds)
    for name, source in (("y", "x"), ("s", "q"), ("t", "f")):
        assert out[name].dtype == feeds[source].dtype
        np.testing.assert_array_equal(out[name].astype(np.float32), feeds[source].astype(np.float32))
    np.testing.assert_array_equal(out["r"], np.array([1, -8, 7], np.int8))


@pytest.mark.parametrize("isolate", [True, False])
def test_strings_sequences_and_optionals(tmp_path: Path, isolate: bool) -> None:
    path = write(
        tmp_path,
        """g(string[N] s, seq(float[M]) xs, int64 i, optional(float[K]) o)
        => (string[N] t, seq(float[M]) ys, float[M] y, bool has, optional(float[K]) p)
        { t = Identity(s) ys = SequenceErase(xs, i) y = SequenceAt(xs, i)
          has = OptionalHasElement(o) p = Identity(o) }""",
    )
    xs = [np.ones(2, np.float32), np.arange(3, dtype=np.float32)]
    feeds = {"s": np.array(["a", "bé"], object), "xs": xs, "i": np.array(1), "o": None}
    with open_runner(path, isolate=isolate) as runner:
        out = runner.run(feeds)
        present = runner.run({**feeds, "o": np.ones(2, np.float32)}, ["has", "p"])
    assert out["t"].tolist() == ["a", "bé"]
    assert [item.tolist() for item in out["ys"]] == [[1.0, 1.0]]
    assert out["y"].tolist() == [0.0, 1.0, 2.0]
    assert not out["has"] and out["p"] is None
    assert present["has"] and present["p"].tolist() == [1.0, 1.0]


def test_feeds_are_not_changed_and_outputs_are_selected(tmp_path: Path) -> None:
    path = write(tmp_path, "g(float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Relu(x) z = Neg(x) }")
    x = np.asfortranarray(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3))
    before = x.copy()
    with open_runner(path) as runner:
        assert [(spec.name, spec.type, spec.shape) for spec in runner.inputs] == [("x", "tensor(float)", (2, 3))]
        out = runner.run({"x": x}, ["z"])
        assert len(runner.time({"x": x}, 5)) == 5
    assert list(out) == ["z"]
    np.testing.assert_array_equal(out["z"], -before)
    np.testing.assert_array_equal(x, before)


def test_wrong_feeds_are_one_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, "g(float[2] input_ids) => (float[2] y) { y = Relu(input_ids) }")
    with open_runner(path) as runner:
        with pytest.raises(GraphoptError, match="did you mean 'input_ids'"):
            runner.run({"input_id": np.ones(2, np.float32)})
        with pytest.raises(GraphoptError, match="no value is given for input 'input_ids'"):
            runner.run({})
        with pytest.raises(GraphoptError, match="expected: \\(tensor\\(float\\)\\)"):
            runner.run({"input_ids": np.ones(2)})
        with pytest.raises(GraphoptError, match="no output 'z'"):
            runner.run({"input_ids": np.ones(2, np.float32)}, ["z"])
        assert runner.run({"input_ids": np.ones(2, np.float32)})["y"].tolist() == [1, 1]  # still usable


def test_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("not a model")
    with pytest.raises(GraphoptError, match="cannot load") as caught:
        open_runner(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(GraphoptError, match="there is no model file"):
        open_runner(tmp_path / "absent.onnx")


@pytest.mark.parametrize("isolate", [True, False])
def test_taps_follow_the_interface_and_find_external_data(tmp_path: Path, isolate: bool) -> None:
    path = write_big(tmp_path, 1)
    x = -np.ones((1, 512), np.float32)
    with open_runner(path, isolate=isolate) as runner, runner.with_taps(["h", "y"]) as tapped:
        assert [spec.name for spec in tapped.outputs] == ["y", "h"]
        assert not tapped.run({"x": x})["h"].any()
        with pytest.raises(GraphoptError, match="no value 'hh'"):
            runner.with_taps(["hh"])
        assert list(runner.run({"x": x})) == ["y"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.onnx", "w.bin"]


def test_hang_is_stopped(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """g(float x) => (float y) {
          n = Constant<value_int=9223372036854775807>() c = Constant<value = bool {1}>()
          y = Loop(n, c, x) <body = b(int64 i, bool ci, float a) => (bool co, float b)
                                    { co = Identity(ci) b = Cos(a) }> }""",
    )
    with open_runner(path, time_limit=120.0) as runner:
        assert isinstance(runner, OrtRunner)
        runner._child._time_limit = 1.0  # loading may take longer
        with pytest.raises(RuntimeDied, match="took over 1 s"):
            runner.run({"x": np.array(0.5, np.float32)})
        with pytest.raises(GraphoptError, match="is closed"):
            runner.run({"x": np.array(0.5, np.float32)})


def test_memory_limit_counts_no_mapped_weights(tmp_path: Path) -> None:
    path = write_big(tmp_path, 256)
    x = np.ones((1, 8192), np.float32)
    limit = 128 << 20
    with open_runner(path, SessionSettings().reference(), memory_limit=limit) as runner:
        assert runner.run({"x": x})["y"].shape == (1, 8192)
        assert runner.memory()["anonymous"] < limit
    with pytest.raises(GraphoptError, match="more than the memory limit of 128 MiB"):
        open_runner(path, SessionSettings(), memory_limit=limit)  # prepacking copies the weights


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_crash_names_the_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = write(tmp_path, "g(float[2] x) => (float[2] y) { y = Relu(x) }")
    runner = open_runner(path)
    assert isinstance(runner, OrtRunner)
    os.kill(runner._process.pid, number)
    with pytest.raises(RuntimeDied, match=f"killed by {number.name} while running"):
        runner.run({"x": np.ones(2, np.float32)})


def test_child_imports_neither_onnx_nor_torch() -> None:
    code = (
        "import sys, graphopt.targets.onnxruntime.worker, onnxruntime;"
        "print(sorted(m for m in ('onnx', 'onnx_ir', 'torch', 'sympy', 'networkx', 'ml_dtypes') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_importing_targets_imports_no_runtime() -> None:
    code = (
        "import sys, graphopt.targets.onnxruntime.target, graphopt.targets.onnxruntime.runner;"
        "print(sorted(m for m in ('onnxruntime', 'numpy', 'onnx_ir') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
