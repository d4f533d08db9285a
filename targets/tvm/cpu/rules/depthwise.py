"""Depthwise convolution, channels-last: every channel has a filter of its own, so channels are the vector.

    parallel task in batch x row blocks:
        for channel block:
            for row in block, column tile:                  the first and last tiles know which columns are padding
                accumulators = 0                            columns x vectors registers
                for kernel row inside the input:
                    for kernel column: accumulators += input * weights
                out = epilogue(accumulators)

Weights are [kernel row][kernel column][channel]. Padding costs nothing: positions outside are left out of the sums.
8-bit codes are summed in floats: sums of so few small integers are exact there, and CPUs multiply floats faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.targets.tvm.cpu.choices import Choice, carried
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import (
    Buffer,
    Expr,
    Stmt,
    allocate,
    between,
    block,
    fma,
    load,
    loop,
    number,
    parallel,
    register,
    shape_of,
    store,
    when,
)
from graphopt.targets.tvm.cpu.rules.conv2d import Window
from graphopt.targets.tvm.cpu.tiling import Division, Tile
from graphopt.targets.tvm.machine import Machine

NAME = "depthwise"
CODES = "depthwise_codes"
_WINDOW = "graphopt.window"
_ZERO = "graphopt.zero"
# Products of 8-bit codes less their zero points are below 2**15, and integers up to 2**24 are floats.
_MOST_TAPS = 1 << 9
_MOST_COLUMNS = 8


def pack(weights: np.ndarray) -> np.ndarray:
    """[C, 1, kernel rows, kernel columns] weights with channels last."""
    return np.ascontiguousarray(weights[:, 0].transpose(1, 2, 0))


def default(rows: int, cols: int, machine: Machine) -> Choice:
    """Even column tiles of up to eight columns, and tasks of about four rows."""
    width = math.ceil(cols / math.ceil(cols / _MOST_COLUMNS))
    row_blocks = min(rows, machine.threads * math.ceil(rows / (4 * machine.threads)))
    return Choice("depthwise", Tile(1, width, 1), Division(row_blocks, 1))


def define(x: Any, w: Any, window: Window, choice: Choice | None = None) -> Any:
    """The anchor: what the depthwise convolution of NHWC `x` and packed `w` computes."""
    batch, height, width, channels = (int(dim) for dim in x.shape)
    kh, kw, _ = (int(dim) for dim in w.shape)
    rows, cols = window.outputs((height, width), (kh, kw))
    r, s = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")

    def at(n: Expr, row: Expr, col: Expr, channel: Expr) -> Expr:
        y, z, inside = window.tap((row, col), (r, s), (height, width))
        return te.sum(
            tirx.if_then_else(inside, x[n, y, z, channel], tirx.const(0, x.dtype)) * w[r, s, channel], axis=[r, s]
        )

    attrs = {ANCHOR: NAME, _WINDOW: window.ints(), **carried(choice)}
    return te.compute((batch, rows, cols, channels), at, NAME, attrs=attrs)


def define_codes(x: Any, w: Any, bias: Any, window: Window, zero: int) -> Any:
    """The anchor: 32-bit sums of 8-bit codes `x` less their zero point, times integers as floats `w`, plus bias."""
    batch, height, width, channels = (int(dim) for dim in x.shape)
    kh, kw, _ = (int(dim) for dim in w.shape)
    rows, cols = window.outputs((height, width), (kh, kw))
    r, s = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")

    def at(n: Expr, row: Expr, col: Expr, channel: Expr) -> Expr:
        y, z, inside = window.tap((row, col), (r, s), (height, width))
        code = x[n, y, z, channel].astype("int32") - zero
        value = tirx.if_then_else(inside, code, tirx.const(0, "int32")) * w[r, s, channel].astype("int32")
        first = tirx.all(r == 0, s == 0)
        return te.sum(value + tirx.if_then_else(first, bias[channel], tirx.const(0, "int32")), axis=[r, s])

    attributes = {ANCHOR: CODES, _WINDOW: window.ints(), _ZERO: zero}
    return te.compute((batch, rows, cols, channels), at, CODES, attrs=attributes)


def schedule(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a depthwise convolution, of floats or codes, and its epilogue."""
    x, w, *bias = fused.reads
    window = Window.of([int(i) for i in fused.attributes[_WINDOW]])
    _, rows, cols, _ = shape_of(fused.result)
    choice = Choice.of("depthwise", fused.attributes) or default(rows, cols, machine)
    codes = _Codes(bias[0], int(fused.attributes[_ZERO])) if bias else None
    return _Depthwise(x, w, fused, window, machine.lanes(), choice, codes).nest()


@dataclass(frozen=True)
class _Codes:
    """What codes need besides: an int32 bias per channel, and the zero point of x."""

    bias: Buffer
    zero: int


