"""Runs scheduled functions of another instruction set under qemu-user, without TVM's runtime (kernel_harness.c)."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.targets.tvm.machine import Isa, of

HARNESS = Path(__file__).parent / "kernel_harness.c"
_EMULATORS = {"aarch64": "qemu-aarch64", "arm": "qemu-arm", "riscv64": "qemu-riscv64"}


def emulated(isa: Isa, places: Sequence[Any], out: Any, arrays: Sequence[np.ndarray], folder: Path) -> np.ndarray:
    """Schedule, build and run a TE expression; skips where the compiler or the emulator is missing."""
    import tvm
    from tvm import te

    from graphopt.targets.tvm.cpu.dispatch import schedule_function
    from graphopt.targets.tvm.toolchain import linker

    machine = of(isa, 2)
    triple = machine.triple
    compiler, emulator = f"{triple}-gcc", _EMULATORS[triple.partition("-")[0]]
    if shutil.which(f"{triple}-g++") is None or shutil.which(emulator) is None:
        pytest.skip(f"needs g++-{triple} and qemu-user")
    program = folder / f"harness-{triple}"
    if not program.exists():
        include = Path(sysconfig.get_paths()["purelib"]) / "tvm_ffi" / "include"
        command = [compiler, "-O1", "-rdynamic", f"-I{include}", str(HARNESS), "-ldl"]
        subprocess.run([*command, "-o", str(program)], check=True)
    function = schedule_function(te.create_prim_func([*places, out]), machine)
    tvm.tirx.build(function, target=machine.target()).export_library(str(folder / "kernel.so"), fcompile=linker(triple))
    arguments = []
    for index, array in enumerate(arrays):
        array.tofile(folder / f"{index}.bin")
        arguments.append(_argument(array.dtype, array.shape, f"{index}.bin"))
    shape, kind = [int(dim) for dim in out.shape], np.dtype(str(out.dtype))
    command = [emulator, "-L", f"/usr/{triple}", str(program), str(folder / "kernel.so"), *arguments]
    subprocess.run([*command, _argument(kind, shape, "out.bin")], cwd=folder, check=True, timeout=120)
    return np.fromfile(folder / "out.bin", kind).reshape(shape)


def _argument(kind: Any, shape: Sequence[int], file: str) -> str:
    return f"{kind.kind}{8 * kind.itemsize}:{','.join(map(str, shape))}:{file}"
