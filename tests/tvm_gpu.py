"""Compiles Relax functions for a GPU and runs them in emulation, for the tests of targets/tvm/gpu."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tvm_kernels import Build, module, run

from graphopt.targets.tvm.gpu.emulation import without_nvcc

ARCH = "sm_90"
_RUN = """
import sys
import numpy as np
from pathlib import Path
from graphopt.targets.tvm.library import Emulation, Library, without_torch

without_torch()
path = Path(sys.argv[1])
library = Library(path, Emulation(*sys.argv[2:4]))
x = library.tensor(np.load(path.parent / "x.npy"))
np.save(path.parent / "y.npy", library.array(library.run_tensors([x])))
"""


def check(
    build: Build, shape: Sequence[int], x: np.ndarray | None = None, expected: np.ndarray | None = None
) -> dict[str, int]:
    """Compare with what is expected, or with TVM's code for CPUs; return how many functions each rule scheduled.

    nvcc is left out: what it makes of the source is not run here.
    """
    from graphopt.targets.tvm.build import build as build_library
    from graphopt.targets.tvm.build import scheduled
    from graphopt.targets.tvm.machine import gpu

    if x is None:
        x = np.random.default_rng(0).standard_normal(tuple(shape), "float32")
    if expected is None:
        expected = run(module(build, shape), x, "llvm")
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "model.so"
        told = build_library(module(build, shape), gpu(ARCH), library, scheduled, without_nvcc)
        results = [emulated(library, x, order) for order in ("forward", "reverse")]
    scale = max(1.0, float(np.nanmax(np.abs(expected), where=np.isfinite(expected), initial=0.0)))
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=3e-5 * scale)
    np.testing.assert_array_equal(results[0], results[1], "a result that depends on the order of threads: a race")
    return told.rules


def emulated(library: Path, x: np.ndarray, order: str) -> np.ndarray:
    """Run a library in a process of its own, which a wrong kernel may crash."""
    from graphopt.targets.tvm.gpu.emulation import compile_kernels, runtime_library

    kernels = library.with_suffix(".kernels.so")
    if not kernels.exists():
        compile_kernels(library.with_suffix(".cu"), library.parent)
    np.save(library.parent / "x.npy", x)
    arguments = [str(library), str(runtime_library()), str(kernels)]
    environment = {**os.environ, "GRAPHOPT_EMULATION_ORDER": order}
    command = [sys.executable, "-c", _RUN, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    out: Any = np.load(library.parent / "y.npy")
    return out
