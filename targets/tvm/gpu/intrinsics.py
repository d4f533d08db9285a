"""Tensor cores as TIR: 16x16x16 products of half-precision matrices in fragments of a warp, added in single precision.

    load("a", transposed=False)     # names for Schedule.tensorize, registered on first use
    product(a_transposed=False, b_transposed=True)

TVM's own package of these parses hundreds, which takes 17 s. Source: CUDA C++ Programming Guide, warp matrix functions.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

SIZE = 16
_SHAPE = (SIZE, SIZE)
OPERANDS, SUMS = "shared", "shared.dyn"
"""Shared memory of operands and of sums. StorageRewrite puts tiles of the same scope over each other, also of different
types, and then fails on pointers to them."""


def _fragment(buffer: Any, stride: Any) -> Any:
    """Number of a fragment in a buffer of them whose rows have so many elements."""
    row, rest = buffer.elem_offset // stride // SIZE, buffer.elem_offset % stride
    return row * (stride // SIZE) + rest // SIZE


@functools.cache
def load(operand: str, transposed: bool) -> str:
    """Shared memory to a fragment of operand `a` or `b`; `transposed` where its depth is not its columns for `a`, its
    rows for `b`."""
    scope, layout = f"wmma.matrix_{operand}", "col_major" if transposed else "row_major"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def what(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, _SHAPE, "float16", align=64, offset_factor=SIZE, scope=OPERANDS)
        C = T.match_buffer(c, _SHAPE, "float16", align=64, offset_factor=SIZE, scope=scope)
        with T.sblock("root"):
            T.reads(A[0:SIZE, 0:SIZE])
            T.writes(C[0:SIZE, 0:SIZE])
            for i, j in T.grid(SIZE, SIZE):
                with T.sblock("load"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = A[vi, vj]

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def how(a: T.handle, c: T.handle) -> None:
        s1 = T.int32()
        s0 = T.int32()
        d1 = T.int32()
        d0 = T.int32()
        A = T.match_buffer(a, _SHAPE, "float16", align=64, offset_factor=SIZE, scope=OPERANDS, strides=[s1, s0])
        C = T.match_buffer(c, _SHAPE, "float16", align=64, offset_factor=SIZE, scope=scope, strides=[d1, d0])
        with T.sblock("root"):
            T.reads(A[0:SIZE, 0:SIZE])
            T.writes(C[0:SIZE, 0:SIZE])
            T.evaluate(
                T.tvm_load_matrix_sync(
                    C.data, SIZE, SIZE, SIZE, _fragment(C, d1), A.access_ptr("r", ptr_type="float16"), s1, layout,
                    dtype="void",
                )
            )  # fmt: skip

    return _registered(f"graphopt_load_{operand}_{layout}", what, how)


@functools.cache
def fill() -> str:
    """Zero a fragment of sums."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def what(c: T.handle) -> None:
        C = T.match_buffer(c, _SHAPE, "float32", align=64, offset_factor=SIZE, scope="wmma.accumulator")
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:SIZE, 0:SIZE])
            for i, j in T.grid(SIZE, SIZE):
                with T.sblock("init"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = T.float32(0)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def how(c: T.handle) -> None:
        d1 = T.int32()
        d0 = T.int32()
        C = T.match_buffer(
            c, _SHAPE, "float32", align=64, offset_factor=SIZE, scope="wmma.accumulator", strides=[d1, d0]
        )
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:SIZE, 0:SIZE])
            T.evaluate(T.tvm_fill_fragment(C.data, SIZE, SIZE, SIZE, _fragment(C, d1), T.float32(0), dtype="void"))

    return _registered("graphopt_fill", what, how)


