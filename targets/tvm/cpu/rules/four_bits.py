"""Products with constant weights of 4 bits, which stay packed in memory and become floats in registers or in cache.

Weights are (codes - zero) * scale with a scale and a zero point per block of rows and column. A byte holds the codes of
two neighbouring rows of a column, between -8 and 7: [channel block][pair of rows][channel]. The upper half is signed,
the lower one has 8 added, which takes one shift less to undo.

Few rows (a generated token): the codes are unpacked in the inner loop, and a block is summed before it is scaled,

    for block:  acc = 0;  for pair: acc += x[2p] * low(codes) + x[2p+1] * high(codes)
                total += scale * (acc - zero * (sum of x))

Many rows: a task unpacks the weights of one channel block into scratch, once for all of its rows, and multiplies with
those. Not here: what becomes such a product (targets/tvm/cpu/four_bits.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.targets.tvm.cpu.contraction import Contraction, Vector, _Place, _Source
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import (
    Buffer,
    Expr,
    Stmt,
    allocate,
    block,
    fma,
    load,
    loop,
    number,
    register,
    scratch,
    shape_of,
    splat,
    store,
)
from graphopt.targets.tvm.cpu.rules import matmul
from graphopt.targets.tvm.cpu.tiling import Tile, aliases, best_tile, divide
from graphopt.targets.tvm.machine import Machine

NAME = "four_bit_matmul"
_ROWS = "graphopt.rows"
_MIDDLE = 8
# Rows up to which codes are unpacked in the inner loop.
_FEW = 4


def fits(codes: np.ndarray, block_rows: int) -> bool:
    """Whether [K, N] codes can be packed in pairs that no block of rows cuts."""
    k = codes.shape[0]
    return k % 2 == 0 and (block_rows % 2 == 0 or block_rows >= k)


def pack(
    left: Sequence[int], codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, machine: Machine
) -> list[np.ndarray]:
    """Packed codes int8, scales float32 [blocks, N], and zero points likewise unless all are 0, for x [..., M, K].

    Args:
        left: shape of x.
        codes: int8 [K, N], within -8 .. 7 or 0 .. 15.
        scale, zero: float32 [blocks of K, N].
        machine: the CPU.
    """
    less = _MIDDLE if codes.min() >= 0 else 0
    width = _tile(left, codes.shape[1], machine).vectors * machine.lanes()
    signed = codes.astype("int16") - less
    pairs = ((signed[0::2] + _MIDDLE) | (signed[1::2] << 4)).astype("int8")
    columns = -codes.shape[1] % width
    out = [matmul.pack(pairs, width), np.pad(scale, ((0, 0), (0, columns)))]
    zero = np.pad(zero - np.float32(less), ((0, 0), (0, columns)))
    return [*out, zero] if zero[:, : codes.shape[1]].any() else out


def _tile(left: Sequence[int], columns: int, machine: Machine) -> Tile:
    """The register tile; few rows have two accumulators for each place."""
    g = matmul.geometry(left, columns, shared=True)
    tile = best_tile(matmul.problem(g), machine)
    if g.rows > _FEW:
        return tile
    return Tile(g.rows, 1, max(1, min(tile.vectors, 3 * machine.registers // 8 // g.rows)))


def define(block_rows: int, columns: int) -> Callable[..., Any]:
    """The anchor: x [..., M, K] times packed codes, with scales and maybe zero points."""

    def product(x: Any, w: Any, scale: Any, *zeros: Any) -> Any:
        k = te.reduce_axis((0, int(x.shape[-1])), "k")
        width = int(w.shape[-1])

        def at(*i: Expr) -> Expr:
            byte = w[i[-1] // width, k // 2, i[-1] % width].astype("int32")
            code = tirx.Select(k % 2 == 0, (byte & 15) - _MIDDLE, byte >> 4).astype("float32")
            value = code - zeros[0][k // block_rows, i[-1]] if zeros else code
            return te.sum(x[(*i[:-1], k)] * value * scale[k // block_rows, i[-1]], axis=k)

        return te.compute((*x.shape[:-1], columns), at, NAME, attrs={ANCHOR: NAME, _ROWS: block_rows})

    return product


def schedule(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a product with 4-bit weights and its epilogue."""
    x, w, scale, *zeros = fused.reads
    g = matmul.geometry(shape_of(x), shape_of(fused.result)[-1], shared=True)
    tile = _tile(shape_of(x), g.channels, machine)
    width = tile.vectors * machine.lanes()
    codes = Codes(w, scale, zeros[0] if zeros else None, int(fused.attributes[_ROWS]), g.inputs)
    staged = aliases(g.inputs, tile.rows)
    division = divide(matmul.problem(g), tile, machine)
    if g.rows <= _FEW:
        operands = matmul.Product(x, w, fused, True, width)
        return _FewRows(g, operands, tile, division, machine.lanes(), staged, codes=codes).nest()
    unpacked = _Unpacked(x, w, fused, True, width)
    return _ManyRows(g, unpacked, tile, division, machine.lanes(), staged, codes=codes).nest()


