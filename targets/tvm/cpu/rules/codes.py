"""Convolutions and products of 8-bit codes with constant 8-bit weights, summed exactly in 32-bit integers.

    sums[o] = start[o] + sum over taps of words(x) * w[o]        start = bias - zero point of x * sum of the weights

x is channels-last, its channels a multiple of the dot's taps; outside of the image it is the zero point. The nest is
contraction.py's, a word of channels per step (dots.py). Not here: depthwise convolutions, and what becomes of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.targets.tvm.cpu import dots
from graphopt.targets.tvm.cpu.contraction import Contraction, Geometry
from graphopt.targets.tvm.cpu.dots import Dot
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import Buffer, Expr, Stmt, load, shape_of
from graphopt.targets.tvm.cpu.rules import conv2d, matmul
from graphopt.targets.tvm.cpu.rules.conv2d import Window
from graphopt.targets.tvm.cpu.tiling import Problem, Tile, aliases, best_tile, divide
from graphopt.targets.tvm.machine import Machine

CONV = "conv2d_codes"
MATMUL = "matmul_codes"
_WINDOW = "graphopt.window"
_ZERO = "graphopt.zero"


@dataclass(frozen=True)
class Packed:
    """Weights as the nest wants them, and what the sums of each channel start with, [group][padded channels]."""

    weights: np.ndarray
    start: np.ndarray


def pack_conv(
    shape: Sequence[int], dtype: str, weights: np.ndarray, zero: int, bias: np.ndarray, window: Window, machine: Machine
) -> Packed:
    """Pack OIHW weights and an int32 bias for an NHWC input of these dims, element type and zero point."""
    dot = dots.of_codes(machine)
    words = _conv_geometry(shape, weights.shape, window, dot)
    width = best_tile(conv2d.problem(words), machine).vectors * machine.lanes()
    packed = conv2d.pack(weights, window.groups, width, dot.taps).astype(dot.weights)
    totals = bias - (zero + dot.shift(dtype)) * weights.sum(axis=(1, 2, 3), dtype=np.int64)
    return Packed(packed, _padded(totals, window.groups, packed.shape[1] * width))


def pack_matmul(
    left: Sequence[int], dtype: str, weights: np.ndarray, zero: int, bias: np.ndarray, machine: Machine
) -> Packed:
    """Pack [K, N] weights and an int32 bias for a left operand of these dims, element type and zero point."""
    dot = dots.of_codes(machine)
    width = _matmul_tile(left, weights.shape[1], dot, machine)[1].vectors * machine.lanes()
    packed = matmul.pack(weights, width, dot.taps).astype(dot.weights)
    totals = bias - (zero + dot.shift(dtype)) * weights.sum(axis=0, dtype=np.int64)
    return Packed(packed, _padded(totals, 1, packed.shape[0] * width))


def _padded(totals: np.ndarray, groups: int, width: int) -> np.ndarray:
    out = np.zeros((groups, width), np.int64)
    out[:, : totals.size // groups] = totals.reshape(groups, -1)
    return ((out + 2**31) % 2**32 - 2**31).astype(np.int32)  # sums wrap as those of the instructions do


def pad_channels(x: Any, groups: int, taps: int) -> Any:
    """x with zeros behind the channels of each group, up to whole words."""
    inputs = int(x.shape[-1]) // groups
    padded = math.ceil(inputs / taps) * taps

    def at(*i: Expr) -> Expr:
        channel = i[-1] % padded
        here = i[-1] // padded * inputs + channel if groups > 1 else i[-1]
        return tirx.if_then_else(channel < inputs, x[(*i[:-1], here)], tirx.const(0, x.dtype))

    return te.compute((*x.shape[:-1], groups * padded), at, "pad_channels")


def define_conv(x: Any, w: Any, start: Any, window: Window, channels: int, zero: int, inputs: int) -> Any:
    """The anchor: the sums of NHWC codes `x` and packed `w`, of which a group reads `inputs` channels."""
    batch, height, width, depth = (int(dim) for dim in x.shape)
    _, _, kh, kw, words, _ = (int(dim) for dim in w.shape)
    stored = depth // window.groups
    taps = stored // words
    block = int(w.shape[-1]) // taps
    rows, cols = window.outputs((height, width), (kh, kw))
    per_group = channels // window.groups
    r, s, c = (te.reduce_axis((0, extent), name) for extent, name in ((kh, "kh"), (kw, "kw"), (inputs, "ic")))

    def at(n: Expr, row: Expr, col: Expr, channel: Expr) -> Expr:
        group, o = channel // per_group, channel % per_group
        y, z, inside = window.tap((row, col), (r, s), (height, width))
        value = tirx.if_then_else(inside, x[n, y, z, group * stored + c], tirx.const(zero, x.dtype))
        weight = w[group, o // block, r, s, c // taps, o % block * taps + c % taps]
        first = tirx.all(r == 0, s == 0, c == 0)
        return te.sum(_term(value, weight, start[group, o], first), axis=[r, s, c])

    ints = [*window.strides, *window.dilations, *window.padding, window.groups]
    attributes = {ANCHOR: CONV, _WINDOW: ints, _ZERO: zero}
    return te.compute((batch, rows, cols, channels), at, CONV, attrs=attributes)


def define_matmul(x: Any, w: Any, start: Any, channels: int, inputs: int) -> Any:
    """The anchor: the sums of codes x [..., M, K] and packed `w`, of which `inputs` rows are read."""
    k = te.reduce_axis((0, inputs), "k")
    taps = int(x.shape[-1]) // int(w.shape[1])
    block = int(w.shape[-1]) // taps

    def at(*i: Expr) -> Expr:
        weight = w[i[-1] // block, k // taps, i[-1] % block * taps + k % taps]
        return te.sum(_term(x[(*i[:-1], k)], weight, start[0, i[-1]], k == 0), axis=k)

    return te.compute((*x.shape[:-1], channels), at, MATMUL, attrs={ANCHOR: MATMUL})


def _term(value: Expr, weight: Expr, start: Expr, first: Expr) -> Expr:
    product = value.astype("int32") * weight.astype("int32")
    return product + tirx.if_then_else(first, start, tirx.const(0, "int32"))


def schedule_conv(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a convolution of codes and its epilogue."""
    x, w, start = fused.reads
    dot = dots.of_codes(machine)
    a, b, c, d, *padding, groups = (int(i) for i in fused.attributes[_WINDOW])
    window = Window((a, b), (c, d), (padding[0], padding[1], padding[2], padding[3]), groups)
    _, _, kh, kw, words, _ = shape_of(w)
    shape = shape_of(x)
    g = conv2d.geometry(shape, (shape_of(fused.result)[3], words, kh, kw), window)
    p = conv2d.problem(g)
    tile = best_tile(p, machine)
    pixel = g.groups * g.inputs * g.strides[1]
    staged = g.padded() or aliases(pixel, tile.rows * tile.cols) or not dot.reads_in_place()
    operands = _Codes(x, w, fused, dot, lambda n, row, col: [n, row, col])
    return _nest(g, p, tile, operands, start, machine, staged, int(fused.attributes[_ZERO]))


