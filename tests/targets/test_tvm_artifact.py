"""Artifacts of the tvm target: compiled, verified, run, timed, tapped; the loaders of docs/tvm.md; refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from graphopt import driver
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.registry import make_target
from graphopt.running import runnable
from graphopt.targets.onnxruntime.runner import open_runner
from graphopt.verifying import verify_files

pytestmark = pytest.mark.tvm
pytest.importorskip("tvm")

ROOT = Path(__file__).parents[2]
NET = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,3,8,8] x) => (float[1,5] y) <float[4,3,3,3] w, float[4] b, float[4,5] v>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w, b) [act] r = HardSwish(h) [pool] g = GlobalAveragePool(r)
  [flat] f = Flatten(g) [out] m = MatMul(f, v) [prob] y = Softmax(m) }"""
# Det has no lowering: the middle goes to ONNX Runtime.
MIXED = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[2,4,4] x) => (float[2,4,4] y, float[2] d) <float[4,4] w, float[4,4] v>
{ [first] a = MatMul(x, w) [act] r = Relu(a) [det] d = Det(r) axes = Constant<value_ints=[1, 2]>()
  [wide] u = Unsqueeze(d, axes) [add] s = Add(r, u) [last] y = MatMul(s, v) }"""

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\nagraph '
SPLIT = """ <float[4,4] w, float[4,4] v>
{ k = Constant<value_floats=[1.0, 2.0]>() t = Constant<value_strings=["a", "b"]>()
  a = MatMul(x, w) z = NonZero(a) c = Cast<to=1>(z) s = ReduceSum<keepdims=0>(c) d = Add(a, s) y = MatMul(d, v) }"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tvm")
    write(from_text(NET), folder / "net.onnx")
    driver.compile(folder / "net.onnx", "tvm{threads=1}", folder / "build")
    return folder


def x(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, 8, 8)).astype(np.float32)


def test_the_manifest_proves_the_library(compiled: Path) -> None:
    manifest = json.loads((compiled / "build" / "manifest.json").read_text())
    assert manifest["numerics"]["status"] == "passed"
    assert manifest["main"] == "model.so" and manifest["model"] == "model.onnx"
    assert set(manifest["files"]) == {"model.so", "model.onnx", "plan.json"}
    assert manifest["not_reproducible"] == ["model.so"]
    assert "apache-tvm" in manifest["versions"]


def test_it_runs_as_the_model_does(compiled: Path) -> None:
    feeds = {"x": x()}
    with open_runner(compiled / "net.onnx") as reference, runnable(compiled / "build").open() as runner:
        assert [(spec.name, spec.type, spec.shape) for spec in runner.inputs] == [("x", "tensor(float)", (1, 3, 8, 8))]
        np.testing.assert_allclose(runner.run(feeds)["y"], reference.run(feeds)["y"], rtol=1e-5, atol=1e-6)
        assert len(runner.time(feeds, 3)) == 3 and min(runner.time(feeds, 3)) > 0


def test_taps_show_inner_values(compiled: Path) -> None:
    feeds = {"x": x()}
    with (
        open_runner(compiled / "build" / "model.onnx") as model,
        runnable(compiled / "build").open() as runner,
        model.with_taps(["r"]) as expected,
        runner.with_taps(["r"]) as tapped,
    ):
        assert [spec.name for spec in tapped.outputs] == ["y", "r"]
        np.testing.assert_allclose(tapped.run(feeds)["r"], expected.run(feeds)["r"], rtol=1e-5, atol=1e-5)


def test_verify_compares_an_artifact_with_its_source(compiled: Path) -> None:
    rows = verify_files(compiled / "net.onnx", compiled / "build")
    assert [row["status"] for row in rows] == ["passed"] * len(rows), rows


def test_wrong_feeds_are_refused(compiled: Path) -> None:
    with runnable(compiled / "build").open() as runner:
        with pytest.raises(GraphoptError, match=r"the feed is \[1, 3, 8, 9\]"):
            runner.run({"x": np.zeros((1, 3, 8, 9), np.float32)})
        with pytest.raises(GraphoptError, match=r"the feed is tensor\(double\)"):
            runner.run({"x": np.zeros((1, 3, 8, 8))})
        with pytest.raises(GraphoptError, match="did you mean 'x'"):
            runner.run({"xx": x()})