@dataclass(frozen=True)
class Codes:
    """Packed weights: `inputs` rows in blocks of `rows`."""

    codes: Buffer
    scale: Buffer
    zero: Buffer | None
    rows: int
    inputs: int

    def pair(self, channel_block: Expr, pair: Expr, at: int, lanes: int) -> list[Expr]:
        """Codes of two neighbouring rows as floats."""
        wide, floats = _vector("int32", lanes), _vector("float32", lanes)
        byte = load(self.codes, channel_block, pair, at, lanes=lanes).astype(wide)
        low = (byte & number(15, "int32", lanes)) - number(_MIDDLE, "int32", lanes)
        return [low.astype(floats), (byte >> number(4, "int32", lanes)).astype(floats)]

    def blocks(self, body: Callable[[Expr, Expr, int], Stmt]) -> Stmt:
        """`body(block of rows, its first pair, its pairs)` for all of them."""
        rows = min(self.rows, self.inputs)
        full, tail = divmod(self.inputs, rows)
        parts = [loop(full, lambda b: body(b, b * (rows // 2), rows // 2), "block")]
        return block(*parts, *([body(full, full * (rows // 2), tail // 2)] if tail else []))


@dataclass(frozen=True)
class _FewRows(Contraction):
    """Codes are unpacked where they are multiplied."""

    codes: Codes = field(kw_only=True)

    def _tile(self, source: _Source, at: _Place, vectors: list[Vector], rows: int, cols: int, col: Expr) -> Stmt:
        codes, shifted = self.codes, self.codes.zero is not None
        places = [(i, vector) for i in range(rows) for vector in vectors]
        total, partial = ({(i, v): register(f"{name}_{i}_{v.at}", v.lanes, "float32") for i, v in places}
                          for name in ("total", "part"))  # fmt: skip
        sums = [register(f"x_{i}", 1, "float32") for i in range(rows)] if shifted else []
        first = at.channel_block * (self.lanes * self.tile.vectors)

        def pair(p: Expr) -> Stmt:
            steps = []
            for half in range(2):
                xs = [source.at(at, i, col, (0, 0), p * 2 + half) for i in range(rows)]
                steps += [store(s, load(s, 0) + x, 0) for s, x in zip(sums, xs, strict=False)]
                for vector in vectors:
                    w = codes.pair(at.channel_block, p, vector.at, vector.lanes)[half]
                    steps += [fma(partial[i, vector], splat(xs[i], vector.lanes), w, vector.lanes) for i in range(rows)]
            return block(*steps)

        def scaled(b: Expr, start: Expr, pairs: int) -> Stmt:
            clear = [_clear(acc, v.lanes) for (_, v), acc in partial.items()] + [_clear(s, 1) for s in sums]
            add = []
            for (i, v), acc in partial.items():
                value = load(acc, 0, lanes=v.lanes)
                if codes.zero is not None:
                    value = value - load(codes.zero, b, first + v.at, lanes=v.lanes) * splat(load(sums[i], 0), v.lanes)
                add.append(fma(total[i, v], value, load(codes.scale, b, first + v.at, lanes=v.lanes), v.lanes))
            return block(*clear, loop(pairs, lambda p: pair(start + p), "pair"), *add)

        clear = [_clear(acc, v.lanes) for (_, v), acc in total.items()]
        finish = [
            self.operands.finish(at.n, at.row + i, col, first + v.at, v.stored, acc) for (i, v), acc in total.items()
        ]
        registers = [*total.values(), *partial.values(), *sums]
        return allocate(registers, block(*clear, codes.blocks(scaled), *finish))


@dataclass(frozen=True)
class _ManyRows(Contraction):
    """The weights of a channel block are unpacked before its rows pass."""

    operands: _Unpacked
    codes: Codes = field(kw_only=True)

    def _rows(
        self, source: _Source, where: tuple[Expr, Expr, Expr], vectors: list[Vector], row_tiles: tuple[Expr, Expr]
    ) -> Stmt:
        panel = scratch("panel", (self.geometry.inputs, self.lanes * self.tile.vectors), "float32")
        unpacked = replace(self, operands=replace(self.operands, w=panel))
        rows = super(_ManyRows, unpacked)._rows(source, where, vectors, row_tiles)
        return allocate([panel], block(self._unpack(panel, where[2], vectors), rows))

    def _unpack(self, panel: Buffer, channel_block: Expr, vectors: list[Vector]) -> Stmt:
        first = channel_block * (self.lanes * self.tile.vectors)

        def rows(b: Expr, start: Expr, pairs: int) -> Stmt:
            return loop(pairs, lambda p: block(*(s for v in vectors for s in pair(b, start + p, v))), "pair")

        def pair(b: Expr, p: Expr, v: Vector) -> list[Stmt]:
            scale = load(self.codes.scale, b, first + v.at, lanes=v.lanes)
            made = self.codes.pair(channel_block, p, v.at, v.lanes)
            if self.codes.zero is not None:
                made = [value - load(self.codes.zero, b, first + v.at, lanes=v.lanes) for value in made]
            return [store(panel, w * scale, p * 2 + half, v.at, lanes=v.lanes) for half, w in enumerate(made)]

        return self.codes.blocks(rows)


@dataclass(frozen=True)
class _Unpacked(matmul.Product):
    """A product whose weights `w` [K, channels] are those of one channel block."""

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        return load(self.w, tap[2], at, lanes=lanes)


def _clear(acc: Buffer, lanes: int) -> Stmt:
    return store(acc, number(0, "float32", lanes), 0, lanes=lanes)


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
