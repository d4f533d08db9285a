"""Functions that write pixels of four 8-bit channels: vectors run along the pixels, each of which is a 32-bit word.

    parallel task over the leading axes:
        for vector of pixels:
            words = codes of channel 0 | channel 1 << 8 | channel 2 << 16 | channel 3 << 24

That is what quantizing an image and putting its channels last is, where the last axis is too short for vectors.
"""

from __future__ import annotations

import math

from tvm import tirx

from graphopt.targets.tvm.cpu.blocks import Block
from graphopt.targets.tvm.cpu.loops import (
    Expr,
    Stmt,
    allocate,
    between,
    block,
    load,
    loop,
    parallel,
    register,
    store,
    vectorized,
)
from graphopt.targets.tvm.machine import Machine

_CHANNELS = 4


def takes(whole: Block) -> bool:
    """Whether a block writes such pixels, in the order of its axes."""
    extents = [extent for _, extent in whole.spatial]
    if whole.reduced or len(extents) < 2 or not all(isinstance(extent, int) for extent in extents):
        return False
    in_order = len(whole.indices) == len(extents) and all(
        index.same_as(var) for index, (var, _) in zip(whole.indices, whole.spatial, strict=True)
    )
    return in_order and extents[-1] == _CHANNELS and str(whole.out.ty.dtype) in ("int8", "uint8")


def nest(whole: Block, machine: Machine, threads: int) -> Stmt:
    """The loop nest of a block that is taken."""
    *outer, pixels, _ = [extent for _, extent in whole.spatial]
    dtype = str(whole.out.ty.dtype)

    def row(r: Expr) -> Stmt:
        indices: list[Expr] = []
        for extent in reversed(outer):
            indices.insert(0, r % extent)
            r = r // extent
        full, tail = divmod(pixels, machine.lanes())
        parts = [loop(full, lambda v: vector(indices, v * machine.lanes(), machine.lanes()), "v")] if full else []
        if tail:
            parts.append(vector(indices, full * machine.lanes(), tail))
        return block(*parts)

    def vector(indices: list[Expr], start: Expr, lanes: int) -> Stmt:
        words = register("words", lanes, "int32")

        def word(lane: Expr) -> Stmt:
            total: Expr = 0
            for channel in range(_CHANNELS):
                at = [*indices, start + lane, channel]
                code = whole.evaluate(whole.within((channel, channel + 1)), at, (), None, lambda node: node)
                total = total | (code.astype("int32") & 0xFF) << (8 * channel)
            return store(words, total, lane)

        bytes_ = tirx.reinterpret(f"{dtype}x{_CHANNELS * lanes}", load(words, 0, lanes=lanes))
        put = store(whole.out, bytes_, *indices, start, 0, lanes=_CHANNELS * lanes)
        return allocate([words], block(vectorized(lanes, word), put))

    rows = math.prod(outer)
    tasks = min(rows, 4 * threads)
    if threads == 1:
        return loop(rows, row, "row")
    return parallel(tasks, lambda t: between(t * rows // tasks, (t + 1) * rows // tasks, row, "row"))
