"""Products of half-precision operands on tensor cores, added in single precision; the shape of contraction.py's nest.

for block: for step of depth:
    copy tiles of A and B to shared memory; each warp: fragments of sums += fragments of A * fragments of B
fragments to shared memory; store epilogue(shared memory) by all threads
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import s_tir
from tvm.s_tir.dlight.analysis import get_root_block
from tvm.s_tir.dlight.gpu import matmul as dlight

from graphopt.targets.tvm.gpu import intrinsics
from graphopt.targets.tvm.gpu.contraction import as_product, depth_is_last, problem_of, store_vector
from graphopt.targets.tvm.gpu.intrinsics import SIZE
from graphopt.targets.tvm.gpu.split import epilogue, split_depth
from graphopt.targets.tvm.gpu.tiling import best
from graphopt.targets.tvm.machine import Machine

_WARP = 32
_VECTOR = 8
"""Half-precision elements that a thread copies at once."""


@dataclass(frozen=True)
class Warps:
    """A block has warp_rows x warp_cols warps, each with fragments of frag_rows x frag_cols; costs as tiling.py has."""

    warp_rows: int
    warp_cols: int
    frag_rows: int
    frag_cols: int
    latency: float
    work: float
    resident: int
    depth: int = 32

    @property
    def rows(self) -> int:
        return self.warp_rows * self.frag_rows * SIZE

    @property
    def cols(self) -> int:
        return self.warp_cols * self.frag_cols * SIZE

    @property
    def threads(self) -> int:
        return self.warp_rows * self.warp_cols * _WARP


CHOICES = (
    Warps(2, 2, 4, 2, 0.550, 0.321, 4),
    Warps(2, 4, 2, 2, 0.521, 0.337, 3),
    Warps(2, 2, 2, 2, 0.596, 0.206, 6),
    Warps(2, 2, 2, 1, 0.352, 0.203, 9),
    Warps(2, 2, 1, 1, 0.260, 0.124, 11),
    Warps(1, 2, 1, 1, 0.282, 0.090, 23),
)
"""From large to small."""


def schedule(function: Any, machine: Machine, choice: tuple[Warps, int] | None = None) -> Any | None:
    """The function with its product on tensor cores, as the model of time chooses or as told; None when it has none of
    halves, or a small one."""
    sch = s_tir.Schedule(function)
    blocks = sch.get_child_blocks(get_root_block(sch))
    mains = dlight.get_reduction_blocks(sch, blocks)
    if mains is None:
        return None
    main = mains[0]
    problem = problem_of(sch.get(main))
    if problem is None or min(problem.rows, problem.cols, problem.depth) < SIZE or not _of_halves(sch.get(main)):
        return None
    depth_last = [depth_is_last(sch.get(main), operand) for operand in range(2)]
    as_product(sch, main, depth_last)
    warps, parts = choice or best(problem, CHOICES, machine.arch)
    _tile(sch, main, warps, parts, depth_last, store_vector(function))
    return sch.mod["main"]


def _of_halves(block: Any) -> bool:
    reads = [str(region.source.ty.dtype) for region in block.reads]
    return reads == ["float16", "float16"] and str(block.writes[0].source.ty.dtype) == "float32"


def _tile(sch: Any, main: Any, warps: Warps, parts: int, depth_last: list[bool], stored: int) -> None:
    rows, cols = warps.rows, warps.cols
    sch.pad_einsum(main, [1, rows, cols, warps.depth * parts])
    main, final = split_depth(sch, main, parts)
    batch, row, col, depth = sch.get_loops(main)
    row, row_in = sch.split(row, [None, SIZE])
    col, col_in = sch.split(col, [None, SIZE])
    depth, depth_in = sch.split(depth, [None, SIZE])
    sch.reorder(batch, row, col, depth, row_in, col_in, depth_in)
    outer = sch.blockize(row_in)
    block_row, warp_row, frag_row = sch.split(row, [None, warps.warp_rows, warps.frag_rows])
    block_col, warp_col, frag_col = sch.split(col, [None, warps.warp_cols, warps.frag_cols])
    step, part = sch.split(depth, [None, warps.depth // SIZE])
    sch.reorder(batch, block_row, block_col, warp_row, warp_col, step, part, frag_row, frag_col)
    sch.bind(sch.fuse(batch, block_row), "blockIdx.x")
    sch.bind(block_col, "blockIdx.y")
    warp = sch.fuse(warp_row, warp_col)
    sch.bind(warp, "threadIdx.y")
    for loop in (part, frag_row, frag_col):
        sch.unroll(loop)
    sch.annotate(warp, "pragma_auto_unroll_max_step", 0)
    sch.annotate(warp, "pragma_unroll_explicit", 0)
    for operand in range(2):
        copy = sch.cache_read(outer, operand, intrinsics.OPERANDS)
        sch.compute_at(copy, step, preserve_unit_loops=True)
        _share(sch, copy, warps, (cols if operand else rows) * warps.depth, _VECTOR)
        sch.storage_align(copy, 0, axis=-2, factor=16, offset=_VECTOR)
        dlight.auto_inline_producers(sch, copy)
    fragments = [sch.cache_read(outer, operand, f"wmma.matrix_{'ab'[operand]}") for operand in range(2)]
    for fragment in fragments:
        sch.compute_at(fragment, part, preserve_unit_loops=True)
    result = sch.cache_write(outer, 0, intrinsics.SUMS)
    sch.storage_align(result, 0, axis=-2, factor=16, offset=4)
    sums = sch.cache_write(outer, 0, "wmma.accumulator")
    sch.reverse_compute_at(sums, warp, preserve_unit_loops=True)
    sch.reverse_compute_at(result, block_col, preserve_unit_loops=True)
    start = sch.decompose_reduction(outer, step)
    transposed = [not depth_last[0], depth_last[1]]
    for fragment, name, flag in zip(fragments, "ab", transposed, strict=True):
        sch.tensorize(_cut(sch, fragment), intrinsics.load(name, flag))
    sch.tensorize(sch.get_loops(sch.get_child_blocks(start)[0])[-2], intrinsics.fill())
    sch.tensorize(_cut(sch, sums), intrinsics.store())
    sch.tensorize(sch.get_loops(main)[-3], intrinsics.product(*transposed))
    _share(sch, result, warps, rows * cols, epilogue(sch, result, final, stored))


def _share(sch: Any, block: Any, warps: Warps, size: int, vector: int) -> None:
    """Let all threads of a block copy a tile together."""
    vector = math.gcd(vector, max(1, size // warps.threads))
    fused = sch.fuse(*sch.get_loops(block)[-3:])
    _, warp, lane, elements = sch.split(fused, [None, warps.threads // _WARP, _WARP, vector])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(elements)


def _cut(sch: Any, block: Any) -> Any:
    """Cut a copy into fragments; return the loop over the rows of one."""
    row, col = sch.get_loops(block)[-2:]
    rows, row = sch.split(row, [None, SIZE])
    cols, col = sch.split(col, [None, SIZE])
    sch.reorder(rows, cols, row, col)
    sch.unroll(rows)
    sch.unroll(cols)
    return row
