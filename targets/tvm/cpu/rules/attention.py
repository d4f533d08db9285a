"""Attention, softmax(Q K^T * scale + mask) V, as one nest: scores of a block of queries never leave the cache.

    parallel task in batch x heads (x blocks of queries):
        copy K of the head, transposed, and V of the head
        for block of queries:
            S = Q K^T * scale + mask                        contraction.py's nest, into scratch
            for row: S = exp(S - max(S)), r = 1 / sum(S)
            out = (S V) * r                                 contraction.py's nest

Rows are whole, so the softmax is the plain one, not the streaming one of Dao et al., FlashAttention (2022): a block of
rows is chosen that fits the cache. Operands are read where the projections before them wrote them, heads inside or
outside of the sequence. Not here: what is recognised as attention (targets/tvm/cpu/attention.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from graphopt.targets.tvm.cpu.contraction import Contraction, Geometry
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import (
    Buffer,
    Expr,
    Stmt,
    allocate,
    block,
    is_one,
    load,
    loop,
    number,
    parallel,
    register,
    scratch,
    shape_of,
    splat,
    store,
    vectorized,
)
from graphopt.targets.tvm.cpu.rules import matmul
from graphopt.targets.tvm.cpu.tiling import Division, Tile, best_tile
from graphopt.targets.tvm.machine import Machine

NAME = "attention"
_FORM, _SCALE = "graphopt.form", "graphopt.scale"
# Queries of a block, at most, and the share of the second-level cache that their scores may take.
_QUERIES = 64
_L2_SHARE = 0.4


@dataclass(frozen=True)
class Form:
    """How attention is written.

    Attributes:
        q, v: axes of the buffer that hold (batch, head, sequence, channel).
        k: axes of the buffer that hold (batch, head, channel, sequence).
        turned: the result is (batch, sequence, head, channel), not (batch, head, sequence, channel).
        guarded: rows without a number are 0.
        scale: of the scores before the mask.
    """

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    turned: bool
    guarded: bool
    scale: float

    def attributes(self) -> dict[str, Any]:
        ints = [*self.q, *self.k, *self.v, int(self.turned), int(self.guarded)]
        return {ANCHOR: NAME, _FORM: ints, _SCALE: repr(self.scale)}


def queries(length: int, keys: int, machine: Machine) -> int | None:
    """Queries of a block: an even division of them; None where their scores do not fit the second-level cache."""
    most = max(n for n in range(1, min(length, _QUERIES) + 1) if length % n == 0)
    # A length without good divisors is one block.
    found = most if most > _QUERIES // 4 or most == length else length
    return found if 4 * found * keys <= _L2_SHARE * machine.l2 else None


def define(form: Form) -> Callable[..., Any]:
    """The anchor. Its body only tells what is read: this rule always takes it."""

    def attention(q: Any, k: Any, v: Any, *masks: Any) -> Any:
        batch, heads, rows, depth = (int(q.shape[axis]) for axis in form.q)
        keys, width = int(k.shape[form.k[3]]), int(v.shape[form.v[3]])
        s, d = te.reduce_axis((0, keys), "s"), te.reduce_axis((0, depth), "d")

        def at(*i: Expr) -> Expr:
            b, h, row, e = (i[0], i[2], i[1], i[3]) if form.turned else i
            value = q[_placed(form.q, b, h, row, d)] * k[_placed(form.k, b, h, d, s)] * v[_placed(form.v, b, h, s, e)]
            for mask in masks:
                value = value + mask[_broadcast(mask.shape, b, h, row, s)]
            return te.sum(value, axis=[s, d])

        shape = (batch, rows, heads, width) if form.turned else (batch, heads, rows, width)
        return te.compute(shape, at, NAME, attrs=form.attributes())

    return attention


def _placed(axes: Sequence[int], *logical: Expr) -> tuple[Expr, ...]:
    """Indices of a buffer whose axis `axes[i]` holds the i-th logical one."""
    indices: list[Expr] = [0] * len(axes)
    for axis, index in zip(axes, logical, strict=True):
        indices[axis] = index
    return tuple(indices)


def _broadcast(shape: Sequence[Any], *logical: Expr) -> tuple[Expr, ...]:
    """Indices of a buffer that is broadcast to the logical axes, aligned at the last."""
    first = len(logical) - len(shape)
    return tuple(0 if int(dim) == 1 else index for dim, index in zip(shape, logical[first:], strict=True))


def schedule(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of attention."""
    ints = [int(i) for i in fused.attributes[_FORM]]
    scale = float(str(fused.attributes[_SCALE]))
    form = Form(tuple(ints[:4]), tuple(ints[4:8]), tuple(ints[8:12]), bool(ints[12]), bool(ints[13]), scale)
    return _Attention(fused, form, machine).nest()


