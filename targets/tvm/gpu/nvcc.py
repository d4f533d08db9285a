"""CUDA source to device code with nvcc: machine code for one GPU, and PTX that newer ones translate when it is loaded.

    binary = compile_source(source, "sm_90")
    binary.code                                 # a fatbin, for cuModuleLoadData
    binary.kernels["conv2d_kernel"].registers   # what ptxas says of each kernel

Rounding is IEEE's: no fast math, denormals kept. Not here: where the source comes from.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import GraphoptError

NVCC_SECONDS = 1200.0
"""A run of nvcc that takes longer is stopped."""


@dataclass(frozen=True)
class Kernel:
    """What ptxas tells of one kernel: registers of a thread, bytes spilled to memory, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Binary:
    """Device code, and its kernels by name."""

    code: bytes
    kernels: dict[str, Kernel]


def nvcc(arch: str) -> str:
    """The compiler, after a look at whether it knows the GPU.

    Raises:
        GraphoptError: it is not installed, or of a version that does not know the GPU; says what to do.
    """
    found = shutil.which("nvcc")
    if found is None:
        raise GraphoptError(
            f"compiling for {arch} needs NVIDIA's nvcc, which is not on the PATH: install the CUDA toolkit "
            "(pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime brings its parts)"
        )
    told = subprocess.run([found, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    if told and arch not in told:
        raise GraphoptError(f"{found} does not compile for {arch}; it knows {', '.join(told)}")
    return found


def compile_source(source: str, arch: str) -> Binary:
    """Compile CUDA C++.

    Args:
        source: kernels as `extern "C" __global__` functions.
        arch: `sm_90` and the like.

    Raises:
        GraphoptError: as `nvcc`, or it refuses the source or takes too long.
    """
    number = arch.removeprefix("sm_")
    codes = [f"-gencode=arch=compute_{number},code={code}_{number}" for code in ("sm", "compute")]
    with tempfile.TemporaryDirectory(prefix="graphopt-nvcc-") as name:
        folder = Path(name)
        (folder / "kernels.cu").write_text(source, encoding="utf-8")
        command = [nvcc(arch), "--fatbin", "-O3", "-std=c++17", *codes, "-Xptxas=-v", "-diag-suppress=177"]
        try:
            done = subprocess.run(
                [*command, "-o", "kernels.fatbin", "kernels.cu"],
                cwd=folder, capture_output=True, text=True, timeout=NVCC_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise GraphoptError(f"nvcc took over {NVCC_SECONDS:g} s and was stopped") from None
        if done.returncode != 0:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line] or ["no message"]
            raise GraphoptError(f"nvcc cannot compile the kernels: {lines[0][:300]}")
        return Binary((folder / "kernels.fatbin").read_bytes(), resources(done.stderr + done.stdout))


def resources(log: str) -> dict[str, Kernel]:
    """Read what `ptxas -v` prints."""
    kernels = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        used, spilled, shared = (
            re.search(pattern, part)
            for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes smem")
        )
        numbers = [int(found[1]) if found else 0 for found in (used, spilled, shared)]
        kernels[part.partition("'")[0]] = Kernel(*numbers)
    return kernels