@dataclass(frozen=True)
class _Depthwise:
    x: Buffer
    w: Buffer
    fused: Fused
    window: Window
    lanes: int
    choice: Choice
    codes: _Codes | None = None

    def nest(self) -> Stmt:
        batch, rows, _, channels = shape_of(self.fused.result)
        lanes = self.lanes
        full, tail = divmod(channels, lanes)
        row_blocks = min(rows, self.choice.division.row_blocks)

        def task(t: Expr) -> Stmt:
            n, part = t // row_blocks, t % row_blocks
            first, last = part * rows // row_blocks, (part + 1) * rows // row_blocks
            parts = []
            if full:
                parts.append(loop(full, lambda v: self._rows(n, first, last, v * lanes, lanes), "v"))
            if tail:
                parts.append(self._rows(n, first, last, full * lanes, tail))
            return block(*parts)

        return parallel(batch * row_blocks, task)

    def _rows(self, n: Expr, first: Expr, last: Expr, channel: Expr, lanes: int) -> Stmt:
        return between(first, last, lambda row: self._columns(n, row, channel, lanes), "row")

    def _columns(self, n: Expr, row: Expr, channel: Expr, lanes: int) -> Stmt:
        """Column tiles: those whose window lies inside share a loop, the others are specialised."""
        cols = shape_of(self.fused.result)[2]
        width = self.choice.tile.cols
        starts = range(0, cols, width)
        inner = [c for c in starts if c + width <= cols and self._inside(c, width)]

        def tile(c: int, col: Expr) -> Stmt:
            return self._tile(n, row, col, c, min(width, cols - c), channel, lanes)

        parts = [tile(c, c) for c in starts if c not in inner]
        if inner:
            parts.append(loop(len(inner), lambda i: tile(inner[0], inner[0] + i * width), "c"))
        return block(*parts)

    def _inside(self, col: int, cols: int) -> bool:
        return all(self._valid(col + j, s) for j in range(cols) for s in range(shape_of(self.w)[1]))

    def _valid(self, col: int, s: int) -> bool:
        at = col * self.window.strides[1] + s * self.window.dilations[1] - self.window.padding[1]
        return 0 <= at < shape_of(self.x)[2]

    def _tile(self, n: Expr, row: Expr, col: Expr, known: int, cols: int, channel: Expr, lanes: int) -> Stmt:
        """`cols` outputs from `col` on; padding is the same as at the column `known`."""
        kh, kw, _ = shape_of(self.w)
        dtype = "float32"
        accumulators = [register(f"acc_{j}", lanes, dtype) for j in range(cols)]
        clear = [store(acc, number(0, dtype, lanes), 0, lanes=lanes) for acc in accumulators]

        def kernel_row(r: Expr) -> Stmt:
            y = row * self.window.strides[0] + r * self.window.dilations[0] - self.window.padding[0]
            sums = [
                fma(acc, self._read(n, y, col + j, s, channel, lanes), load(self.w, r, s, channel, lanes=lanes), lanes)
                for s in range(kw)
                for j, acc in enumerate(accumulators)
                if self._valid(known + j, s)
            ]
            taps = block(*sums) if sums else tirx.Evaluate(0)
            if not self.window.padding[0] and not self.window.padding[2]:
                return taps
            return when(tirx.And(y >= 0, y < shape_of(self.x)[1]), taps)

        finish = [self._finish((n, row, col + j, channel), lanes, acc) for j, acc in enumerate(accumulators)]
        return allocate(accumulators, block(*clear, loop(kh, kernel_row, "kh"), *finish))

    def _finish(self, at: tuple[Expr, Expr, Expr, Expr], lanes: int, acc: Buffer) -> Stmt:
        if self.codes is None:
            return self.fused.finish(at, lanes, acc)
        total = register("total", lanes, "int32")
        value = _cast(load(acc, 0, lanes=lanes), "int32", lanes) + load(self.codes.bias, at[3], lanes=lanes)
        return allocate([total], block(store(total, value, 0, lanes=lanes), self.fused.finish(at, lanes, total)))

    def _read(self, n: Expr, y: Expr, col: Expr, s: int, channel: Expr, lanes: int) -> Expr:
        z = col * self.window.strides[1] + s * self.window.dilations[1] - self.window.padding[1]
        value = load(self.x, n, y, z, channel, lanes=lanes)
        if self.codes is None:
            return value
        value = _cast(value, "float32", lanes)
        return value - number(self.codes.zero, "float32", lanes) if self.codes.zero else value


def _cast(value: Expr, dtype: str, lanes: int) -> Expr:
    return value.astype(f"{dtype}x{lanes}" if lanes > 1 else dtype)


def is_depthwise(weights: Sequence[int], groups: int) -> bool:
    """Whether OIHW weights of this shape have one filter per channel."""
    return weights[1] == 1 and weights[0] == groups


def takes_codes(weights: Sequence[int], groups: int) -> bool:
    """Whether a convolution of codes with OIHW weights of this shape is summed here."""
    return is_depthwise(weights, groups) and math.prod(weights[1:]) <= _MOST_TAPS