class _Attention:
    """The nest; K, V, scores and sums are scratch of one task."""

    def __init__(self, fused: Fused, form: Form, machine: Machine) -> None:
        self.fused, self.form, self.machine = fused, form, machine
        self.q, self.k, self.v, *masks = fused.reads
        self.mask = masks[0] if masks else None
        self.batch, self.heads, self.length, self.depth = (shape_of(self.q)[axis] for axis in form.q)
        self.key_count, self.width = shape_of(self.k)[form.k[3]], shape_of(self.v)[form.v[3]]
        rows = queries(self.length, self.key_count, machine)
        assert rows is not None
        self.rows = rows
        self.score_tile, self.out_tile = self._tile(self.key_count, self.depth), self._tile(self.width, self.key_count)
        lanes = machine.lanes()
        whole = math.ceil(self.key_count / lanes) * lanes
        self.keys = scratch("keys", (self.depth, _padded(self.key_count, self.score_tile, lanes)), "float32")
        self.values = scratch("values", (self.key_count, _padded(self.width, self.out_tile, lanes)), "float32")
        self.scores = scratch("scores", (self.rows, whole), "float32")
        self.factors = scratch("factors", (self.rows,), "float32")

    def _tile(self, channels: int, inputs: int) -> Tile:
        g = self._geometry(channels, inputs)
        return best_tile(matmul.problem(g), self.machine)

    def _geometry(self, channels: int, inputs: int) -> Geometry:
        return Geometry(1, 1, self.rows, 1, channels, inputs, self.rows, 1)

    def nest(self) -> Stmt:
        heads, blocks = self.batch * self.heads, self.length // self.rows
        split = 1 if heads % self.machine.threads == 0 else blocks

        def task(t: Expr) -> Stmt:
            b, h = t // split // self.heads, t // split % self.heads
            per_task = blocks // split

            def queries(i: Expr) -> Stmt:
                return self._block(b, h, (t % split * per_task + i) * self.rows)

            buffers = [self.keys, self.values, self.scores, self.factors]
            return allocate(buffers, block(*self._copies(b, h), loop(per_task, queries, "queries")))

        return parallel(heads * split, task)

    def _copies(self, b: Expr, h: Expr) -> list[Stmt]:
        """K transposed and V of a head."""
        keys = loop(
            self.key_count,
            lambda s: self._along(self.depth, lambda d: store(self.keys, self._key(b, h, d, s), d, s)),
            "key",
        )
        if self.form.k[3] == 3:
            keys = loop(
                self.depth,
                lambda d: self._along(self.key_count, lambda s: store(self.keys, self._key(b, h, d, s), d, s)),
                "depth",
            )
        values = loop(
            self.key_count,
            lambda s: self._along(
                self.width, lambda e: store(self.values, load(self.v, *_placed(self.form.v, b, h, s, e)), s, e)
            ),
            "key",
        )
        return [keys, values]

    def _key(self, b: Expr, h: Expr, d: Expr, s: Expr) -> Expr:
        return load(self.k, *_placed(self.form.k, b, h, d, s))

    def _along(self, extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """Vectors over an extent, and a tail."""
        lanes = self.machine.lanes()
        full, tail = divmod(extent, lanes)
        parts = [loop(full, lambda v: vectorized(lanes, lambda lane: body(v * lanes + lane)), "v")] if full else []
        if tail:
            parts.append(vectorized(tail, lambda lane: body(full * lanes + lane)))
        return block(*parts)

    def _block(self, b: Expr, h: Expr, first: Expr) -> Stmt:
        """One block of queries."""
        scores = self._contraction(_Scores(self, b, h, first), self.key_count, self.depth, self.score_tile)
        out = self._contraction(_Outputs(self, b, h, first), self.width, self.key_count, self.out_tile)
        return block(scores, loop(self.rows, self._softmax, "row"), out)

    def _contraction(self, operands: Any, channels: int, inputs: int, tile: Tile) -> Stmt:
        g = self._geometry(channels, inputs)
        return Contraction(g, operands, tile, Division(1, 1), self.machine.lanes(), staged=False, nested=True).nest()

    def _softmax(self, row: Expr) -> Stmt:
        """Exponentials of a row, and one over their sum."""
        lanes = self.machine.lanes()
        width = shape_of(self.scores)[1]
        most, total = register("most", lanes, "float32"), register("total", lanes, "float32")
        lowest = number(-math.inf, "float32")

        def each(body: Callable[[Expr, Expr], list[Stmt]]) -> Stmt:
            return loop(width // lanes, lambda v: vectorized(lanes, lambda j: block(*body(j, v * lanes + j))), "v")

        def maximum(j: Expr, at: Expr) -> list[Stmt]:
            return [store(most, tirx.max(load(most, j), load(self.scores, row, at)), j)]

        def exponential(j: Expr, at: Expr) -> list[Stmt]:
            return [store(self.scores, tirx.exp(load(self.scores, row, at) - load(most, 0)), row, at)]

        def add(j: Expr, at: Expr) -> list[Stmt]:
            return [store(total, load(total, j) + load(self.scores, row, at), j)]

        pad = range(self.key_count, width)
        start = [store(self.scores, lowest, row, at) for at in pad]
        start.append(store(most, splat(lowest, lanes), 0, lanes=lanes))
        start.append(store(total, number(0, "float32", lanes), 0, lanes=lanes))
        factor = number(1, "float32") / load(total, 0)
        return allocate(
            [most, total],
            block(
                *start, each(maximum), *_halved(most, lanes, tirx.max), each(exponential), each(add),
                *_halved(total, lanes, lambda a, b: a + b), store(self.factors, factor, row),
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class _Scores:
    """Operands of Q K^T; results are scaled and masked."""

    nest: _Attention
    b: Expr
    h: Expr
    first: Expr

    def read(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        return load(self.nest.q, *_placed(self.nest.form.q, self.b, self.h, self.first + row, channel), lanes=lanes)

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        width = self.nest.score_tile.vectors * self.nest.machine.lanes()
        return load(self.nest.keys, tap[2], channel_block * width + at, lanes=lanes)

    def finish(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int, accumulator: Buffer) -> Stmt:
        value = load(accumulator, 0, lanes=lanes) * number(self.nest.form.scale, "float32", lanes)
        mask = self.nest.mask
        if mask is not None:
            shape = shape_of(mask)
            indices = _broadcast(shape, self.b, self.h, self.first + row, channel)
            one = is_one(shape[-1])
            value = value + (splat(load(mask, *indices), lanes) if one else load(mask, *indices, lanes=lanes))
        return store(self.nest.scores, value, row, channel, lanes=lanes)


@dataclass(frozen=True)
class _Outputs:
    """Operands of S V; results are divided by the sum of their row."""

    nest: _Attention
    b: Expr
    h: Expr
    first: Expr

    def read(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        return load(self.nest.scores, row, channel, lanes=lanes)

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        width = self.nest.out_tile.vectors * self.nest.machine.lanes()
        return load(self.nest.values, tap[2], channel_block * width + at, lanes=lanes)

    def finish(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int, accumulator: Buffer) -> Stmt:
        factor = load(self.nest.factors, row)
        value = load(accumulator, 0, lanes=lanes) * splat(factor, lanes)
        if self.nest.form.guarded:
            value = tirx.Select(splat(tirx.isnan(factor), lanes), number(0, "float32", lanes), value)
        query = self.first + row
        place = (self.b, query, self.h, channel) if self.nest.form.turned else (self.b, self.h, query, channel)
        return block(store(accumulator, value, 0, lanes=lanes), self.nest.fused.finish(place, lanes, accumulator))


def _padded(extent: int, tile: Tile, lanes: int) -> int:
    """Columns of a scratch whose last vectors are read whole."""
    return math.ceil(extent / (tile.vectors * lanes)) * tile.vectors * lanes


def _halved(acc: Buffer, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> list[Stmt]:
    """All lanes into the first, half of them at a time."""

    def fold(half: int) -> Stmt:
        return vectorized(half, lambda j: store(acc, combine(load(acc, j), load(acc, j + half)), j))

    return [fold(lanes >> step) for step in range(1, lanes.bit_length())]
