"""Matrix products, batched or not, of a value with packed constant weights or with another value.

A product is the contraction of contraction.py with a 1x1 kernel: rows are M, inputs are K, channels are N. Constant
weights are packed as [channel block][K][channel]; a right operand that is computed is read row by row where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te

from graphopt.targets.tvm.cpu.choices import Choice, carried
from graphopt.targets.tvm.cpu.contraction import Contraction, Geometry
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import Buffer, Expr, Stmt, is_one, load, shape_of, static
from graphopt.targets.tvm.cpu.rules import conv2d
from graphopt.targets.tvm.cpu.tiling import Problem, aliases, best_tile, divide
from graphopt.targets.tvm.machine import Machine

NAME = "matmul"
_PACKED = "graphopt.packed"
# Rows that a dynamic product is planned for.
_ROWS = 64


def geometry(left: Sequence[Expr], channels: int, shared: bool) -> Geometry:
    """The contraction of a left operand [..., M, K]; with `shared` weights all leading dims are rows."""
    *batch, m, k = (static(dim) for dim in left)
    if shared:
        batch, m = [], m * math.prod(batch)
    return Geometry(batch=math.prod(batch), groups=1, rows=m, cols=1, channels=channels, inputs=k, height=m, width=1)


def problem(g: Geometry) -> Problem:
    known = isinstance(g.batch, int) and isinstance(g.rows, int)
    return Problem(
        batch=g.batch if known else 1,
        groups=1,
        rows=g.rows if known else _ROWS,
        cols=1,
        channels=g.channels,
        inputs=g.inputs,
        taps=g.inputs,
        row_bytes=4 * g.inputs,
    )


def pack(weights: np.ndarray, width: int, taps: int = 1) -> np.ndarray:
    """[K, N] weights in blocks of `width` columns, each with `taps` rows side by side."""
    return conv2d.pack(weights.T[:, :, None, None], 1, width, taps)[0, :, 0, 0]


def default(g: Geometry, machine: Machine) -> Choice:
    """What the analytic model says."""
    p = problem(g)
    tile = best_tile(p, machine)
    return Choice("direct", tile, divide(p, tile, machine), isinstance(g.rows, int) and aliases(g.inputs, tile.rows))


def packed(left: Sequence[Expr], weights: np.ndarray, machine: Machine, choice: Choice | None = None) -> np.ndarray:
    """The weights as the nest for a left operand of this shape wants them."""
    choice = choice or default(geometry(left, weights.shape[1], shared=True), machine)
    return pack(weights, choice.tile.vectors * machine.lanes())


def define_packed(x: Any, w: Any, channels: int, choice: Choice | None = None) -> Any:
    """The anchor: x [..., M, K] times packed w, `channels` columns."""
    k = te.reduce_axis((0, int(x.shape[-1])), "k")
    width = int(w.shape[-1])

    def at(*i: Expr) -> Expr:
        return te.sum(x[(*i[:-1], k)] * w[i[-1] // width, k, i[-1] % width], axis=k)

    return te.compute((*x.shape[:-1], channels), at, NAME, attrs={ANCHOR: NAME, _PACKED: 1, **carried(choice)})


def define(x: Any, y: Any, choice: Choice | None = None) -> Any:
    """The anchor: x [..., M, K] times y [..., K, N] with equal leading dims."""
    k = te.reduce_axis((0, int(x.shape[-1])), "k")

    def at(*i: Expr) -> Expr:
        return te.sum(x[(*i[:-1], k)] * y[(*i[:-2], k, i[-1])], axis=k)

    return te.compute((*x.shape[:-1], y.shape[-1]), at, NAME, attrs={ANCHOR: NAME, _PACKED: 0, **carried(choice)})


def schedule(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a product and its epilogue."""
    x, w = fused.reads if len(fused.reads) == 2 else (fused.reads[0], fused.reads[0])  # a product with itself
    shared = bool(int(fused.attributes[_PACKED]))
    g = geometry(shape_of(x), shape_of(fused.result)[-1], shared)
    choice = Choice.of("direct", fused.attributes) or default(g, machine)
    tile, lanes = choice.tile, machine.lanes()
    operands = Product(x, w, fused, shared, tile.vectors * lanes)
    return Contraction(g, operands, tile, choice.division, lanes, choice.staged, exact=not shared).nest()


@dataclass(frozen=True)
class Product:
    """Where a product has its elements; `shared` weights are packed in blocks of `width` columns."""

    x: Buffer
    w: Buffer
    fused: Fused
    shared: bool
    width: int

    def read(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        return load(self.x, *self._leading(shape_of(self.x), n, row), channel, lanes=lanes)

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        if self.shared:
            return load(self.w, channel_block, tap[2], at, lanes=lanes)
        leading = self._leading(shape_of(self.w), n, tap[2])
        return load(self.w, *leading, channel_block * self.width + at, lanes=lanes)

    def finish(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int, accumulator: Buffer) -> Stmt:
        leading = self._leading(shape_of(self.fused.output), n, row)
        return self.fused.finish((*leading, channel), lanes, accumulator)

    def _leading(self, shape: Sequence[Expr], n: Expr, row: Expr) -> list[Expr]:
        return leading(shape, n, row, self.shared)


def leading(shape: Sequence[Expr], n: Expr, row: Expr, shared: bool) -> list[Expr]:
    """All indices but the last: of a batch `n` and a row, or with `shared` of a row that counts through the batch."""
    *batch, rows, _ = shape
    flat = n
    indices: list[Expr] = []
    if shared:
        flat, row = (0, row) if all(map(is_one, batch)) else (row // rows, row % rows)
    for dim in reversed(batch):
        indices.insert(0, 0 if is_one(dim) else flat % dim)
        flat = flat if is_one(dim) else flat // dim
    return [*indices, row]
