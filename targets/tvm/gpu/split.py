"""The sum of a product cut into parts that different blocks add: where rows and columns give too few blocks.

    for part, batch, row, col: partial[part, batch, row, col] = sum over a part of the depth   # tiled by the caller
    for batch, row, col: epilogue(sum of partial[:, batch, row, col])                          # a second kernel

The order of additions is fixed: no atomics.
"""

from __future__ import annotations

from typing import Any

from tvm.s_tir.dlight.gpu import matmul as dlight

from graphopt.targets.tvm.gpu.tiling import VECTOR

_THREADS = 128


def split_depth(sch: Any, main: Any, parts: int) -> tuple[Any, Any | None]:
    """Cut the depth of a block (batch, row, col, depth), a multiple of `parts`.

    Returns:
        The block of the partial sums, whose batch is parts x batch, and the one that adds them; the block itself and
        None where there is one part.
    """
    if parts == 1:
        return main, None
    _, _, _, depth = sch.get_loops(main)
    part, _ = sch.split(depth, [parts, None])
    partial = sch.rfactor(part, 0)
    batch, row, col, part, depth = sch.get_loops(partial)
    sch.reorder(part, batch, row, col, depth)
    sch.fuse(part, batch)
    return partial, main


def epilogue(sch: Any, store: Any, final: Any | None, stored: int) -> int:
    """Bring the functions behind a product to where its results are stored, or to where its parts are added.

    Args:
        store: the block that stores the tiles of `split_depth`'s first block.
        final: its second.
        stored: columns that these functions handle at once, one or four.

    Returns:
        Columns that `store` may handle at once.
    """
    if final is None:
        dlight.auto_inline_consumer_chain(sch, store)
        return stored
    _add_parts(sch, final, stored)
    return VECTOR


def _add_parts(sch: Any, final: Any, stored: int) -> None:
    batch, row, col, part = sch.get_loops(final)
    col, lanes = sch.split(col, [None, VECTOR])
    block, thread = sch.split(sch.fuse(batch, row, col), [None, _THREADS])
    sch.reorder(block, thread, part, lanes)
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(lanes)
    store = sch.cache_write(final, 0, "local")
    sch.reverse_compute_at(store, thread, preserve_unit_loops=True)
    dlight.auto_inline_consumer_chain(sch, store)
    sch.vectorize(sch.split(sch.get_loops(store)[-1], [None, stored])[-1])
    sch.decompose_reduction(final, part)
