"""Saturation-safe weights in ONNX Runtime's real kernels on a CPU without VNNI: this one, or an emulated Haswell.

Where the machine has VNNI and qemu-x86_64 is not installed, there is no such kernel to ask, and the test says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibrating import Calibrating
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.quantization.saturation import saturating_matmul
from graphopt.targets.onnxruntime.isa import SATURATES, resolve

QEMU = shutil.which("qemu-x86_64")
HERE = resolve("auto") in SATURATES

needs_kernel = pytest.mark.skipif(
    not HERE and QEMU is None, reason="this CPU has VNNI; install qemu-user to emulate one without"
)

SCRIPT = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1; options.log_severity_level = 4
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = dict(np.load(sys.argv[2]))
np.savez(sys.argv[3], *session.run(None, feeds))
"""


def run_without_vnni(model: Path, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    """Outputs of a model on a CPU whose u8s8 kernels saturate."""
    np.savez(folder / "feeds.npz", **feeds)
    (folder / "run.py").write_text(SCRIPT)
    emulator = [] if HERE else [str(QEMU), "-cpu", "Haswell"]
    paths = os.pathsep.join(item for item in sys.path if item)
    python = os.path.realpath(sys.executable)
    command = [*emulator, python, "run.py", str(model), "feeds.npz", "out.npz"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    with np.load(folder / "out.npz") as found:
        return [found[name] for name in found.files]


def products(codes: np.ndarray) -> ir.Model:
    """u8 x (4, K) times constant s8 codes, as int32."""
    model = from_text(f"""<ir_version: 10, opset_import: ["": 21]>
    g (uint8[4, {codes.shape[0]}] x) => (int32[4, {codes.shape[1]}] y)
      <int8[{codes.shape[0]}, {codes.shape[1]}] w> {{ y = MatMulInteger (x, w) }}""")
    model.graph.initializers["w"].const_value = ir.Tensor(codes, name="w")
    return model


@needs_kernel
@pytest.mark.parametrize("k", [64, 33])
def test_the_model_of_the_hardware_is_what_the_kernel_does(tmp_path: Path, k: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (k, 16)).astype(np.int8)
    x = rng.integers(100, 256, (4, k)).astype(np.uint8)
    write(products(codes), tmp_path / "m.onnx")
    (got,) = run_without_vnni(tmp_path / "m.onnx", {"x": x}, tmp_path)
    np.testing.assert_array_equal(got, saturating_matmul(x, codes))
    assert (got != x.astype(np.int32) @ codes.astype(np.int32)).any(), "nothing saturates: the test shows nothing"


CONV = """<ir_version: 10, opset_import: ["": 21]>
g (float[1, C, 6, 6] x) => (float[1, 8, 6, 6] y) <float[8, I, 3, 3] w> {
  y = Conv <group = G, pads = [1, 1, 1, 1]> (x, w) }"""


def quantized_conv(channels: int, groups: int, saturation: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    text = CONV.replace("C,", f"{channels},").replace("I,", f"{channels // groups},").replace("= G", f"= {groups}")
    model = from_text(text)
    name_nodes(model)
    # All weights large and of one sign, all inputs at the end of their range: the worst case.
    weights = np.random.default_rng(1).uniform(0.8, 1, (8, channels // groups, 3, 3)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.Tensor(weights, name="w")
    feeds = {"x": np.random.default_rng(2).uniform(0.9, 1, (1, channels, 6, 6)).astype(np.float32)}
    ctx = Context(model, calibration=Calibrating(model, [feeds], folder))
    run(model, parse(f"quantize-static{{method=minmax saturation={saturation}}}"), ctx)
    write(model, folder / "conv.onnx")
    return folder / "conv.onnx", feeds


@needs_kernel
@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 1), (3, 1), (8, 2), (8, 8)], ids=["plain", "odd", "grouped", "dw"]
)
def test_safe_convolutions_compute_the_same_with_and_without_vnni(tmp_path: Path, channels: int, groups: int) -> None:
    import onnxruntime as ort

    path, feeds = quantized_conv(channels, groups, "safe", tmp_path)
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = ort.InferenceSession(path, plain, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    (got,) = run_without_vnni(path, feeds, tmp_path)
    step = np.unique(np.round(np.diff(np.unique(want)), 6)).min(initial=1.0)
    assert np.abs(want - got).max() <= 1.01 * step, "more than one code apart: a sum saturated"


@needs_kernel
def test_unsafe_convolutions_do_not(tmp_path: Path) -> None:
    import onnxruntime as ort

    path, feeds = quantized_conv(8, 1, "ignore", tmp_path)
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = ort.InferenceSession(path, plain, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    (got,) = run_without_vnni(path, feeds, tmp_path)
    assert np.abs(want - got).max() > 0.05 * np.abs(want).max()
