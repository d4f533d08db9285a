"""Cross-compiling for aarch64: files without the device, and code that runs under qemu-user as the reference does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from graphopt import driver, models
from graphopt.artifact import Artifact
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.registry import make_target
from graphopt.running import runnable
from graphopt.targets.onnxruntime.runner import open_runner
from graphopt.targets.onnxruntime.settings import SessionSettings
from graphopt.targets.tvm.runtime import AARCH64_BYTES, RUNTIME, known_runtime, runtime_for

pytestmark = pytest.mark.tvm
pytest.importorskip("tvm")
cross_compiler = pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="g++-aarch64-linux-gnu")
qemu = pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="needs qemu-user")

NET = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,3,8,8] x) => (float[1,4] y) <float[4,3,3,3] w, float[4] b>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w, b) [act] r = Relu(h) [pool] g = GlobalAveragePool(r)
  [flat] f = Flatten(g) [prob] y = Softmax(f) }"""
CODES = """<ir_version: 10, opset_import: ["" : 21]>
agraph (uint8[1,11,9,9] x) => (uint8[1,18,9,9] y)
<int8[18,11,3,3] w, float s = {0.02}, uint8 z = {77}, float t = {0.00931}, float u = {0.0107}, uint8 p = {120},
 float l = {-0.8}>
{ a = DequantizeLinear(x, s, z) b = DequantizeLinear(w, t) h = Conv<pads=[1,1,1,1]>(a, b) c = Clip(h, l)
  y = QuantizeLinear(c, u, p) }"""
AARCH64 = b"\xb7\x00"
"""e_machine of an ELF file."""


@cross_compiler
def test_it_compiles_without_the_device_and_says_so(tmp_path: Path) -> None:
    write(from_text(NET), tmp_path / "net.onnx")
    artifact = driver.compile(tmp_path / "net.onnx", "tvm{device=aarch64 threads=1}", tmp_path / "build")
    assert artifact.manifest["numerics"]["status"] == "not-checked"
    assert artifact.manifest["numerics"]["reason"].endswith("it passed on the CPU")
    assert any(note.startswith("compiled, not run: this machine is no aarch64") for note in artifact.manifest["notes"])
    assert artifact.main.read_bytes()[18:20] == AARCH64
    with pytest.raises(GraphoptError, match="this machine is no aarch64"):
        runnable(tmp_path / "build").open()
    target = make_target("tvm{device=aarch64}")
    with pytest.raises(GraphoptError, match="made for aarch64"):
        target.load(artifact.main)


@cross_compiler
@qemu
def test_a_bundle_runs_on_the_device_by_itself(tmp_path: Path) -> None:
    write(from_text(NET), tmp_path / "net.onnx")
    target = "tvm{device=aarch64 threads=1 runtime=bundled}"
    artifact = driver.compile(tmp_path / "net.onnx", target, tmp_path / "build", Options(numerics="off"))
    check_size(artifact)
    bundled = {"run", "libtvm_runtime.so", "libtvm_ffi.so"}
    assert bundled < set(artifact.manifest["files"]) and bundled < set(artifact.manifest["not_reproducible"])
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "build/run", "build/model.so", "float32:1,3,8,8:x.bin"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    with open_runner(tmp_path / "net.onnx") as reference:
        expected = reference.run({"x": x})["y"]
    got = np.fromfile(tmp_path / "out0.bin", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def check_size(artifact: Artifact) -> None:
    """The report says what takes the room."""
    size = artifact.report["lowering"]["size"]
    library = artifact.main.read_bytes()
    assert size["files"] == len(library) and b".debug_info" not in library
    assert 4 * 4 * 3 * 3 * 3 <= size["weights"] < 4096
    assert size["code"] == text_bytes(artifact.main)
    assert size["runtime"] == dict(zip(RUNTIME, AARCH64_BYTES, strict=True))


@cross_compiler
@qemu
def test_the_known_size_of_the_runtime_is_that_of_the_wheels() -> None:
    folder = runtime_for("aarch64-linux-gnu")
    assert known_runtime("aarch64-linux-gnu") == tuple((folder / name).stat().st_size for name in RUNTIME)


def text_bytes(library: Path) -> int:
    told = subprocess.run(["aarch64-linux-gnu-size", "-A", library], capture_output=True, text=True, check=True).stdout
    return int(next(line.split()[1] for line in told.splitlines() if line.startswith(".text")))


@pytest.mark.parametrize(
    ("device", "triple", "machine"), [("armv7", "arm-linux-gnueabihf", 40), ("riscv64", "riscv64-linux-gnu", 243)]
)
def test_other_machines_are_compiled_for_and_not_run(device: str, triple: str, machine: int, tmp_path: Path) -> None:
    if shutil.which(f"{triple}-g++") is None:
        pytest.skip(f"needs g++-{triple}")
    write(from_text(NET), tmp_path / "net.onnx")
    artifact = driver.compile(tmp_path / "net.onnx", f"tvm{{device={device} threads=1}}", tmp_path / "build")
    assert artifact.manifest["numerics"]["status"] == "not-checked"
    assert any(note.startswith("compiled, not run: this machine is no") for note in artifact.manifest["notes"])
    assert int.from_bytes(artifact.main.read_bytes()[18:20], "little") == machine
    size = artifact.report["lowering"]["size"]
    assert size["runtime"] is None and 0 < size["code"] < size["files"]


@pytest.mark.slow
@pytest.mark.zoo
@cross_compiler
@qemu
@pytest.mark.parametrize(
    ("name", "shapes"),
    [("ppocr-cls", {"x": (1, 3, 48, 192)}), ("magika", {"bytes": (1, 2048)}), ("mobilenet-v2-export", {})],
)
def test_models_are_verified_under_qemu(name: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    options = Options(input_shapes=shapes, require_numerics=True)
    target = "tvm{device=aarch64 threads=1 emulator=qemu}"
    artifact = driver.compile(models.path(name), target, tmp_path / "build", options)
    assert artifact.manifest["numerics"]["status"] == "passed"


@pytest.mark.slow
@cross_compiler
@qemu
def test_emulated_code_has_taps_and_no_times(tmp_path: Path) -> None:
    write(from_text(NET), tmp_path / "net.onnx")
    driver.compile(tmp_path / "net.onnx", "tvm{device=aarch64 threads=1 emulator=qemu}", tmp_path / "build")
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32)}
    with runnable(tmp_path / "build").open() as runner, runner.with_taps(["r"]) as tapped:
        assert list(tapped.run(feeds)) == ["y", "r"]
        with pytest.raises(GraphoptError, match="say nothing"):
            runner.time(feeds, 1)


@pytest.mark.slow
@cross_compiler
@qemu
@pytest.mark.parametrize("isa", ["neon", "neondot"])
def test_codes_are_those_of_onnx_runtime_under_qemu(isa: str, tmp_path: Path) -> None:
    write(from_text(CODES), tmp_path / "net.onnx")
    options = Options(level=0, numerics="off")
    target = f"tvm{{device=aarch64 isa={isa} threads=1 emulator=qemu}}"
    driver.compile(tmp_path / "net.onnx", target, tmp_path / "build", options)
    feeds = {"x": np.random.default_rng(0).integers(0, 256, (1, 11, 9, 9)).astype(np.uint8)}
    with (
        runnable(tmp_path / "build").open() as ours,
        open_runner(tmp_path / "net.onnx", SessionSettings(), isolate=False) as theirs,
    ):
        got, expected = ours.run(feeds)["y"], theirs.run(feeds)["y"]
    assert np.ptp(got.astype(int)) > 100
    np.testing.assert_array_equal(got, expected)
