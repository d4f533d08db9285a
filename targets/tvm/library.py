"""A compiled library in this process: loaded with TVM's runtime alone, run on numpy arrays.

    with_runtime()                                   # libtvm_runtime, once per process
    library = Library(Path("model.so"))
    outputs = library.run([x])

Imports numpy and tvm_ffi, not TVM's compiler: a process starts in a fraction of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError

ALIGNMENT = 64
"""Bytes: generated code loads whole vectors from the start of a buffer."""
_CPU, _POOLED = 1, 2


def with_runtime() -> Any:
    """Load TVM's runtime libraries; return the module tvm_ffi.

    Raises:
        GraphoptError: TVM is not installed.
    """
    try:
        import tvm_ffi
    except ImportError:
        raise GraphoptError('TVM is not installed; install it with: pip install "graphopt[tvm]"') from None
    import ctypes
    from importlib.util import find_spec

    found = find_spec("tvm")
    if found is None or not found.submodule_search_locations:
        raise GraphoptError('TVM is not installed; install it with: pip install "graphopt[tvm]"')
    folder = Path(found.submodule_search_locations[0]) / "lib"
    for name in ("libtvm_runtime.so", "libtvm_runtime_extra.so"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    return tvm_ffi


class Library:
    """One library. `run` takes arrays in the order of its inputs."""

    def __init__(self, path: Path) -> None:
        """Raises GraphoptError when the file is no library of TVM's, or of another version."""
        self._ffi = with_runtime()
        try:
            self._machine = self._ffi.load_module(str(path))["vm_load_executable"]()
            self._machine["vm_initialization"](_CPU, 0, _POOLED)
            self._main = self._machine["main"]
        except Exception as error:  # the runtime raises classes of its own; all mean that it refused the file
            raise GraphoptError(f"TVM cannot load {path}: {first_line(error)}") from error

    def tensor(self, array: np.ndarray) -> Any:
        """A TVM tensor with the contents of an array, aligned as the code expects."""
        return self._ffi.from_dlpack(aligned(array))

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs.

        Raises:
            GraphoptError: the arrays do not fit, or the code failed.
        """
        return [np.array(np.from_dlpack(item)) for item in self.run_tensors([self.tensor(array) for array in arrays])]

    def run_tensors(self, tensors: Sequence[Any]) -> Any:
        try:
            return self._main(*tensors)
        except Exception as error:  # as above
            raise GraphoptError(f"TVM cannot run the model: {first_line(error)}") from error


def aligned(array: np.ndarray) -> np.ndarray:
    """The array itself, or a copy that starts at a multiple of ALIGNMENT bytes; contiguous and writable."""
    array = np.asarray(array)
    fits = array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative
    if fits and array.ctypes.data % ALIGNMENT == 0:
        return array
    native = array.dtype.newbyteorder("=")
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    out = room[start : start + array.nbytes].view(native).reshape(array.shape)
    out[...] = array
    return out


def first_line(error: BaseException) -> str:
    """The message of a TVM error without its backtrace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("File ", "Traceback", "[bt]"))]
    return (told or lines or [type(error).__name__])[-1][:400]


def without_torch() -> None:
    """Spare this process torch, which tvm_ffi imports where it is installed, for a conflict that only Windows has."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
