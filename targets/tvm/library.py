"""A compiled library in this process: loaded with TVM's runtime alone, run on numpy arrays.

    with_runtime()                                   # libtvm_runtime, once per process
    library = Library(Path("model.so"))
    outputs = library.run([x])

Imports numpy and tvm_ffi, not TVM's compiler: a process starts in a fraction of a second.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError

ALIGNMENT = 64
"""Bytes: generated code loads whole vectors from the start of a buffer."""
_CPU, _CUDA, _POOLED = 1, 2, 2


@dataclass(frozen=True)
class Emulation:
    """What stands in for a GPU (gpu/emulation): its runtime, and the kernels of one library; both shared libraries."""

    runtime: str
    kernels: str


def with_runtime() -> Any:
    """Load TVM's runtime libraries; return the module tvm_ffi.

    Raises:
        GraphoptError: TVM is not installed.
    """
    try:
        import tvm_ffi
    except ImportError:
        raise GraphoptError('TVM is not installed; install it with: pip install "graphopt[tvm]"') from None
    for name in ("libtvm_runtime.so", "libtvm_runtime_extra.so"):
        ctypes.CDLL(str(_folder() / name), mode=ctypes.RTLD_GLOBAL)
    return tvm_ffi


def with_cuda() -> None:
    """Load TVM's runtime for CUDA, and the libcudart that it wants, from NVIDIA's package where there is one.

    Raises:
        GraphoptError: a library is missing.
    """
    found = find_spec("nvidia")
    places = found.submodule_search_locations if found is not None and found.submodule_search_locations else ()
    for library in (path for place in places for path in Path(place).glob("*/lib/libcudart.so.13")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(str(_folder() / "libtvm_runtime_cuda.so"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise GraphoptError(
            f"TVM's runtime for CUDA cannot be loaded: {error}; libcudart comes with: pip install nvidia-cuda-runtime"
        ) from None


def _folder() -> Path:
    found = find_spec("tvm")
    if found is None or not found.submodule_search_locations:
        raise GraphoptError('TVM is not installed; install it with: pip install "graphopt[tvm]"')
    return Path(found.submodule_search_locations[0]) / "lib"


# What TVM says where a checked view does not fit (lowering/context.py).
_VIEW = "View with shape"
_DIFFER = (
    "two sizes differ that have to be the same: dynamic dims that broadcast are taken to be equal; "
    "where one of them is 1, bind it with --dim or --input-shapes"
)


class Library:
    """One library. `run` takes arrays in the order of its inputs.

    Args:
        path: the library.
        cuda: its kernels run on the first GPU, or on what stands in for it.
    """

    def __init__(self, path: Path, cuda: bool | Emulation = False) -> None:
        """Raises GraphoptError when the file is no library of TVM's, or of another version."""
        self._ffi = with_runtime()
        self._gpu = self._ffi.device("cuda", 0) if cuda else None
        if isinstance(cuda, Emulation):
            ctypes.CDLL(cuda.runtime, mode=ctypes.RTLD_GLOBAL)
            self._function("graphopt.emulation.kernels")(cuda.kernels)
        elif cuda:
            with_cuda()
        # The CPU comes last in any case: sizes are computed there.
        devices = [*((_CUDA, 0, _POOLED) if cuda else ()), _CPU, 0, _POOLED]
        try:
            self._machine = self._ffi.load_module(str(path))["vm_load_executable"]()
            self._machine["vm_initialization"](*devices)
            self._main = self._machine["main"]
        except Exception as error:  # the runtime raises classes of its own; all mean that it refused the file
            raise GraphoptError(f"TVM cannot load {path}: {first_line(error)}") from error

    def tensor(self, array: np.ndarray) -> Any:
        """A TVM tensor with the contents of an array, aligned as the code expects, on the library's device."""
        tensor = self._ffi.from_dlpack(aligned(array))
        if self._gpu is None:
            return tensor
        there = self._function("runtime.TVMTensorAllocWithScope")(tensor.shape, tensor.dtype, self._gpu, None)
        self._function("runtime.TVMTensorCopyFromTo")(tensor, there)
        self._synchronize()
        return there

    def array(self, tensor: Any) -> np.ndarray:
        """The contents of a tensor of the library's."""
        if self._gpu is None or tensor.device.type == "cpu":
            return np.array(np.from_dlpack(tensor))
        out = np.empty(tuple(tensor.shape), np.dtype(str(tensor.dtype)))
        to_bytes = self._function("runtime.TVMTensorCopyToBytes")
        to_bytes(tensor, ctypes.c_void_p(out.ctypes.data), out.nbytes)
        return out

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs.

        Raises:
            GraphoptError: the arrays do not fit, or the code failed.
        """
        return [self.array(item) for item in self.run_tensors([self.tensor(array) for array in arrays])]

    def run_tensors(self, tensors: Sequence[Any]) -> Any:
        """The outputs as tensors, once they are there."""
        try:
            outputs = self._main(*tensors)
            self._synchronize()
        except Exception as error:  # as above
            reason = _DIFFER if _VIEW in str(error) else first_line(error)
            raise GraphoptError(f"TVM cannot run the model: {reason}") from error
        return outputs

    def _synchronize(self) -> None:
        if self._gpu is not None:
            self._function("runtime.Device_StreamSync")(self._gpu, 0)

    def _function(self, name: str) -> Any:
        return self._ffi.get_global_func(name)


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
