"""Convolutions and products as one tiled matrix product: C[batch, row, col] += A[batch, row, k] * B[batch, col, k].

A convolution's rows are its output positions and its depth the taps of its window (implicit GEMM): elements of A are
read from the input where they lie, padding included, when a block copies its tile to shared memory. Axis kinds are
found by dlight's analysis. Elementwise functions behind join the store.

    for block: for step of depth:
        copy tiles of A and B to shared memory; each thread: registers += A tile * B tile
    store epilogue(registers)
"""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import get_root_block
from tvm.s_tir.dlight.gpu import matmul as dlight

from graphopt.targets.tvm.gpu.spatial import holds_bools
from graphopt.targets.tvm.gpu.split import epilogue, split_depth
from graphopt.targets.tvm.gpu.tiling import TILES, VECTOR, Problem, Tile, best
from graphopt.targets.tvm.machine import Machine

_KIND = dlight.IterKind
_NARROW = 4
"""Rows or columns below which the product is one of a vector, and other rules are better."""


def schedule(function: Any, machine: Machine, choice: tuple[Tile, int] | None = None) -> Any | None:
    """The function with its product tiled, as the model of time chooses or as told; None when it has none, or one with
    dynamic sizes."""
    sch = s_tir.Schedule(function)
    blocks = sch.get_child_blocks(get_root_block(sch))
    mains = dlight.get_reduction_blocks(sch, blocks)
    if mains is None:
        return None
    main = mains[0]
    problem = problem_of(sch.get(main))
    if problem is None or min(problem.rows, problem.cols) < _NARROW:
        return None
    tile, parts = choice or best(problem, TILES, machine.arch)
    depth_last = [depth_is_last(sch.get(main), operand) for operand in range(2)]
    as_product(sch, main, depth_last)
    _tile(sch, main, tile, parts, depth_last, store_vector(function))
    return sch.mod["main"]


def store_vector(function: Any) -> int:
    """Elements that the epilogue of a function handles at once."""
    return 1 if any(tirx.is_buffer_var(param) and holds_bools(param) for param in function.params) else VECTOR


def problem_of(block: Any) -> Problem | None:
    """Sizes of the product that a block computes; None when it is none, or of dynamic sizes."""
    found = dlight.detect_iter_traits(block)
    if found is None:
        return None
    sizes = dict.fromkeys(_KIND, 1)
    for trait in found[3]:
        if not isinstance(trait.extent, tirx.IntImm):
            return None
        sizes[trait.kind] *= int(trait.extent)
    return Problem(sizes[_KIND.kIter_S], sizes[_KIND.kIter_I], sizes[_KIND.kIter_J], sizes[_KIND.kIter_K])


def depth_is_last(block: Any, operand: int) -> bool:
    """Whether neighbours in memory are neighbours along the axis that is summed over."""
    last = block.reads[operand].region[-1].min
    return any(item.var.same_as(last) and item.iter_type == tirx.IterVar.CommReduce for item in block.iter_vars)


def as_product(sch: Any, main: Any, depth_last: list[bool]) -> None:
    """Give the block the axes batch, row, col, depth, and operands with their axes in the order of memory."""
    operands = [sch.reindex(main, ("read", 0)), sch.reindex(main, ("read", 1))]
    result = sch.reindex(main, ("write", 0))
    traits = dlight.detect_iter_traits(sch.get(main))
    assert traits is not None
    batch, row, col, depth = _KIND.kIter_S, _KIND.kIter_I, _KIND.kIter_J, _KIND.kIter_K
    for operand, (block, axis) in enumerate(zip(operands, (row, col), strict=True)):
        order = [batch, axis, depth] if depth_last[operand] else [batch, depth, axis]
        sch.transform_layout(block, ("write", 0), dlight.make_iter_fusion_index_map(traits[operand], order))
    sch.transform_layout(result, ("read", 0), dlight.make_iter_fusion_index_map(traits[2], [batch, row, col]))
    sch.transform_block_layout(main, dlight.make_iter_fusion_index_map(traits[3], [batch, row, col, depth]))


def _tile(sch: Any, main: Any, tile: Tile, parts: int, depth_last: list[bool], stored: int) -> None:
    sch.pad_einsum(main, [1, tile.rows, tile.cols, tile.depth * parts])
    main, final = split_depth(sch, main, parts)
    batch, row, col, depth = sch.get_loops(main)
    block_row, thread_row, rows = sch.split(row, [None, tile.rows // tile.thread_rows, tile.thread_rows])
    block_col, thread_col, cols = sch.split(col, [None, tile.cols // VECTOR, VECTOR])
    step, inner = sch.split(depth, [None, tile.depth])
    sch.reorder(batch, block_row, block_col, thread_row, thread_col, step, inner, rows, cols)
    grid = sch.fuse(batch, block_row)
    thread = sch.fuse(thread_row, thread_col)
    sch.bind(grid, "blockIdx.x")
    sch.bind(block_col, "blockIdx.y")
    sch.bind(thread, "threadIdx.x")
    # nvcc unrolls: loops that TVM unrolls make a source of megabytes.
    sch.annotate(thread, "pragma_auto_unroll_max_step", 0)
    sch.annotate(thread, "pragma_unroll_explicit", 0)
    for loop in (inner, rows, cols):
        sch.unroll(loop)
    store = sch.cache_write(main, 0, "local")
    sch.reverse_compute_at(store, thread, preserve_unit_loops=True)
    for operand in range(2):
        _fetch(sch, main, operand, step, tile, depth_last[operand])
    vector = epilogue(sch, store, final, stored)
    sch.vectorize(sch.split(sch.get_loops(store)[-1], [None, vector])[-1])
    sch.decompose_reduction(main, step)


def _fetch(sch: Any, main: Any, operand: int, step: Any, tile: Tile, depth_last: bool) -> None:
    """A tile of an operand is copied to shared memory by all threads, neighbours by neighbours."""
    block = sch.cache_read(main, operand, "shared")
    sch.compute_at(block, step, preserve_unit_loops=True)
    size = (tile.cols if operand else tile.rows) * tile.depth
    vector = math.gcd(VECTOR, max(1, size // tile.threads))
    loops = sch.get_loops(block)[-3:]
    everything = sch.fuse(*loops)
    _, thread, lanes = sch.split(everything, [None, tile.threads, vector])
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(lanes)
    if depth_last:
        sch.storage_align(block, 0, axis=-2, factor=32, offset=VECTOR)
    dlight.auto_inline_producers(sch, block)
