"""Functions without an anchor: elementwise chains, moves, reductions, softmax, normalizations, and what they fuse to.

    parallel task over the leading axes that all blocks share (rows):
        for block:                                          softmax: maximum, exponentials, sum, quotient of one row
            for further axes:
                vectors along the last axis                 elementwise, or a reduction over other axes
                vectors along the reduced axis, then across lanes       a reduction over the last axis

Values between blocks that share rows live in scratch of one row. The last axis is cut where conditions on it change
(concatenation, padding), so that no condition is left inside vectors. A function that is not made of such blocks keeps
the loops that it has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from graphopt.targets.tvm.cpu import loops
from graphopt.targets.tvm.cpu.blocks import Block, read_blocks, repeats_nothing_costly
from graphopt.targets.tvm.cpu.fused import Fused, anchor_alone
from graphopt.targets.tvm.cpu.inlining import ANCHOR, NotTaken, inline
from graphopt.targets.tvm.cpu.loops import Buffer, Expr, Stmt
from graphopt.targets.tvm.cpu.rules import words
from graphopt.targets.tvm.machine import Machine

# Element operations below which starting other threads costs more than it brings.
_WORTH_THREADS = 1 << 16
# Vectors that a reduction over the last axis keeps in flight.
_WAYS = 4


def schedule(function: Any, machine: Machine, anchored: Callable[[Fused, Machine], Stmt]) -> Any:
    """The function with one nest for all of its blocks, or one for each; anchors get theirs from `anchored`."""
    try:
        blocks = read_blocks(inline(function, repeats_nothing_costly)[0])
    except NotTaken:
        return function
    outputs = [param for param in function.params if any(param.same_as(block.out) for block in blocks)]
    inner = [block.out for block in blocks if not any(block.out.same_as(output) for output in outputs)]
    shared = _shared_axes(blocks, inner)
    anchors = [block for block in blocks if ANCHOR in block.node.annotations]
    if not anchors and len(blocks) == 1 and words.takes(blocks[0]):
        nest = words.nest(blocks[0], machine, _threads(blocks, machine))
    elif not anchors and (shared or len(blocks) == 1):
        nest = _Rows(blocks, inner, shared, machine).nest()
    else:
        nests = [
            anchored(anchor_alone(block.node, function), machine)
            if block in anchors
            else _Rows([block], [], _own_axes(block), machine).nest()
            for block in blocks
        ]
        nest = loops.allocate(inner, loops.block(*nests))
    return loops.function(function, nest)


def _threads(blocks: Sequence[Block], machine: Machine) -> int:
    """Threads that the work is worth."""
    return machine.threads if sum(block.work() for block in blocks) >= _WORTH_THREADS else 1


def _own_axes(block: Block) -> int:
    """Leading axes of a block alone: all but those that become vectors."""
    return len(block.spatial) if block.reduces_last() else len(block.spatial) - 1


def _shared_axes(blocks: Sequence[Block], inner: Sequence[Buffer]) -> int:
    """How many leading axes all blocks run over alike, values between them being read at the same place."""
    if len(blocks) == 1:
        return _own_axes(blocks[0])
    rank = max(len(block.spatial) for block in blocks)
    most = min(_own_axes(block) if len(block.spatial) == rank else len(block.spatial) for block in blocks)
    shared = 0
    while shared < most:
        extent = blocks[0].spatial[shared][1]
        alike = all(loops.same(extent, block.spatial[shared][1]) for block in blocks)
        if not alike or not all(block.keeps_axis(shared, inner) for block in blocks):
            break
        shared += 1
    return shared


def _divided(extent: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Full vectors and what is left."""
    return extent // lanes, extent % lanes


def _is_zero(count: Expr) -> bool:
    return isinstance(count, int) and count == 0


