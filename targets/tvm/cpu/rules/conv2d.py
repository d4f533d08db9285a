"""Direct convolution, grouped and strided and dilated, channels-last, with weights packed at compile time.

Packed weights are [group][channel block][kernel row][kernel column][input channel][channel], channels padded
with zeros to whole blocks. The nest is contraction.py's; a window with padding, or pixels that collide in the
first-level cache, are read from a padded copy. Depthwise convolution is in depthwise.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.targets.tvm.cpu.choices import Choice, carried
from graphopt.targets.tvm.cpu.contraction import Contraction, Geometry
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import Buffer, Expr, Stmt, load, shape_of
from graphopt.targets.tvm.cpu.tiling import Problem, aliases, best_tile, divide
from graphopt.targets.tvm.machine import Machine

NAME = "conv2d"
_WINDOW = "graphopt.window"


@dataclass(frozen=True)
class Window:
    """Attributes of a convolution: strides, dilations, padding (top, left, bottom, right), groups."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: tuple[int, int, int, int]
    groups: int

    @classmethod
    def of(cls, ints: Sequence[int]) -> Window:
        """The window of the numbers that `ints` gives."""
        a, b, c, d, top, left, bottom, right, groups = ints
        return cls((a, b), (c, d), (top, left, bottom, right), groups)

    def ints(self) -> list[int]:
        """Strides, dilations, padding, groups."""
        return [*self.strides, *self.dilations, *self.padding, self.groups]

    def outputs(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Output rows and columns."""
        top, left, bottom, right = self.padding
        spans = (size[0] + top + bottom, size[1] + left + right)
        rows, cols = (
            (span - (k - 1) * d - 1) // s + 1
            for span, k, d, s in zip(spans, kernel, self.dilations, self.strides, strict=True)
        )
        return rows, cols

    def tap(self, output: Sequence[Expr], kernel: Sequence[Expr], size: Sequence[Expr]) -> tuple[Expr, Expr, Expr]:
        """Input row and column under a position of the kernel, and whether they lie inside of the input."""
        y, z = (
            at * s + k * d - p
            for at, k, s, d, p in zip(output, kernel, self.strides, self.dilations, self.padding[:2], strict=True)
        )
        return y, z, tirx.all(y >= 0, y < size[0], z >= 0, z < size[1])


def geometry(shape: Sequence[int], weights: Sequence[int], window: Window) -> Geometry:
    """The contraction of an NHWC input and OIHW weights of these shapes, in words."""
    rows, cols = window.outputs(shape[1:3], weights[2:])
    return Geometry(
        batch=shape[0],
        groups=window.groups,
        rows=rows,
        cols=cols,
        channels=weights[0] // window.groups,
        inputs=weights[1],
        height=shape[1],
        width=shape[2],
        kernel=(weights[2], weights[3]),
        strides=window.strides,
        dilations=window.dilations,
        before=window.padding[:2],
    )


def problem(g: Geometry) -> Problem:
    return Problem(
        batch=g.batch,
        groups=g.groups,
        rows=g.rows,
        cols=g.cols,
        channels=g.channels,
        inputs=g.inputs,
        taps=g.kernel[0] * g.kernel[1] * g.inputs,
        row_bytes=4 * g.strides[0] * g.width * g.groups * g.inputs,
    )


def pack(weights: np.ndarray, groups: int, width: int, taps: int = 1) -> np.ndarray:
    """OIHW weights in blocks of `width` output channels, each with `taps` input channels side by side."""
    out, inputs, kh, kw = weights.shape
    per_group, words = out // groups, math.ceil(inputs / taps)
    blocks = math.ceil(per_group / width)
    padded = np.zeros((groups, blocks * width, words * taps, kh, kw), weights.dtype)
    padded[:, :per_group, :inputs] = weights.reshape(groups, per_group, inputs, kh, kw)
    parts = padded.reshape(groups, blocks, width, words, taps, kh, kw).transpose(0, 1, 5, 6, 3, 2, 4)
    return np.ascontiguousarray(parts.reshape(groups, blocks, kh, kw, words, width * taps))


def default(g: Geometry, machine: Machine) -> Choice:
    """What the analytic model says."""
    p = problem(g)
    tile = best_tile(p, machine)
    staged = g.padded() or aliases(g.groups * g.inputs * g.strides[1], tile.rows * tile.cols)
    return Choice("direct", tile, divide(p, tile, machine), staged)


def packed(
    shape: Sequence[int], weights: np.ndarray, window: Window, machine: Machine, choice: Choice | None = None
) -> np.ndarray:
    """The weights as the nest for an input of this shape wants them."""
    choice = choice or default(geometry(shape, weights.shape, window), machine)
    return pack(weights, window.groups, choice.tile.vectors * machine.lanes())


def define(x: Any, w: Any, window: Window, channels: int, choice: Choice | None = None) -> Any:
    """The anchor: what the convolution of NHWC `x` and packed `w` with so many output channels computes."""
    batch, height, width, _ = (int(dim) for dim in x.shape)
    _, _, kh, kw, inputs, block = (int(dim) for dim in w.shape)
    rows, cols = window.outputs((height, width), (kh, kw))
    per_group = channels // window.groups
    r, s, c = (te.reduce_axis((0, extent), name) for extent, name in ((kh, "kh"), (kw, "kw"), (inputs, "ic")))

    def at(n: Expr, row: Expr, col: Expr, channel: Expr) -> Expr:
        group, o = channel // per_group, channel % per_group
        y, z, inside = window.tap((row, col), (r, s), (height, width))
        value = tirx.if_then_else(inside, x[n, y, z, group * inputs + c], tirx.const(0, x.dtype))
        return te.sum(value * w[group, o // block, r, s, c, o % block], axis=[r, s, c])

    attrs = {ANCHOR: NAME, _WINDOW: window.ints(), **carried(choice)}
    return te.compute((batch, rows, cols, channels), at, NAME, attrs=attrs)


def schedule(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a convolution and its epilogue."""
    x, w = fused.reads
    window = Window.of([int(i) for i in fused.attributes[_WINDOW]])
    _, _, kh, kw, inputs, _ = shape_of(w)
    g = geometry(shape_of(x), (shape_of(fused.result)[3], inputs, kh, kw), window)
    choice = Choice.of("direct", fused.attributes) or default(g, machine)
    staged = choice.staged or g.padded()
    return Contraction(g, Conv(x, w, fused), choice.tile, choice.division, machine.lanes(), staged).nest()


@dataclass(frozen=True)
class Conv:
    """Where a convolution of NHWC `x` and packed `w` has its elements."""

    x: Buffer
    w: Buffer
    fused: Fused

    def read(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        return load(self.x, n, row, col, channel, lanes=lanes)

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        return load(self.w, group, channel_block, *tap, at, lanes=lanes)

    def finish(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int, accumulator: Buffer) -> Stmt:
        return self.fused.finish((n, row, col, channel), lanes, accumulator)
