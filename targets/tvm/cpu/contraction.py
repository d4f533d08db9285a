"""The register-tiled contraction: one loop nest for convolutions, matrix products and batched matrix products.

    parallel task in batch x row blocks x channel chunks:
        copy the block's input rows into padded scratch, if `staged`
        for channel block in chunk:
            for row tile in block, for column tile:
                accumulators = start                                rows x cols x vectors registers
                for kernel row, kernel column, input channel:
                    accumulators += broadcast(input) * packed weights
                out = epilogue(accumulators)

A word is one float, or several 8-bit codes of neighbouring channels (dots.py). Inputs are channels-last. Not here: tile
sizes (tiling.py) and what each operator passes in (rules/).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from graphopt.targets.tvm.cpu.dots import FLOAT, Dot
from graphopt.targets.tvm.cpu.loops import (
    Buffer,
    Expr,
    Stmt,
    allocate,
    between,
    block,
    both,
    load,
    loop,
    number,
    parallel,
    register,
    scratch,
    splat,
    split_range,
    store,
    vectorized,
    when,
)
from graphopt.targets.tvm.cpu.tiling import Division, Tile

# Input channels up to which the loop over them is unrolled.
_UNROLL = 4
# Elements added to a staged pixel whose size is a power of two, so that neighbours fall on different cache sets.
_SKEW = 16


@dataclass(frozen=True)
class Geometry:
    """Extents of a contraction; a matrix product has kernel 1x1, `rows` = M, `cols` = 1, `inputs` = K, `channels` = N.

    `batch`, `rows` and `height` may be expressions where nothing is staged.

    Attributes:
        channels, inputs: output channels, and words of input channels, of one group.
        height, width: input rows and columns.
        kernel, strides, dilations: each (vertical, horizontal).
        before: padding above and to the left.
    """

    batch: Expr
    groups: int
    rows: Expr
    cols: int
    channels: int
    inputs: int
    height: Expr
    width: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)

    def reach(self, outputs: int, axis: int) -> int:
        """Input positions that so many neighbouring outputs see along an axis."""
        return (outputs - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def padded(self) -> bool:
        """Whether some output sees positions outside of the input."""
        return (
            any(self.before)
            or self.reach(self.rows, 0) > self.height + self.before[0]
            or self.reach(self.cols, 1) > self.width + self.before[1]
        )


class Operands(Protocol):
    """Where a contraction's elements lie."""

    def read(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        """Input words along the channels (of all groups)."""

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        """Weights of `lanes` output channels from `at` on in a channel block, for a tap (row, column, word)."""

    def finish(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int, accumulator: Buffer) -> Stmt:
        """Store `lanes` results; `channel` counts over all groups."""


@dataclass(frozen=True)
class Vector:
    """One vector of a channel block: its offset, lanes computed, lanes stored."""

    at: int
    lanes: int
    stored: int


@dataclass(frozen=True)
class Contraction:
    """A contraction with its schedule; `nest()` is the loop nest.

    Attributes:
        lanes: elements per vector register.
        staged: copy input rows into padded scratch.
        nested: the nest is part of a task, so its outer loop is not parallel.
        exact: weights end with the channels, so the last vector may not read past them.
        dot: what one step multiplies.
        padding: the word outside of the input.
        start: what the sums of a channel block start with, (group, block, offset, lanes); None is 0.
    """

    geometry: Geometry
    operands: Operands
    tile: Tile
    division: Division
    lanes: int
    staged: bool
    nested: bool = False
    exact: bool = False
    dot: Dot = FLOAT
    padding: int = 0
    start: Callable[[Expr, Expr, int, int], Expr] | None = None

    def nest(self) -> Stmt:
        row_tiles = (self.geometry.rows + self.tile.rows - 1) // self.tile.rows
        blocks = self.geometry.groups * self._blocks()
        row_blocks, chunks = self.division.row_blocks, self.division.channel_chunks

        def task(t: Expr) -> Stmt:
            n, rest = t // (row_blocks * chunks), t % (row_blocks * chunks)
            row_block, chunk = rest // chunks, rest % chunks
            first, last = row_block * row_tiles // row_blocks, (row_block + 1) * row_tiles // row_blocks
            source: _Source = _Direct(self.operands, self.geometry)
            prepare: list[Stmt] = []
            buffers: list[Buffer] = []
            if self.staged:
                source = _Staged(self, math.ceil(row_tiles / row_blocks) * self.tile.rows)
                buffers.append(source.buffer)
                prepare.append(source.copy(n, first * self.tile.rows, last * self.tile.rows))
            work = self._channels(source, n, (chunk * blocks // chunks, (chunk + 1) * blocks // chunks), (first, last))
            return allocate(buffers, block(*prepare, work))

        tasks = self.geometry.batch * row_blocks * chunks
        return loop(tasks, task, "n") if self.nested else parallel(tasks, task)

    def _blocks(self) -> int:
        return math.ceil(self.geometry.channels / (self.lanes * self.tile.vectors))

    def _channels(self, source: _Source, n: Expr, blocks: tuple[Expr, Expr], row_tiles: tuple[Expr, Expr]) -> Stmt:
        """All tiles of a range of channel blocks; the last block of a group may be narrower."""
        per_group = self._blocks()
        width = self.lanes * self.tile.vectors
        remainder = self.geometry.channels % width
        whole, part = list(self._vectors(width)), list(self._vectors(remainder))

        def rows(b: Expr, vectors: list[Vector]) -> Stmt:
            return self._rows(source, (n, b // per_group, b % per_group), vectors, row_tiles)

        if self.geometry.groups == 1:
            full = per_group - bool(remainder)
            rest = (lambda: rows(full, part)) if remainder else None
            return split_range(*blocks, full, lambda b: rows(b, whole), rest, "channel_block")

        def either(b: Expr) -> Stmt:
            if not remainder:
                return rows(b, whole)
            if per_group == 1:
                return rows(b, part)
            return when(b % per_group < per_group - 1, rows(b, whole), rows(b, part))

        return between(*blocks, either, "channel_block")

    def _rows(
        self, source: _Source, where: tuple[Expr, Expr, Expr], vectors: list[Vector], row_tiles: tuple[Expr, Expr]
    ) -> Stmt:
        """All row and column tiles of one block of channels."""
        full, tail = self.geometry.rows // self.tile.rows, self.geometry.rows % self.tile.rows

        def row_tile(row: Expr, rows: int) -> Stmt:
            at = _Place(*where, row, row_tiles[0] * self.tile.rows)
            return self._columns(source, at, vectors, rows)

        rest: Callable[[], Stmt] | None = lambda: row_tile(full * self.tile.rows, tail)  # noqa: E731
        if not isinstance(tail, int):
            rest = lambda: loop(tail, lambda i: row_tile(full * self.tile.rows + i, 1), "row")  # noqa: E731
        elif not tail:
            rest = None
        return split_range(*row_tiles, full, lambda r: row_tile(r * self.tile.rows, self.tile.rows), rest, "row_tile")

    def _columns(self, source: _Source, at: _Place, vectors: list[Vector], rows: int) -> Stmt:
        full, tail = divmod(self.geometry.cols, self.tile.cols)
        parts = []
        if full:
            parts.append(
                loop(full, lambda c: self._tile(source, at, vectors, rows, self.tile.cols, c * self.tile.cols), "c")
            )
        if tail:
            parts.append(self._tile(source, at, vectors, rows, tail, full * self.tile.cols))
        return block(*parts)

    def _tile(self, source: _Source, at: _Place, vectors: list[Vector], rows: int, cols: int, col: Expr) -> Stmt:
        """One register tile: clear, accumulate over all taps, finish."""
        g = self.geometry
        positions = [(i, j) for i in range(rows) for j in range(cols)]
        registers = {
            (i, j, vector): register(f"acc_{i}_{j}_{vector.at}", vector.lanes, self.dot.word)
            for i, j in positions
            for vector in vectors
        }
        clear = [
            store(acc, self._first(at, vector), 0, lanes=vector.lanes) for (_, _, vector), acc in registers.items()
        ]

        def taps(kh: Expr, kw: Expr, ic: Expr) -> list[Stmt]:
            return [
                self._step(
                    registers[i, j, vector],
                    source.at(at, i, col + j, (kh, kw), at.group * g.inputs + ic),
                    self.operands.weight(at.n, at.group, at.channel_block, (kh, kw, ic), vector.at, vector.lanes),
                    vector.lanes,
                )
                for i, j in positions
                for vector in vectors
            ]

        def channels(kh: Expr, kw: Expr) -> Stmt:
            if g.inputs <= _UNROLL:
                return block(*(stmt for ic in range(g.inputs) for stmt in taps(kh, kw, ic)))
            return loop(g.inputs, lambda ic: block(*taps(kh, kw, ic)), "ic")

        accumulate = loop(g.kernel[0], lambda kh: loop(g.kernel[1], lambda kw: channels(kh, kw), "kw"), "kh")
        channel = at.group * g.channels + at.channel_block * (self.lanes * self.tile.vectors)
        finish = [
            self.operands.finish(at.n, at.row + i, col + j, channel + vector.at, vector.stored, acc)
            for (i, j, vector), acc in registers.items()
        ]
        return allocate(list(registers.values()), block(*clear, accumulate, *finish))

    def _first(self, at: _Place, vector: Vector) -> Expr:
        if self.start is None:
            return number(0, self.dot.word, vector.lanes)
        return self.start(at.group, at.channel_block, vector.at, vector.lanes)

    def _step(self, acc: Buffer, word: Expr, weights: Expr, lanes: int) -> Stmt:
        total = self.dot.add(load(acc, 0, lanes=lanes), splat(word, lanes), weights, lanes)
        return store(acc, total, 0, lanes=lanes)

    def _vectors(self, channels: int) -> Iterable[Vector]:
        """Full vectors, then the remainder: one padded vector, or exact powers of two where weights are not padded."""
        at = 0
        while channels - at >= self.lanes:
            yield Vector(at, self.lanes, self.lanes)
            at += self.lanes
        while at < channels:
            left = channels - at
            padded = max(self.dot.least, 1 << (left - 1).bit_length())
            lanes = 1 << (left.bit_length() - 1) if self.exact else min(self.lanes, padded)
            yield Vector(at, lanes, min(lanes, left))
            at += lanes


@dataclass(frozen=True)
class _Place:
    """Where a register tile lies: image, group, channel block, first output row, and the first row of its task."""

    n: Expr
    group: Expr
    channel_block: Expr
    row: Expr
    task_row: Expr


class _Source(Protocol):
    def at(self, place: _Place, i: int, col: Expr, kernel: tuple[Expr, Expr], channel: Expr) -> Expr:
        """The input element of output position (place.row + i, col) at a kernel position."""


@dataclass(frozen=True)
class _Direct:
    """Reads the input where it lies."""

    operands: Operands
    geometry: Geometry

    def at(self, place: _Place, i: int, col: Expr, kernel: tuple[Expr, Expr], channel: Expr) -> Expr:
        g = self.geometry
        row = (place.row + i) * g.strides[0] + kernel[0] * g.dilations[0] - g.before[0]
        column = col * g.strides[1] + kernel[1] * g.dilations[1] - g.before[1]
        return self.operands.read(place.n, row, column, channel, 1)


class _Staged:
    """Reads a padded copy of the task's input rows; pixels are spread so that they do not share cache sets."""

    def __init__(self, contraction: Contraction, most_rows: int) -> None:
        g = self.geometry = contraction.geometry
        self.contraction = contraction
        self.depth = g.groups * g.inputs
        self.rows = g.reach(most_rows, 0)
        self.cols = g.reach(g.cols, 1)
        skew = _SKEW if self.depth % 64 == 0 else 0
        self.buffer = scratch("staged", (self.rows, self.cols, self.depth + skew), contraction.dot.word)

    def at(self, place: _Place, i: int, col: Expr, kernel: tuple[Expr, Expr], channel: Expr) -> Expr:
        g = self.geometry
        row = (place.row - place.task_row + i) * g.strides[0] + kernel[0] * g.dilations[0]
        return load(self.buffer, row, col * g.strides[1] + kernel[1] * g.dilations[1], channel)

    def copy(self, n: Expr, first: Expr, last: Expr) -> Stmt:
        """Copy the input of output rows [first, last), padding outside."""
        g = self.geometry
        top = first * g.strides[0] - g.before[0]
        left = min(g.before[1], self.cols)
        right = max(left, min(self.cols, g.width + g.before[1]))
        count = (last - first - 1) * g.strides[0] + (g.kernel[0] - 1) * g.dilations[0] + 1

        def row(r: Expr) -> Stmt:
            inside = loop(right - left, lambda c: self._pixel(n, r, top + r, left + c), "col") if right > left else None
            edges = [self._padding(r, 0, left), self._padding(r, right, self.cols)]
            borders = [edge for edge in edges if edge is not None]
            outside = self._padding(r, 0, self.cols)
            body = block(*borders, inside) if inside is not None else outside
            if not g.padded():
                return body
            return when(both(top + r >= 0, top + r < g.height), body, outside)

        return loop(count, row, "row")

    def _pixel(self, n: Expr, r: Expr, row: Expr, c: Expr) -> Stmt:
        read = self.contraction.operands.read

        def copy(channel: Expr, lanes: int) -> Stmt:
            value = read(n, row, c - self.geometry.before[1], channel, lanes)
            return store(self.buffer, value, r, c, channel, lanes=lanes)

        return self._channels(copy)

    def _padding(self, r: Expr, low: int, high: int) -> Stmt | None:
        if low >= high:
            return None
        word = self.contraction.dot.word

        def pixel(c: Expr) -> Stmt:
            def clear(channel: Expr, lanes: int) -> Stmt:
                return store(self.buffer, number(self.contraction.padding, word, lanes), r, c, channel, lanes=lanes)

            return self._channels(clear)

        return loop(high - low, lambda c: pixel(low + c), "col")

    def _channels(self, move: Callable[[Expr, int], Stmt]) -> Stmt:
        lanes = self.contraction.lanes
        full, tail = divmod(self.depth, lanes)
        parts = [loop(full, lambda v: move(v * lanes, lanes), "v")] if full else []
        if tail:
            parts.append(vectorized(tail, lambda lane: move(full * lanes + lane, 1)))
        return block(*parts)