class _Rows:
    """The nest of blocks that share their leading axes."""

    def __init__(self, blocks: Sequence[Block], inner: Sequence[Buffer], shared: int, machine: Machine) -> None:
        self.shared = shared
        self.machine = machine
        self.blocks = blocks
        self.temporaries = {
            buffer: loops.scratch(buffer.name, (*[1] * shared, *loops.shape_of(buffer)[shared:]), str(buffer.ty.dtype))
            for buffer in inner
        }

    def nest(self) -> Stmt:
        extents = [extent for _, extent in self.blocks[0].spatial[: self.shared]]
        rows = math.prod(extents)
        threads = _threads(self.blocks, self.machine)
        cut = self._cut(rows, threads)

        def task(t: Expr) -> Stmt:
            if cut > 1:
                return self._one(t // cut, extents, (t % cut, cut))
            low, high = t * rows // tasks, (t + 1) * rows // tasks
            return loops.between(low, high, lambda row: self._one(row, extents, (0, 1)), "row")

        if threads == 1:
            return loops.loop(rows, lambda r: self._one(r, extents, (0, 1)), "row")
        tasks = threads
        if isinstance(rows, int):
            tasks = rows * cut if cut > 1 else min(rows, threads if rows % threads == 0 else threads * 4)
        return loops.parallel(tasks, task)

    def _cut(self, rows: Expr, threads: int) -> int:
        """Parts of the last axis that run as tasks of their own, where there are too few rows."""
        block = self.blocks[0]
        last = block.spatial[-1][1]
        if not isinstance(rows, int) or not isinstance(last, int) or rows >= threads:
            return 1
        if len(self.blocks) > 1 or block.reduces_last() or block.breaks():
            return 1
        vectors = last // self.machine.lanes()
        whole = last % self.machine.lanes() == 0
        return min(vectors, math.ceil(threads / rows)) if whole and vectors > 1 else 1

    def _one(self, row: Expr, extents: Sequence[Expr], part: tuple[Expr, int]) -> Stmt:
        """All blocks of one row."""

        def unfold(left: Sequence[Expr], row: Expr, indices: list[Expr]) -> Stmt:
            """The row's index on each axis, from the last to the first."""
            if not left:
                body = loops.block(*(self._block(block, indices, part) for block in self.blocks))
                return loops.allocate(list(self.temporaries.values()), body)
            *left, extent = left
            if loops.is_one(extent):
                return unfold(left, row, [0, *indices])
            if all(map(loops.is_one, left)):
                return unfold(left, 0, [row, *indices])
            if isinstance(extent, int):
                return unfold(left, row // extent, [row % extent, *indices])
            # With dynamic extents LLVM takes minutes for expressions that say the same division again and again.
            return loops.named(
                row // extent,
                lambda up: loops.named(row - up * extent, lambda at: unfold(left, up, [at, *indices]), "at"),
                "up",
            )

        if all(isinstance(extent, int) for extent in extents):
            return unfold(extents, row, [])
        return loops.named(row, lambda row: unfold(extents, row, []), "row")

    def _block(self, block: Block, leading: Sequence[Expr], part: tuple[Expr, int]) -> Stmt:
        rest = block.spatial[self.shared :]
        if not rest and not block.reduced:
            return self._put(block, leading, (), block.value, None)
        axes = rest if block.reduces_last() else rest[:-1]

        def nest(axis: int, at: list[Expr]) -> Stmt:
            if axis == len(axes):
                return self._across(block, at) if block.reduces_last() else self._along(block, at, part)
            return loops.loop(axes[axis][1], lambda i: nest(axis + 1, [*at, i]), axes[axis][0].name)

        return nest(0, list(leading))

    def _along(self, block: Block, at: Sequence[Expr], part: tuple[Expr, int]) -> Stmt:
        """Vectors along the last axis, segment by segment."""
        lanes = self.machine.lanes()
        extent = block.spatial[-1][1]
        cuts = [0, *block.breaks(), extent]
        parts = []
        for low, high in itertools.pairwise(cuts):
            full, tail = _divided(high - low, lanes)
            index, count = part
            if not _is_zero(full):
                first, last = index * full // count, (index + 1) * full // count

                def vector(v: Expr, low: int = low, high: Expr = high) -> Stmt:
                    return self._vector(block, at, low + v * lanes, lanes, (low, high))

                parts.append(loops.between(first, last, vector, "v"))
            if not isinstance(tail, int):

                def rest(i: Expr, low: int = low, high: Expr = high, full: Expr = full) -> Stmt:
                    return self._vector(block, at, low + full * lanes + i, 1, (low, high))

                parts.append(loops.loop(tail, rest, "rest"))
            elif tail:
                parts.append(self._vector(block, at, low + full * lanes, tail, (low, high)))
        return loops.block(*parts)

    def _vector(self, block: Block, at: Sequence[Expr], start: Expr, lanes: int, segment: tuple[int, Expr]) -> Stmt:
        """One vector of results."""
        value = block.within(segment)
        if not block.reduced:
            return loops.vectorized(lanes, lambda lane: self._put(block, [*at, start + lane], (), value, None))
        acc = loops.register("acc", lanes, str(block.out.ty.dtype))
        clear = loops.vectorized(lanes, lambda lane: loops.store(acc, block.init, lane))

        def reduce(axis: int, r: list[Expr]) -> Stmt:
            if axis < len(block.reduced):
                return loops.loop(block.reduced[axis][1], lambda i: reduce(axis + 1, [*r, i]), "r")
            return loops.vectorized(
                lanes,
                lambda lane: loops.store(
                    acc, self._value(block, [*at, start + lane], r, value, loops.load(acc, lane)), lane
                ),
            )

        put = loops.vectorized(lanes, lambda lane: self._store(block, [*at, start + lane], loops.load(acc, lane)))
        return loops.allocate([acc], loops.block(clear, reduce(0, []), put))

    def _across(self, block: Block, at: Sequence[Expr]) -> Stmt:
        """A reduction over the last axis: partial results in vectors, then across the lanes."""
        lanes = self.machine.lanes()
        dtype = str(block.out.ty.dtype)
        extent = block.reduced[-1][1]
        full, tail = _divided(extent, lanes)
        ways = next(w for w in (_WAYS, 2, 1) if full % w == 0) if isinstance(full, int) else 1
        partial = [] if _is_zero(full) else [loops.register(f"part_{i}", lanes, dtype) for i in range(ways)]
        total = loops.register("total", 1, dtype)

        def update(acc: Buffer, index: Expr, r: Sequence[Expr]) -> Stmt:
            return loops.store(acc, self._value(block, at, r, block.value, loops.load(acc, index)), index)

        def outer(axis: int, r: list[Expr]) -> Stmt:
            if axis < len(block.reduced) - 1:
                return loops.loop(block.reduced[axis][1], lambda i: outer(axis + 1, [*r, i]), "r")

            def vector(v: Expr, acc: Buffer) -> Stmt:
                return loops.vectorized(lanes, lambda lane: update(acc, lane, [*r, v * lanes + lane]))

            def vectors(v: Expr) -> Stmt:
                return loops.block(*(vector(v * ways + i, acc) for i, acc in enumerate(partial)))

            parts = [loops.loop(full // ways, vectors, "v")] if partial else []
            if not _is_zero(tail):
                parts.append(loops.loop(tail, lambda i: update(total, 0, [*r, full * lanes + i]), "i"))
            return loops.block(*parts)

        start = [loops.store(acc, loops.splat(block.init, lanes), 0, lanes=lanes) for acc in partial]
        start.append(loops.store(total, block.init, 0))
        combine = [*self._gather(block, partial), *self._halve(block, partial[:1], total)]
        put = self._store(block, at, loops.load(total, 0))
        return loops.allocate([*partial, total], loops.block(*start, outer(0, []), *combine, put))

    def _gather(self, block: Block, partial: Sequence[Buffer]) -> list[Stmt]:
        """All partial results into the first."""

        lanes = self.machine.lanes()

        def add(other: Buffer) -> Stmt:
            both = block.combine(loops.load(partial[0], 0, lanes=lanes), loops.load(other, 0, lanes=lanes))
            return loops.store(partial[0], both, 0, lanes=lanes)

        return [add(other) for other in partial[1:]]

    def _halve(self, block: Block, partial: Sequence[Buffer], total: Buffer) -> list[Stmt]:
        """The lanes of a vector into one, half of them at a time, and that into the total."""
        steps: list[Stmt] = []
        for acc in partial:
            half = self.machine.lanes() // 2
            while half:

                def fold(lane: Expr, half: int = half, acc: Buffer = acc) -> Stmt:
                    return loops.store(acc, block.combine(loops.load(acc, lane), loops.load(acc, lane + half)), lane)

                steps.append(loops.vectorized(half, fold))
                half //= 2
            steps.append(loops.store(total, block.combine(loops.load(total, 0), loops.load(acc, 0)), 0))
        return steps

    def _value(self, block: Block, at: Sequence[Expr], r: Sequence[Expr], value: Expr, acc: Expr | None) -> Expr:
        return block.evaluate(value, at, r, acc, self._load)

    def _put(self, block: Block, at: Sequence[Expr], r: Sequence[Expr], value: Expr, acc: Expr | None) -> Stmt:
        return self._store(block, at, self._value(block, at, r, value, acc))

    def _store(self, block: Block, at: Sequence[Expr], value: Expr) -> Stmt:
        buffer = self.temporaries.get(block.out)
        if buffer is None:
            return loops.store(block.out, value, *block.place(at))
        return loops.store(buffer, value, *[0] * self.shared, *block.place(at)[self.shared :])

    def _load(self, node: Any) -> Any:
        buffer = self.temporaries.get(node.source)
        return node if buffer is None else loops.load(buffer, *[0] * self.shared, *list(node.indices)[self.shared :])
