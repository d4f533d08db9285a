"""Device code in place of source in the modules that a library imports; needs neither TVM nor nvcc."""

from __future__ import annotations

import struct

import pytest

from graphopt.errors import GraphoptError
from graphopt.targets.tvm.gpu.embedding import Imports
from graphopt.targets.tvm.gpu.emulation import launchers
from graphopt.targets.tvm.gpu.nvcc import Kernel, resources


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


TABLE = (
    number(1) + text(b"f") + text(b"f") + number(2) + b"\x03\x40\x01\x00" * 2 + number(1) + text(b"blockIdx.x")
    + number(2) + bytes(8)
)  # fmt: skip
SOURCE = b'#include <cuda.h>\nextern "C" __global__ void f(float* x) { x[0] = max(x[0], 1.0f); }\n'
TREE = number(3) + number(0) + number(1) + number(1) + number(1) + number(1)


def blob(module: bytes) -> bytes:
    body = TREE + text(b"_lib") + text(b"cuda") + text(module) + text(b"relax.VMExecutable") + text(b"weights")
    return number(len(body)) + body


def test_source_becomes_device_code_and_the_rest_stays() -> None:
    imports = Imports.read(blob(text(b"cuda") + TABLE + text(SOURCE)))
    assert imports.size("relax.VMExecutable") == len(b"weights")
    seen: list[str] = []
    imports.compile_cuda(lambda source: (seen.append(source), b"fatbin of it")[1])
    assert seen == [SOURCE.decode()]
    assert imports.blob() == blob(text(b"fatbin") + TABLE + text(b"fatbin of it"))


def test_device_code_is_left_alone() -> None:
    imports = Imports.read(blob(text(b"cubin") + TABLE + text(b"code")))
    imports.compile_cuda(lambda source: pytest.fail("there is no source"))
    assert imports.blob() == blob(text(b"cubin") + TABLE + text(b"code"))


def test_another_form_is_refused() -> None:
    with pytest.raises(GraphoptError, match="in a form that graphopt does not know"):
        Imports.read(blob(b"")[:-1])
    imports = Imports.read(blob(text(b"cuda") + TABLE + text(SOURCE) + b"more"))
    with pytest.raises(GraphoptError, match="kernels in a form that graphopt does not know"):
        imports.compile_cuda(lambda source: b"")


def test_registers_and_spills_are_read() -> None:
    log = """ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 6400 bytes smem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Used 10 registers, used 0 barriers
"""
    assert resources(log) == {"a": Kernel(40, 8, 6400), "b": Kernel(10, 0, 0)}


def test_kernels_without_barriers_are_known() -> None:
    source = """extern "C" __global__ void __launch_bounds__(64) a(float* __restrict__ x, int n);
extern "C" __global__ void __launch_bounds__(64) a(float* __restrict__ x, int n) { x[n] = 0; }
extern "C" __global__ void b(half* y) { __syncthreads(); }
"""
    lines = launchers(source).splitlines()
    assert lines[0].endswith("{ a((float*)arguments[0], (int)arguments[1]); }") and "graphopt_apart_a" in lines[1]
    assert lines[2].endswith("{ b((half*)arguments[0]); }") and len(lines) == 3
