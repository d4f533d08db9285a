"""Cross-compiling for aarch64: files without the device, and code that runs under qemu-user as the reference does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from graphopt import driver, models
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.registry import make_target
from graphopt.running import runnable
from graphopt.targets.onnxruntime.runner import open_runner
from graphopt.targets.onnxruntime.settings import SessionSettings

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
