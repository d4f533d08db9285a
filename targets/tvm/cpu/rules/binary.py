"""Convolutions and products of +-1 with +-1: bits in 32-bit words, exclusive or, and a count of ones.

A dot product of n signs is n - 2 * (signs that differ), so with a bit set where the sign is plus

    sum of x * w  =  n - 2 * ones(bits(x) xor bits(w))

A padded position has no sign; its word is 0 and counts the ones of the weights there, which
the table `base` takes back: base = signs that are there + 2 * ones of the weights where padding is. All sums are
integers, so float32 results are exact below 2**24. The nest is contraction.py's with another inner step:

    acc += ones(splat(x) xor w)             on words, where the CPU counts the ones of a vector of them
    acc += ones(bytes(splat(x) xor w))      else on bytes, widened before they overflow, at most every 31 words

From: Rastegari et al., XNOR-Net (2016). Not here: what is known to be +-1 (targets/tvm/cpu/binarize.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.targets.tvm.cpu.contraction import Contraction, Vector, _Place, _Source
from graphopt.targets.tvm.cpu.dots import Dot
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import (
    Buffer,
    Expr,
    Stmt,
    allocate,
    block,
    load,
    loop,
    number,
    register,
    shape_of,
    splat,
    store,
)
from graphopt.targets.tvm.cpu.rules import conv2d, matmul
from graphopt.targets.tvm.cpu.rules.conv2d import Window
from graphopt.targets.tvm.cpu.tiling import aliases, best_tile, divide
from graphopt.targets.tvm.machine import Machine

CONV, PRODUCT = "binary_conv2d", "binary_matmul"
WORD = 32
"""Bits of a word."""
_WINDOW, _SIGNS = "graphopt.window", "graphopt.signs"
# Words whose ones a byte can count: 31 * 8 < 256.
_BYTE_WORDS = 31
# Words of a kernel position up to which the loop over them is unrolled.
_UNROLL = 4
# Inputs are staged as words; the step itself is `_Count.add`.
_BITS = Dot(WORD, "uint32", "uint32", "uint32", 1, lambda acc, word, w, lanes: acc + tirx.popcount(word ^ w))


@dataclass(frozen=True)
class Packing:
    """Which bit a channel becomes: `j * spread * words + q * words + l` is bit `q * bits / spread + j` of word `l`.

    Neighbouring channels go to the same bit of neighbouring words, and where words are fewer than lanes to `spread`
    parts of them, so that packing works on whole vectors and moves little across their lanes.

    Attributes:
        words, bits: words per position, and bits that are used of each.
        spread: parts of a word.
    """

    words: int
    bits: int
    spread: int

    def pack(self, signs: np.ndarray) -> np.ndarray:
        """[..., C] numbers as [..., words]: a bit is set where a number is positive."""
        parts = signs.reshape(*signs.shape[:-1], -1, self.spread, self.words) > 0
        shifts = np.arange(self.bits, dtype="uint32").reshape(self.spread, -1).T[:, :, None]
        return np.ascontiguousarray((parts.astype("uint32") << shifts).sum(axis=(-3, -2), dtype="uint32"))


def packing(channels: int, machine: Machine) -> Packing | None:
    """How so many channels are packed, words equally full; None where over half of the bits would be unused."""
    fewest = math.ceil(channels / WORD)
    words = next((n for n in range(fewest, 2 * channels // WORD + 1) if channels % n == 0), None)
    if words is None:
        return None
    bits = channels // words
    fitting = [n for n in range(1, bits + 1) if bits % n == 0 and n * words <= machine.lanes()]
    return Packing(words, bits, max(fitting, default=1))


def define_pack(x: Any, p: Packing) -> Any:
    """The words of x [..., C] as `Packing.pack` makes them; no anchor, so that what computes x is fused into it."""
    own = p.bits // p.spread
    j, q = te.reduce_axis((0, own), "j"), te.reduce_axis((0, p.spread), "q")

    def part(*i: Expr) -> Expr:
        bit = tirx.const(1, "uint32") << j.var.astype("uint32")
        positive = x[(*i[:-1], j * (p.spread * p.words) + i[-1])] > tirx.const(0, x.dtype)
        return te.sum(tirx.Select(positive, bit, tirx.const(0, "uint32")), axis=j)

    parts = te.compute((*x.shape[:-1], p.spread * p.words), part, "parts")

    def whole(*i: Expr) -> Expr:
        return te.sum(parts[(*i[:-1], q * p.words + i[-1])] << (q.var * own).astype("uint32"), axis=q)

    return parts if p.spread == 1 else te.compute((*x.shape[:-1], p.words), whole, "pack_bits")


# ---- what is computed ----------------------------------------------------------------------------------------------


def conv_operands(
    shape: Sequence[int], weights: np.ndarray, window: Window, machine: Machine
) -> tuple[np.ndarray, np.ndarray]:
    """Packed words and `base` of OIHW weights of +-1, for an NHWC input of this shape (in channels)."""
    p = packing(weights.shape[1], machine)
    assert p is not None
    bits = p.pack(weights.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    packed = conv2d.packed((*shape[:3], p.words), bits, window, machine)
    rows, cols = _runs(shape, weights.shape, window)
    ones = (weights > 0).sum(axis=1, dtype="int32")  # [O, kernel row, kernel column]
    base = np.zeros((len(rows.inside), len(cols.inside), packed.shape[1] * packed.shape[5]), "int32")
    for r, row in enumerate(rows.inside):
        for c, col in enumerate(cols.inside):
            there = np.outer(row, col)
            base[r, c, : weights.shape[0]] = weights.shape[1] * there.sum() + 2 * (ones * ~there).sum(axis=(1, 2))
    return packed, base


def define_conv(x: Any, w: Any, base: Any, window: Window, channels: int) -> Any:
    """The anchor: the convolution of NHWC words `x` and packed words `w`."""
    batch, height, width, count = (int(dim) for dim in x.shape)
    kh, kw, lanes = int(w.shape[2]), int(w.shape[3]), int(w.shape[5])
    rows, cols = window.outputs((height, width), (kh, kw))
    row_runs, col_runs = _runs((batch, height, width, count), (channels, count, kh, kw), window)
    r, s, c = (te.reduce_axis((0, extent), name) for extent, name in ((kh, "kh"), (kw, "kw"), (count, "ic")))

    def at(n: Expr, row: Expr, col: Expr, channel: Expr) -> Expr:
        y, z, inside = window.tap((row, col), (r, s), (height, width))
        value = tirx.if_then_else(inside, x[n, y, z, c], tirx.const(0, "uint32"))
        ones = tirx.popcount(value ^ w[0, channel // lanes, r, s, c, channel % lanes]).astype("int32")
        start = tirx.Select(tirx.all(r == 0, s == 0, c == 0), base[row_runs.at(row), col_runs.at(col), channel], 0)
        return te.sum((start - 2 * ones).astype("float32"), axis=[r, s, c])

    ints = [*window.strides, *window.dilations, *window.padding]
    return te.compute((batch, rows, cols, channels), at, CONV, attrs={ANCHOR: CONV, _WINDOW: ints})


def product_operand(left: Sequence[int], weights: np.ndarray, machine: Machine) -> np.ndarray:
    """Packed words of [K, N] weights of +-1, for a left operand [..., M, K]."""
    p = packing(weights.shape[0], machine)
    assert p is not None
    return matmul.packed((*left[:-1], p.words), np.ascontiguousarray(p.pack(weights.T).T), machine)


def define_product(x: Any, w: Any, signs: int, channels: int) -> Any:
    """The anchor: words x [..., M, K / 32] of `signs` signs times packed words w, `channels` columns."""
    k = te.reduce_axis((0, int(x.shape[-1])), "k")
    width = int(w.shape[-1])

    def at(*i: Expr) -> Expr:
        ones = tirx.popcount(x[(*i[:-1], k)] ^ w[i[-1] // width, k, i[-1] % width]).astype("int32")
        return te.sum((tirx.Select(k == 0, signs, 0) - 2 * ones).astype("float32"), axis=k)

    return te.compute((*x.shape[:-1], channels), at, PRODUCT, attrs={ANCHOR: PRODUCT, _SIGNS: signs})


@dataclass(frozen=True)
class _Runs:
    """Runs of output positions along an axis that see the same kernel positions inside of the input."""

    starts: tuple[int, ...]
    inside: tuple[tuple[bool, ...], ...]

    def at(self, position: Expr) -> Expr:
        """Which run a position is in."""
        found: Expr = 0
        for start in self.starts[1:]:
            found = found + tirx.Select(tirx.convert(position) >= start, 1, 0)
        return found


def _runs(shape: Sequence[int], weights: Sequence[int], window: Window) -> tuple[_Runs, _Runs]:
    """The runs of rows and of columns, for an NHWC input and OIHW weights of these shapes."""
    found = []
    for axis, outputs in enumerate(window.outputs(shape[1:3], weights[2:])):
        stride, dilation, before = window.strides[axis], window.dilations[axis], window.padding[axis]
        size, kernel = shape[1 + axis], weights[2 + axis]
        seen = [tuple(0 <= i * stride + k * dilation - before < size for k in range(kernel)) for i in range(outputs)]
        starts = [i for i in range(outputs) if i == 0 or seen[i] != seen[i - 1]]
        found.append(_Runs(tuple(starts), tuple(seen[i] for i in starts)))
    return found[0], found[1]


# ---- loop nests ----------------------------------------------------------------------------------------------------


def schedule_conv(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a binary convolution and its epilogue."""
    x, w, base = fused.reads
    a, b, c, d, *padding = (int(i) for i in fused.attributes[_WINDOW])
    window = Window((a, b), (c, d), (padding[0], padding[1], padding[2], padding[3]), 1)
    _, _, kh, kw, count, _ = shape_of(w)
    weights = (shape_of(fused.result)[3], count, kh, kw)
    g = conv2d.geometry(shape_of(x), weights, window)
    rows, cols = _runs(shape_of(x), weights, window)
    p = conv2d.problem(g)
    tile = best_tile(p, machine)

    def start(row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        return load(base, rows.at(row), cols.at(col), channel, lanes=lanes)

    staged = g.padded() or aliases(g.inputs * g.strides[1], tile.rows * tile.cols)
    return _Counting(
        g, conv2d.Conv(x, w, fused), tile, divide(p, tile, machine), machine.lanes(), staged, dot=_BITS,
        base=start, of_words=machine.has("avx512vpopcntdq"),
    ).nest()  # fmt: skip


def schedule_product(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a binary product and its epilogue."""
    x, w = fused.reads
    signs = int(fused.attributes[_SIGNS])
    g = matmul.geometry(shape_of(x), shape_of(fused.result)[-1], shared=True)
    p = matmul.problem(g)
    tile = best_tile(p, machine)
    operands = matmul.Product(x, w, fused, True, tile.vectors * machine.lanes())
    return _Counting(
        g, operands, tile, divide(p, tile, machine), machine.lanes(), aliases(g.inputs, tile.rows),
        dot=_BITS, base=lambda row, col, channel, lanes: number(signs, "int32", lanes),
        of_words=machine.has("avx512vpopcntdq"),
    ).nest()  # fmt: skip


@dataclass(frozen=True)
class _Counting(Contraction):
    """The contraction whose inner step counts the bits that differ.

    Attributes:
        base: of so many channels at an output position: row, column, channel, lanes.
        of_words: ones are counted in words, not in bytes.
    """

    base: Callable[[Expr, Expr, Expr, int], Expr] = field(kw_only=True)
    of_words: bool = field(kw_only=True)

    def _tile(self, source: _Source, at: _Place, vectors: list[Vector], rows: int, cols: int, col: Expr) -> Stmt:
        places = [(i, j, vector) for i in range(rows) for j in range(cols) for vector in vectors]
        counts = [_Count(f"{i}_{j}_{vector.at}", vector.lanes, self.of_words) for i, j, vector in places]
        channel = at.channel_block * (self.lanes * self.tile.vectors)

        def tap(kh: Expr, kw: Expr, word: Expr) -> list[Stmt]:
            return [
                count.add(
                    splat(source.at(at, i, col + j, (kh, kw), word), vector.lanes)
                    ^ self.operands.weight(at.n, 0, at.channel_block, (kh, kw, word), vector.at, vector.lanes)
                )
                for (i, j, vector), count in zip(places, counts, strict=True)
            ]

        finish = []
        for (i, j, vector), count in zip(places, counts, strict=True):
            row, column, first = at.row + i, col + j, channel + vector.at
            finish.append(count.finish(self.base(row, column, first, vector.lanes)))
            finish.append(self.operands.finish(at.n, row, column, first, vector.stored, count.result))
        clear = [stmt for count in counts for stmt in count.clear()]
        buffers = [buffer for count in counts for buffer in count.buffers]
        return allocate(buffers, block(*clear, self._taps(counts, tap), *finish))

    def _taps(self, counts: Sequence[_Count], tap: Callable[[Expr, Expr, Expr], list[Stmt]]) -> Stmt:
        """All taps; bytes are widened after as many words as fit."""
        g = self.geometry
        part = g.inputs
        if not self.of_words:
            part = next(size for size in range(min(_BYTE_WORDS, g.inputs), 0, -1) if g.inputs % size == 0)

        def every(extents: tuple[int, ...], done: tuple[Expr, ...]) -> Stmt:
            if not extents:
                kh, kw, outer, inner = done
                return block(*tap(kh, kw, outer * part + inner))
            extent, *rest = extents
            if not rest and extent <= _UNROLL:
                return block(*(every((), (*done, i)) for i in range(extent)))
            return loop(extent, lambda i: every(tuple(rest), (*done, i)), "k")

        def widened(extents: tuple[int, ...], done: tuple[Expr, ...]) -> Stmt:
            if math.prod(extents) <= _BYTE_WORDS:
                return block(every(extents, done), *(stmt for count in counts for stmt in count.widen()))
            return loop(extents[0], lambda i: widened(extents[1:], (*done, i)), "k")

        extents = (*g.kernel, g.inputs // part, part)
        return every(extents, ()) if self.of_words else widened(extents, ())


class _Count:
    """The ones of one vector of channels: a register of words, before it one of bytes unless words are counted."""

    def __init__(self, name: str, lanes: int, of_words: bool) -> None:
        self.lanes = lanes
        self.total = register(f"ones_{name}", lanes, "uint32")
        self.bytes = None if of_words else register(f"bytes_{name}", 4 * lanes, "uint8")
        self.result = register(f"sum_{name}", lanes, "float32")

    @property
    def buffers(self) -> list[Buffer]:
        return [self.total, self.result] + ([] if self.bytes is None else [self.bytes])

    def clear(self) -> list[Stmt]:
        zero = store(self.total, number(0, "uint32", self.lanes), 0, lanes=self.lanes)
        return [zero] if self.bytes is None else [zero, self._clear_bytes()]

    def add(self, word: Expr) -> Stmt:
        """Add the ones of a vector of words."""
        if self.bytes is None:
            return store(self.total, self._total() + tirx.popcount(word), 0, lanes=self.lanes)
        lanes = 4 * self.lanes
        ones = tirx.popcount(tirx.reinterpret(_vector("uint8", lanes), word))
        return store(self.bytes, load(self.bytes, 0, lanes=lanes) + ones, 0, lanes=lanes)

    def widen(self) -> list[Stmt]:
        """Add the four bytes of each word to the word's total, and start them anew."""
        four = tirx.reinterpret(_vector("uint32", self.lanes), load(self.bytes, 0, lanes=4 * self.lanes))
        low, half = (number(mask, "uint32", self.lanes) for mask in (0x00FF00FF, 0xFFFF))
        two = (four & low) + ((four >> number(8, "uint32", self.lanes)) & low)
        one = (two & half) + (two >> number(16, "uint32", self.lanes))
        return [store(self.total, self._total() + one, 0, lanes=self.lanes), self._clear_bytes()]

    def finish(self, start: Expr) -> Stmt:
        """The result from where it starts: minus two for each one."""
        ones = self._total().astype(_vector("int32", self.lanes))
        signs = start - ones * number(2, "int32", self.lanes)
        return store(self.result, signs.astype(_vector("float32", self.lanes)), 0, lanes=self.lanes)

    def _total(self) -> Expr:
        return load(self.total, 0, lanes=self.lanes)

    def _clear_bytes(self) -> Stmt:
        return store(self.bytes, number(0, "uint8", 4 * self.lanes), 0, lanes=4 * self.lanes)


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