def schedule_matmul(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a product of codes and its epilogue."""
    x, w, start = fused.reads
    dot = dots.of_codes(machine)
    shape = shape_of(x)
    g, tile = _matmul_tile(shape, shape_of(fused.result)[-1], dot, machine)
    staged = aliases(g.inputs, tile.rows) or not dot.reads_in_place()
    operands = _Codes(x, w, fused, dot, lambda n, row, col: matmul.leading(shape, n, row, True))
    return _nest(g, matmul.problem(g), tile, operands, start, machine, staged, 0)


def _matmul_tile(left: Sequence[int], channels: int, dot: Dot, machine: Machine) -> tuple[Geometry, Tile]:
    g = matmul.geometry((*left[:-1], math.ceil(left[-1] / dot.taps)), channels, shared=True)
    return g, best_tile(matmul.problem(g), machine)


def _conv_geometry(shape: Sequence[int], weights: Sequence[int], window: Window, dot: Dot) -> Geometry:
    return conv2d.geometry(shape, (weights[0], math.ceil(weights[1] / dot.taps), *weights[2:]), window)


def _nest(
    g: Geometry, p: Problem, tile: Tile, operands: _Codes, start: Buffer, machine: Machine, staged: bool, zero: int
) -> Stmt:
    width = tile.vectors * machine.lanes()

    def first(group: Expr, channel_block: Expr, at: int, lanes: int) -> Expr:
        return load(start, group, channel_block * width + at, lanes=lanes)

    dot = operands.dot
    return Contraction(
        g,
        operands,
        tile,
        divide(p, tile, machine),
        machine.lanes(),
        staged,
        dot=dot,
        padding=dot.padding(zero + dot.shift(str(operands.x.ty.dtype))),
        start=first,
    ).nest()


@dataclass(frozen=True)
class _Codes:
    x: Buffer
    w: Buffer
    fused: Fused
    dot: Dot
    place: Callable[[Expr, Expr, Expr], list[Expr]]

    def read(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        return self.dot.words(self.x, self.place(n, row, col), channel, lanes)

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        taps = self.dot.taps
        leading = [group, channel_block, tap[0], tap[1]] if len(shape_of(self.w)) == 6 else [channel_block]
        return load(self.w, *leading, tap[2], at * taps, lanes=lanes * taps)

    def finish(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int, accumulator: Buffer) -> Stmt:
        return self.fused.finish((*self.place(n, row, col), channel), lanes, accumulator)
