"""Artifacts of the tvm target: compiled, verified, run, timed, tapped; the loaders of docs/tvm.md; refusals."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
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
from graphopt.frontends.onnx import file_hash
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
    with pytest.raises(
        GraphoptError, match=r"does not take 's' as input or output: it is tensor\(string\).*fallback=onnx"
    ):
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


def test_code_of_a_stronger_machine_is_not_checked(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target in the manifest has isa=auto, which is another one here: the plan says which it was."""
    shutil.copytree(compiled / "build", tmp_path / "build")
    plan = tmp_path / "build" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "isa": "avx512vpopcntdq"}))
    manifest = json.loads((tmp_path / "build" / "manifest.json").read_text())
    manifest["files"]["plan.json"] = file_hash(plan)
    (tmp_path / "build" / "manifest.json").write_text(json.dumps(manifest))
    lacking = {"avx512vpopcntdq": ("avx9",)}
    monkeypatch.setattr("graphopt.targets.tvm.machine.missing_flags", lambda isa: lacking.get(isa, ()))
    rows = [row for row in verify_files(compiled / "net.onnx", tmp_path / "build") if row["check"] == "numerics"]
    assert [row["status"] for row in rows] == ["not-checked"], rows
    assert "not run on the target (this CPU lacks avx9" in rows[0]["reason"]
    with pytest.raises(GraphoptError, match="cannot be run here: this CPU lacks avx9"):
        runnable(tmp_path / "build").open()


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


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.cc, compiled as docs/tvm.md says."""
    folder = tmp_path_factory.mktemp("program")
    site = sysconfig.get_paths()["purelib"]
    libraries = [f"{site}/tvm_ffi/lib", f"{site}/tvm/lib"]
    command = ["g++", "-std=c++17", str(ROOT / "targets" / "tvm" / "run.cc"), f"-I{site}/tvm_ffi/include"]
    command += [*(f"-L{path}" for path in libraries), "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime", "-ldl"]
    command += [f"-Wl,-rpath,{':'.join(libraries)}", "-o", "run"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return folder / "run"


def run_in(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_example_in_cpp_runs_a_library(compiled: Path, program: Path, tmp_path: Path) -> None:
    x().tofile(tmp_path / "x.bin")
    done = run_in(tmp_path, program, compiled / "build" / "model.so", "float32:1,3,8,8:x.bin")
    assert done.returncode == 0, done.stderr
    with open_runner(compiled / "net.onnx") as reference:
        expected = reference.run({"x": x()})["y"]
    got = np.fromfile(tmp_path / "out0.bin", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "given, message",
    [
        ("float32:a,8:x.bin", "'a' is no size; an input is dtype:dims:file"),
        ("float32:1,-8:x.bin", "'-8' is no size"),
        ("float32:1,:x.bin", "'' is no size"),
        ("float32:9999999999,9999999999:x.bin", "these sizes are too large"),
        ("float32:1,3,8,8", "an input is dtype:dims:file"),
        ("float32:1,3,8,9:x.bin", "x.bin has 768 bytes, and float32:1,3,8,9 has 864"),
        ("float32:1,3,8,7:x.bin", "x.bin has 768 bytes, and float32:1,3,8,7 has 672"),
        ("float32:1,3,8,8:y.bin", "cannot open y.bin"),
    ],
)
def test_the_example_in_cpp_refuses_bad_input(
    given: str, message: str, compiled: Path, program: Path, tmp_path: Path
) -> None:
    x().tofile(tmp_path / "x.bin")
    done = run_in(tmp_path, program, compiled / "build" / "model.so", given)
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "out0.bin").exists()
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_example_in_cpp_tells_what_it_cannot_write(compiled: Path, program: Path, tmp_path: Path) -> None:
    x().tofile(tmp_path / "x.bin")
    (tmp_path / "out0.bin").mkdir()
    done = run_in(tmp_path, program, compiled / "build" / "model.so", "float32:1,3,8,8:x.bin")
    assert done.returncode == 1 and done.stdout == "" and "cannot write out0.bin" in done.stderr


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates an x86 CPU without AVX2")
def test_the_example_in_cpp_refuses_a_cpu_without_the_instructions(
    compiled: Path, program: Path, tmp_path: Path
) -> None:
    x().tofile(tmp_path / "x.bin")
    isa = json.loads((compiled / "build" / "plan.json").read_text())["isa"]
    library = compiled / "build" / "model.so"
    done = run_in(tmp_path, "qemu-x86_64", "-cpu", "Nehalem", program, library, "float32:1,3,8,8:x.bin")
    assert done.returncode == 1 and f"model.so is made for {isa}, and this CPU lacks avx2 " in done.stderr


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


BROADCAST = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[n,k] x, float[m,l] z) => (float[p,q] y) { y = Add(x, z) }"""


def test_dims_that_broadcast_have_to_be_equal(tmp_path: Path) -> None:
    write(from_text(BROADCAST), tmp_path / "model.onnx")
    done = driver.compile(tmp_path / "model.onnx", "tvm{threads=1}", tmp_path / "build", Options(numerics="off"))
    assert any("dims n and m broadcast and are taken to be equal" in note for note in done.manifest["notes"])
    with runnable(tmp_path / "build").open() as runner:

        def run(left: tuple[int, int], right: tuple[int, int]) -> None:
            feeds = {"x": np.ones(left, np.float32), "z": np.ones(right, np.float32)}
            np.testing.assert_array_equal(runner.run(feeds)["y"], np.full(left, 2, np.float32))

        run((3, 4), (3, 4))
        for left, right in (((1, 4), (3, 4)), ((3, 4), (1, 4)), ((2, 3), (3, 2)), ((3, 2), (2, 3)), ((2, 4), (3, 4))):
            with pytest.raises(GraphoptError, match="two sizes differ that have to be the same"):
                run(left, right)


DIVIDES = """<ir_version: 10, opset_import: ["" : 21]>
agraph (int32[5] x, int32[5] z, uint8[5] u, uint8[5] v) => (int32[5] q, int32[5] r, int32[5] f, uint8[5] p)
{ q = Div(x, z) r = Mod(x, z) f = Mod<fmod=1>(x, z) p = Div(u, v) }"""


def test_integers_that_processors_do_not_divide_do_not_end_the_process(tmp_path: Path) -> None:
    write(from_text(DIVIDES), tmp_path / "model.onnx")
    driver.compile(tmp_path / "model.onnx", "tvm{threads=1}", tmp_path / "build", Options(numerics="off"))
    least = np.iinfo(np.int32).min
    feeds = {
        "x": np.array([7, least, 7, -7, -7], np.int32),
        "z": np.array([0, -1, -1, 2, -2], np.int32),
        "u": np.array([200, 0, 7, 8, 9], np.uint8),
        "v": np.array([0, 0, 255, 2, 1], np.uint8),
    }
    with runnable(tmp_path / "build").open() as runner:
        made = runner.run(feeds)
    assert made["q"].tolist() == [0, least, -7, -3, 3]
    assert made["r"].tolist() == [0, 0, 0, 1, -1] and made["f"].tolist() == [0, 0, 0, -1, -1]
    assert made["p"].tolist() == [0, 0, 0, 4, 9]