@functools.cache
def store() -> str:
    """A fragment of sums to shared memory."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def what(a: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, _SHAPE, "float32", align=64, offset_factor=SIZE, scope="wmma.accumulator")
        C = T.match_buffer(c, _SHAPE, "float32", align=64, offset_factor=SIZE, scope=SUMS)
        with T.sblock("root"):
            T.reads(A[0:SIZE, 0:SIZE])
            T.writes(C[0:SIZE, 0:SIZE])
            for i, j in T.grid(SIZE, SIZE):
                with T.sblock("store"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    C[vi, vj] = A[vi, vj]

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def how(a: T.handle, c: T.handle) -> None:
        s1 = T.int32()
        s0 = T.int32()
        d1 = T.int32()
        d0 = T.int32()
        A = T.match_buffer(
            a, _SHAPE, "float32", align=64, offset_factor=SIZE, scope="wmma.accumulator", strides=[d1, d0]
        )
        C = T.match_buffer(c, _SHAPE, "float32", align=64, offset_factor=SIZE, scope=SUMS, strides=[s1, s0])
        with T.sblock("root"):
            T.reads(A[0:SIZE, 0:SIZE])
            T.writes(C[0:SIZE, 0:SIZE])
            T.evaluate(
                T.tvm_store_matrix_sync(
                    A.data, SIZE, SIZE, SIZE, _fragment(A, d1), C.access_ptr("w", ptr_type="float32"), s1, "row_major",
                    dtype="void",
                )
            )  # fmt: skip

    return _registered("graphopt_store", what, how)


@functools.cache
def product(a_transposed: bool, b_transposed: bool) -> str:
    """Sums += A * B; a transposed operand lies with its axes exchanged."""

    def a_index(row: Any, depth: Any) -> Any:
        return (depth, row) if a_transposed else (row, depth)

    def b_index(depth: Any, col: Any) -> Any:
        return (col, depth) if b_transposed else (depth, col)

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def what(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, _SHAPE, "float16", align=64, offset_factor=SIZE, scope="wmma.matrix_a")
        B = T.match_buffer(b, _SHAPE, "float16", align=64, offset_factor=SIZE, scope="wmma.matrix_b")
        C = T.match_buffer(c, _SHAPE, "float32", align=64, offset_factor=SIZE, scope="wmma.accumulator")
        with T.sblock("root"):
            T.reads(C[0:SIZE, 0:SIZE], A[0:SIZE, 0:SIZE], B[0:SIZE, 0:SIZE])
            T.writes(C[0:SIZE, 0:SIZE])
            for i, j, k in T.grid(SIZE, SIZE, SIZE):
                with T.sblock(""):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    a0, a1 = T.meta_var(a_index(vi, vk))
                    b0, b1 = T.meta_var(b_index(vk, vj))
                    C[vi, vj] = C[vi, vj] + T.Cast("float32", A[a0, a1]) * T.Cast("float32", B[b0, b1])

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def how(a: T.handle, b: T.handle, c: T.handle) -> None:
        a1 = T.int32()
        a0 = T.int32()
        b1 = T.int32()
        b0 = T.int32()
        c1 = T.int32()
        c0 = T.int32()
        A = T.match_buffer(a, _SHAPE, "float16", align=64, offset_factor=SIZE, scope="wmma.matrix_a", strides=[a1, a0])
        B = T.match_buffer(b, _SHAPE, "float16", align=64, offset_factor=SIZE, scope="wmma.matrix_b", strides=[b1, b0])
        C = T.match_buffer(
            c, _SHAPE, "float32", align=64, offset_factor=SIZE, scope="wmma.accumulator", strides=[c1, c0]
        )
        with T.sblock("root"):
            T.reads(C[0:SIZE, 0:SIZE], A[0:SIZE, 0:SIZE], B[0:SIZE, 0:SIZE])
            T.writes(C[0:SIZE, 0:SIZE])
            T.evaluate(
                T.tvm_mma_sync(
                    C.data, _fragment(C, c1), A.data, _fragment(A, a1), B.data, _fragment(B, b1), C.data,
                    _fragment(C, c1), dtype="void",
                )
            )  # fmt: skip

    return _registered(f"graphopt_product_{'t' if a_transposed else 'n'}{'t' if b_transposed else 'n'}", what, how)


def _registered(name: str, what: Any, how: Any) -> str:
    TensorIntrin.register(name, what, how, override=True)
    return name
