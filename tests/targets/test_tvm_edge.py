"""Kernels for armv7 and riscv64 under qemu-user without TVM's runtime, which has no build there (kernel_harness.c)."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.tvm
pytest.importorskip("tvm")

from graphopt.targets.tvm.machine import Isa, of  # noqa: E402

HARNESS = Path(__file__).parents[1] / "kernel_harness.c"
DEVICES: list[tuple[Isa, str, str]] = [
    ("armv7", "arm-linux-gnueabihf", "qemu-arm"),
    ("riscv64", "riscv64-linux-gnu", "qemu-riscv64"),
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a scheduled function of a device on arrays; skips where its tools are missing."""
    folder = tmp_path_factory.mktemp("edge")

    def run(device: tuple[Isa, str, str], places: list[Any], out: Any, arrays: list[np.ndarray]) -> np.ndarray:
        import tvm
        from tvm import te

        from graphopt.targets.tvm.cpu.dispatch import schedule_function
        from graphopt.targets.tvm.toolchain import linker

        isa, triple, emulator = device
        compiler = f"{triple}-g++"
        if shutil.which(compiler) is None or shutil.which(emulator) is None:
            pytest.skip(f"needs g++-{triple} and qemu-user")
        machine = of(isa, 2)
        program = folder / f"harness-{isa}"
        if not program.exists():
            include = Path(sysconfig.get_paths()["purelib"]) / "tvm_ffi" / "include"
            command = [compiler.replace("g++", "gcc"), "-O1", "-rdynamic", f"-I{include}", str(HARNESS), "-ldl"]
            subprocess.run([*command, "-o", str(program)], check=True)
        function = schedule_function(te.create_prim_func([*places, out]), machine)
        built = tvm.tirx.build(function, target=machine.target())
        built.export_library(str(folder / "kernel.so"), fcompile=linker(triple))
        arguments = []
        for index, array in enumerate(arrays):
            array.tofile(folder / f"{index}.bin")
            arguments.append(f"{','.join(map(str, array.shape))}:{index}.bin")
        shape = [int(dim) for dim in out.shape]
        command = [emulator, "-L", f"/usr/{triple}", str(program), str(folder / "kernel.so"), *arguments]
        subprocess.run([*command, f"{','.join(map(str, shape))}:out.bin"], cwd=folder, check=True, timeout=120)
        return np.fromfile(folder / "out.bin", np.float32).reshape(shape)

    return run


@pytest.mark.parametrize("device", DEVICES, ids=[isa for isa, _, _ in DEVICES])
def test_a_convolution(device: tuple[Isa, str, str], harness: Any) -> None:
    from tvm import te

    from graphopt.targets.tvm.cpu.rules import conv2d

    machine = of(device[0], 2)
    window = conv2d.Window((1, 1), (1, 1), (1, 1, 1, 1), 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 9, 10, 5), "float32")
    weights = rng.standard_normal((11, 5, 3, 3), "float32")
    packed = conv2d.packed(x.shape, weights, window, machine)
    places = [te.placeholder(array.shape, name=name) for array, name in ((x, "x"), (packed, "w"))]
    got = harness(device, places, conv2d.define(*places, window, 11), [x, packed])
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, r : r + 9, s : s + 10] @ weights[:, :, r, s].T for r in range(3) for s in range(3)]
    np.testing.assert_allclose(got, np.sum(taps, axis=0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES, ids=[isa for isa, _, _ in DEVICES])
def test_an_exponential_and_a_softmax(device: tuple[Isa, str, str], harness: Any) -> None:
    from tvm import te, topi

    x = np.random.default_rng(0).standard_normal((3, 29), "float32")
    place = te.placeholder(x.shape, name="x")
    got = harness(device, [place], topi.nn.softmax(place, -1), [x])
    wide = np.exp(x.astype("float64"))
    np.testing.assert_allclose(got, wide / wide.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)
