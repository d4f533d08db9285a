"""device=cuda without a GPU: a library with device code, whose kernels compute in emulation what the reference does."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from graphopt import driver
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.registry import make_target
from graphopt.running import runnable
from graphopt.targets.tvm.gpu.driver import first_gpu

pytestmark = pytest.mark.tvm
pytest.importorskip("tvm")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs NVIDIA's nvcc")
without_gpu = pytest.mark.skipif(not isinstance(first_gpu(), str), reason="this machine has a GPU")

NET = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,8,9,9] x) => (float[1,5] y) <float[12,8,3,3] w, float[12] b, float[12,5] v>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w, b) [act] r = HardSwish(h) [pool] g = GlobalAveragePool(r)
  [flat] f = Flatten(g) [out] m = MatMul(f, v) [prob] y = Softmax(m) }"""
# Det has no lowering: the middle goes to ONNX Runtime.
MIXED = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[2,4,4] x) => (float[2,4,4] y, float[2] d) <float[4,4] w, float[4,4] v>
{ [first] a = MatMul(x, w) [act] r = Relu(a) [det] d = Det(r) axes = Constant<value_ints=[1, 2]>()
  [wide] u = Unsqueeze(d, axes) [add] s = Add(r, u) [last] y = MatMul(s, v) }"""


def fatbin_entries(library: bytes) -> set[tuple[str, int]]:
    """Kind and architecture of each piece of device code."""
    start = library.index(struct.pack("<I", 0xBA55ED50))
    _, _, header, size = struct.unpack_from("<IHHQ", library, start)
    at, found = start + header, set()
    while at < start + header + size:
        kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, at)
        found.add(({1: "ptx", 2: "elf"}[kind], struct.unpack_from("<I", library, at + 28)[0]))
        at += entry_header + entry_size
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    write(from_text(NET), folder / "net.onnx")
    driver.compile(folder / "net.onnx", "tvm{device=cuda arch=sm_90 emulator=cpu}", folder / "build")
    return folder


@needs_nvcc
def test_kernels_compute_what_the_reference_does(compiled: Path) -> None:
    manifest = json.loads((compiled / "build" / "manifest.json").read_text())
    assert manifest["numerics"]["status"] == "passed"
    assert set(manifest["files"]) == {"model.so", "model.cu", "model.onnx", "plan.json"}


@needs_nvcc
def test_emulated_kernels_have_taps_and_no_times(compiled: Path) -> None:
    feeds = {"x": np.ones((1, 8, 9, 9), np.float32)}
    with runnable(compiled / "build").open() as runner, runner.with_taps(["r"]) as tapped:
        assert list(tapped.run(feeds)) == ["y", "r"]
        with pytest.raises(GraphoptError, match="say nothing"):
            runner.time(feeds, 1)


@needs_nvcc
def test_the_library_holds_device_code_and_no_source(compiled: Path) -> None:
    library = (compiled / "build" / "model.so").read_bytes()
    assert b"__global__" not in library
    assert fatbin_entries(library) == {("elf", 90), ("ptx", 90)}, "machine code, and PTX for newer GPUs"
    plan = json.loads((compiled / "build" / "plan.json").read_text())
    assert (plan["device"], plan["arch"]) == ("cuda", "sm_90")


@needs_nvcc
def test_the_report_says_which_rules_and_what_kernels_use(compiled: Path) -> None:
    [part] = json.loads((compiled / "build" / "report.json").read_text())["lowering"]["parts"]
    assert part["rules"]["contraction"] == 1
    assert sum(part["rules"].values()) <= len(part["kernels"])
    assert all(kernel["spilled"] == 0 and 0 < kernel["registers"] < 256 for kernel in part["kernels"].values())


@needs_nvcc
@without_gpu
def test_without_a_gpu_it_is_compiled_and_not_run(tmp_path: Path) -> None:
    write(from_text(NET), tmp_path / "net.onnx")
    artifact = driver.compile(tmp_path / "net.onnx", "tvm{device=cuda}", tmp_path / "build")
    assert artifact.manifest["numerics"]["status"] == "not-checked"
    assert artifact.manifest["numerics"]["reason"].endswith("it passed on the CPU")
    assert any(note.startswith("compiled, not run: this machine has no NVIDIA") for note in artifact.manifest["notes"])
    with pytest.raises(GraphoptError, match="this machine has no NVIDIA"):
        runnable(tmp_path / "build").open()
    with pytest.raises(GraphoptError, match="made for sm_80: this machine has no NVIDIA"):
        make_target("tvm{device=cuda}").load(artifact.main)


@needs_nvcc
@pytest.mark.parametrize(
    "graph",
    [
        "(float[1,64,32,64] x, bool[1,64,32,64] c) => (float[1,64,32,64] y) { z = Neg(x) y = Where(c, x, z) }",
        "(float[1,64,32,64] x, float[1,64,32,64] z) => (bool[1,64,32,64] y) { y = Greater(x, z) }",
        "(bool[1,64,32,64] x) => (bool[1,64,32,64] y) { y = Not(x) }",
        "(bool[1,64,32,64] x) => (float[1,64,32,64] y) { y = Cast<to=1>(x) }",
    ],
)
def test_bools_of_many_elements(tmp_path: Path, graph: str) -> None:
    write(from_text(f'<ir_version: 10, opset_import: ["" : 21]> bools {graph}'), tmp_path / "net.onnx")
    target = "tvm{device=cuda arch=sm_90 emulator=cpu}"
    artifact = driver.compile(tmp_path / "net.onnx", target, tmp_path / "build", Options(repro=None))
    assert artifact.manifest["numerics"]["status"] == "passed", artifact.report["numerics"]
    assert artifact.report["lowering"]["parts"][0]["rules"] == {"spatial": 1}


@needs_nvcc
def test_parts_for_the_gpu_and_for_onnx_runtime(tmp_path: Path) -> None:
    write(from_text(MIXED), tmp_path / "mixed.onnx")
    target = "tvm{device=cuda arch=sm_90 emulator=cpu fallback=onnxruntime}"
    artifact = driver.compile(tmp_path / "mixed.onnx", target, tmp_path / "build")
    assert artifact.manifest["numerics"]["status"] == "passed"
    assert [part["runtime"] for part in artifact.report["lowering"]["parts"]] == ["tvm", "onnxruntime", "tvm"]


def test_a_missing_nvcc_names_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g++").symlink_to(shutil.which("g++") or "/usr/bin/g++")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(GraphoptError, match="nvcc, which is not on the PATH.*nvidia-cuda-nvcc"):
        make_target("tvm{device=cuda}").compile(from_text(NET), tmp_path)


def test_an_nvcc_that_does_not_know_the_gpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g++").symlink_to(shutil.which("g++") or "/usr/bin/g++")
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho sm_75\necho sm_80\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", os.fspath(tmp_path), prepend=os.pathsep)
    with pytest.raises(GraphoptError, match="does not compile for sm_120; it knows sm_75, sm_80"):
        make_target("tvm{device=cuda arch=sm_120}").compile(from_text(NET), tmp_path)


@needs_nvcc
def test_code_for_a_cpu_has_no_emulation(tmp_path: Path) -> None:
    write(from_text(NET), tmp_path / "net.onnx")
    artifact = driver.compile(tmp_path / "net.onnx", "tvm{threads=1}", tmp_path / "build", Options(numerics="off"))
    with pytest.raises(GraphoptError, match="made for a CPU"):
        make_target("tvm{device=cuda emulator=cpu}").load(artifact.main)