def test_nodes_that_tvm_lacks_go_to_onnx_runtime(tmp_path: Path) -> None:
    write(from_text(MIXED), tmp_path / "mixed.onnx")
    with pytest.raises(GraphoptError, match=r"does not take 1 of \d+ nodes \(1 Det\).*fallback=onnxruntime"):
        driver.compile(tmp_path / "mixed.onnx", "tvm{threads=1}", tmp_path / "no", Options(repro=None))
    artifact = driver.compile(tmp_path / "mixed.onnx", "tvm{threads=1 fallback=onnxruntime}", tmp_path / "build")
    assert artifact.manifest["numerics"]["status"] == "passed"
    lowering = artifact.report["lowering"]
    assert [part["runtime"] for part in lowering["parts"]] == ["tvm", "onnxruntime", "tvm"]
    r, d = 2 * 4 * 4 * 4, 2 * 4
    assert lowering["boundary_bytes"] == r + r + d  # the second part reads r; the third reads r and d
    assert [item["op"] for item in lowering["fallback"]] == ["Det"]
    with runnable(tmp_path / "build").open() as runner:
        assert list(runner.run({"x": np.ones((2, 4, 4), np.float32)})) == ["y", "d"]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("(float[4,4] x) => (float[4,4] y, float[2] k, string[2] t)" + SPLIT, "tvm{threads=1 fallback=onnxruntime}"),
        ("(float[4,4] x) => (float[4,4] w, float[4,4] x, float[4,4] y)" + SPLIT, "tvm{threads=1 fallback=onnxruntime}"),
        ("(float[4,4] x) => (float[2] k, float[3] w) <float[3] w> { k = Constant<value_floats=[1.0, 2.0]>() }", "tvm"),
        ("() => (float[2] k) { k = Constant<value_floats=[1.0, 2.0]>() }", "tvm"),
        ("(float[4,4] x) => (float[4,4] x) { }", "tvm"),
    ],
)
def test_outputs_that_no_node_computes(text: str, target: str, tmp_path: Path) -> None:
    write(from_text(HEAD + text), tmp_path / "model.onnx")
    artifact = driver.compile(tmp_path / "model.onnx", target, tmp_path / "build", Options(repro=None))
    assert artifact.manifest["numerics"]["status"] == "passed"
    assert (artifact.manifest["main"] == "model.so") == (target == "tvm")
    feeds = {name: np.ones((4, 4), np.float32) for name in ["x"] if "float[4,4] x) =>" in text}
    with open_runner(tmp_path / "model.onnx") as reference, runnable(tmp_path / "build").open() as runner:
        expected, got = reference.run(feeds), runner.run(feeds)
        assert list(got) == list(expected)
        for name in [name for name in expected if name != "y"]:
            np.testing.assert_array_equal(got[name], expected[name])
        assert min(runner.time(feeds, 2)) > 0


def words(*items: str) -> np.ndarray:
    return np.array(items, dtype=object)


def test_text_and_sequences_pass_by_the_library(tmp_path: Path) -> None:
    text = "(float[4,4] x, string[2] s, seq(float[2]) q) => (float[4,4] y, string[2] s) <float[4,4] w> "
    write(from_text(HEAD + text + "{ y = MatMul(x, w) }"), tmp_path / "model.onnx")
    with pytest.raises(GraphoptError, match=r"does not take 's', which is tensor\(string\).*fallback=onnxruntime"):
        driver.compile(tmp_path / "model.onnx", "tvm{threads=1}", tmp_path / "no", Options(repro=None))
    artifact = driver.compile(tmp_path / "model.onnx", "tvm{threads=1 fallback=onnxruntime}", tmp_path / "build")
    assert artifact.manifest["numerics"]["status"] == "passed"
    feeds = {"x": np.ones((4, 4), np.float32), "q": [np.ones(2, np.float32)]}
    with runnable(tmp_path / "build").open() as runner:
        assert [spec.type for spec in runner.inputs] == ["tensor(float)", "tensor(string)", "seq(tensor(float))"]
        for given in (words("a", "b"), np.array(["a", "b"])):
            assert list(runner.run({**feeds, "s": given})["s"]) == ["a", "b"]
        with pytest.raises(GraphoptError, match=r"'s' is tensor\(string\), the feed is tensor\(float\)"):
            runner.run({**feeds, "s": np.ones(2, np.float32)})


def test_a_default_may_be_left_out_or_given(tmp_path: Path) -> None:
    text = "(float[4,4] x, float[4,4] w) => (float[4,4] y) <float[4,4] w> { y = MatMul(x, w) }"
    write(from_text(HEAD + text), tmp_path / "model.onnx")
    artifact = driver.compile(tmp_path / "model.onnx", "tvm{threads=1}", tmp_path / "build", Options(repro=None))
    assert artifact.manifest["numerics"]["status"] == "passed"
    feeds, other = {"x": np.eye(4, dtype=np.float32)}, np.full((4, 4), 2, np.float32)
    with open_runner(tmp_path / "model.onnx") as reference, runnable(tmp_path / "build").open() as runner:
        assert [spec.name for spec in runner.inputs] == ["x"]
        np.testing.assert_allclose(runner.run(feeds)["y"], reference.run(feeds)["y"], rtol=1e-5)
        np.testing.assert_array_equal(runner.run({**feeds, "w": other})["y"], other)
        with pytest.raises(GraphoptError, match="no value is given for input 'x'"):
            runner.run({"w": other})
        assert len(runner.time(feeds, 2)) == 2


def test_verify_runs_the_library_on_either_side(compiled: Path, tmp_path: Path) -> None:
    from graphopt.frontends.onnx import file_hash

    source = (compiled / "net.onnx").read_bytes()
    other = from_text(NET)
    other.graph.initializers["b"].const_value = onnx_ir.tensor(np.full(4, 9, np.float32), name="b")
    write(other, tmp_path / "other.onnx")
    driver.compile(tmp_path / "other.onnx", "tvm{threads=1}", tmp_path / "bad")
    (tmp_path / "bad" / "model.onnx").write_bytes(source)
    manifest = json.loads((tmp_path / "bad" / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = file_hash(tmp_path / "bad" / "model.onnx")
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps(manifest))
    good = compiled / "build"
    for a, b in ((tmp_path / "bad", compiled / "net.onnx"), (tmp_path / "bad", good), (good, tmp_path / "bad")):
        rows = verify_files(a, b)
        assert [row["subject"] for row in rows if row["status"] == "failed"] != [], rows
        assert all("differs by" in row["reason"] for row in rows if row["status"] == "failed"), rows
    assert {row["status"] for row in verify_files(good, compiled / "net.onnx")} == {"passed"}


def test_verify_says_why_code_does_not_run_here(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.targets.tvm.target.Tvm.available", lambda self: "this CPU lacks avx9")
    for pair in ((compiled / "build",), (compiled / "net.onnx", compiled / "build"), (compiled / "build",) * 2):
        rows = [row for row in verify_files(*pair) if row["check"] == "numerics"]
        assert {row["status"] for row in rows} == {"not-checked"}, rows
        assert all("not run on the target (this CPU lacks avx9); it passed on the CPU" in row["reason"] for row in rows)


def test_the_loader_in_the_docs_needs_the_runtime_only(compiled: Path, tmp_path: Path) -> None:
    [snippet] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tvm.md").read_text(), re.MULTILINE | re.DOTALL)
    np.save(tmp_path / "x.npy", x())
    before = 'import numpy\ninputs = [numpy.load("x.npy")]\n'
    after = (
        '\nimport sys\nassert "tvm" not in sys.modules and "graphopt" not in sys.modules\nnp.save("y.npy", arrays[0])\n'
    )
    (tmp_path / "build").symlink_to(compiled / "build")
    (tmp_path / "load.py").write_text(before + snippet + after)
    subprocess.run([sys.executable, "load.py"], cwd=tmp_path, check=True, timeout=120)
    with open_runner(compiled / "net.onnx") as reference:
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), reference.run({"x": x()})["y"], rtol=1e-5, atol=1e-6)


def test_the_example_in_cpp_runs_a_library(compiled: Path, tmp_path: Path) -> None:
    site = sysconfig.get_paths()["purelib"]
    libraries = [f"{site}/tvm_ffi/lib", f"{site}/tvm/lib"]
    command = ["g++", "-std=c++17", str(ROOT / "targets" / "tvm" / "run.cc"), f"-I{site}/tvm_ffi/include"]
    command += [*(f"-L{path}" for path in libraries), "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime"]
    command += [f"-Wl,-rpath,{':'.join(libraries)}", "-o", "run"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    x().tofile(tmp_path / "x.bin")
    library = str(compiled / "build" / "model.so")
    subprocess.run(["./run", library, "float32:1,3,8,8:x.bin"], cwd=tmp_path, check=True, timeout=60)
    with open_runner(compiled / "net.onnx") as reference:
        expected = reference.run({"x": x()})["y"]
    got = np.fromfile(tmp_path / "out0.bin", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_code_for_another_cpu_is_refused_before_it_is_loaded(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads((compiled / "build" / "plan.json").read_text())
    monkeypatch.setattr("graphopt.targets.tvm.machine.cpu_flags", lambda: frozenset({"avx", "avx2", "fma"}))
    with pytest.raises(GraphoptError, match=rf"the code is made for {plan['isa']}, and this CPU lacks .*tvm\{{isa="):
        runnable(compiled / "build").target.load(compiled / "build" / "model.so")


def test_a_missing_cross_compiler_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(GraphoptError, match="apt-get install g\\+\\+-aarch64-linux-gnu"):
        make_target("tvm{device=aarch64}").compile(from_text(NET), tmp_path)


def test_a_damaged_library_is_one_line(compiled: Path, tmp_path: Path) -> None:
    for name in ("plan.json", "model.onnx"):
        (tmp_path / name).write_bytes((compiled / "build" / name).read_bytes())
    (tmp_path / "model.so").write_bytes(b"no library")
    with pytest.raises(GraphoptError, match="TVM cannot load .*model.so"):
        make_target("tvm").load(tmp_path / "model.so")
