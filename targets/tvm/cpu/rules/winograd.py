"""Winograd convolution F(m x m, 3 x 3), stride 1, channels-last: fewer multiplications for 3x3 kernels.

    parallel task in batch x blocks of tile rows:
        for tile, input channel vector:     V[., tile, channel] = B^T d B           alpha x alpha inputs, zeros outside
        for element of the alpha x alpha:   M[., tile, :] = V[., tile, :] x U[.]    contraction.py's nest
        for tile, output channel vector:    out = epilogue(A^T M A)                 m x m outputs

alpha = m + 2; weights are transformed at compile time, U = G g G^T, and packed as [element][channel block][input
channel][channel]. From: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015). F(2x2) takes 16/36 of
the multiplications of a direct convolution, F(4x4) 36/144; rounding errors are a few times those of a direct sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import te, tirx

from graphopt.targets.tvm.cpu.choices import Choice, carried
from graphopt.targets.tvm.cpu.contraction import Contraction, Geometry
from graphopt.targets.tvm.cpu.fused import Fused
from graphopt.targets.tvm.cpu.inlining import ANCHOR
from graphopt.targets.tvm.cpu.loops import (
    Buffer,
    Expr,
    Stmt,
    allocate,
    between,
    block,
    load,
    loop,
    number,
    parallel,
    register,
    scratch,
    shape_of,
    splat,
    store,
    when,
)
from graphopt.targets.tvm.cpu.rules.conv2d import Window
from graphopt.targets.tvm.cpu.rules.conv2d import geometry as direct_geometry
from graphopt.targets.tvm.cpu.rules.conv2d import problem as direct_problem
from graphopt.targets.tvm.cpu.tiling import Division, Problem, Tile, best_tile, busiest, estimate, stream_cycles
from graphopt.targets.tvm.machine import Machine

NAME = "winograd"
_PADDING = "graphopt.padding"
Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Transform:
    """The matrices of F(m x m, 3 x 3)."""

    m: int
    inputs: Matrix
    weights: Matrix
    outputs: Matrix

    @property
    def alpha(self) -> int:
        return self.m + 2


TRANSFORMS = {
    2: Transform(
        2,
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    4: Transform(
        4,
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}


@dataclass(frozen=True)
class Plan:
    """How a convolution is cut: size of tiles, rows and columns of them, blocks of tile rows, register tile."""

    m: int
    tile_rows: int
    tile_cols: int
    row_blocks: int
    tile: Tile

    def block_tiles(self) -> int:
        """Tiles of one block."""
        return math.ceil(self.tile_rows / self.row_blocks) * self.tile_cols


def applies(weights: Sequence[int], window: Window) -> bool:
    """Whether OIHW weights and a window are what this rule computes."""
    unit = window.strides == (1, 1) and window.dilations == (1, 1)
    return unit and window.groups == 1 and tuple(weights[2:]) == (3, 3)


def better_plan(shape: Sequence[int], weights: Sequence[int], window: Window, machine: Machine) -> Plan | None:
    """The plan of least estimated time; None where a direct convolution is estimated to be as fast."""
    if not applies(weights, window):
        return None
    g = direct_geometry(shape, weights, window)
    p = direct_problem(g)
    best = 0.9 * busiest(p, best_tile(p, machine), machine)
    found = None
    for m in TRANSFORMS:
        plan = make_plan(m, g, machine)
        cycles = plan_cycles(plan, g, machine)
        if cycles < best:
            best, found = cycles, plan
    return found


def make_plan(m: int, g: Geometry, machine: Machine) -> Plan:
    """F(m x m) with blocks whose transformed values fit the second-level cache, divided evenly among the threads."""
    tile_rows, tile_cols = math.ceil(g.rows / m), math.ceil(g.cols / m)
    row_bytes = 4 * (m + 2) ** 2 * tile_cols * (g.inputs + g.channels)
    fit = max(1, min(tile_rows, int(0.6 * machine.l2 / row_bytes)))
    blocks = math.ceil(tile_rows / fit)
    rounds = math.ceil(blocks * g.batch / machine.threads)
    row_blocks = min(tile_rows, max(blocks, rounds * machine.threads // g.batch))
    tiles = math.ceil(tile_rows / row_blocks) * tile_cols
    return Plan(m, tile_rows, tile_cols, row_blocks, best_tile(element_products(tiles, g), replace(machine, threads=1)))


def chosen_plan(choice: Choice, g: Geometry) -> Plan:
    """The plan that a choice stands for."""
    tile_rows, tile_cols = math.ceil(g.rows / choice.m), math.ceil(g.cols / choice.m)
    return Plan(choice.m, tile_rows, tile_cols, min(tile_rows, choice.division.row_blocks), choice.tile)


def element_products(tiles: int, g: Geometry) -> Problem:
    """The product of one element: tiles x input channels x output channels."""
    return Problem(
        batch=1,
        groups=1,
        rows=tiles,
        cols=1,
        channels=g.channels,
        inputs=g.inputs,
        taps=g.inputs,
        row_bytes=4 * g.inputs,
    )


def plan_cycles(plan: Plan, g: Geometry, machine: Machine) -> float:
    """Estimated cycles of the busiest core."""
    alpha = plan.m + 2
    tiles = plan.block_tiles()
    products = alpha**2 * estimate(element_products(tiles, g), plan.tile, machine)
    weights = alpha**2 * g.inputs * g.channels * 4
    # Transforms: loads, stores and about three additions per element and dimension.
    vectors = tiles * (math.ceil(g.inputs / machine.lanes()) + math.ceil(g.channels / machine.lanes()))
    transforms = vectors * alpha**2 * 6
    rounds = math.ceil(plan.row_blocks * g.batch / machine.threads)
    return rounds * (max(products, stream_cycles(weights, machine)) + transforms)


def pack(weights: np.ndarray, plan: Plan, machine: Machine) -> np.ndarray:
    """OIHW weights, transformed in double precision and packed."""
    g = np.array(TRANSFORMS[plan.m].weights)
    out, inputs = weights.shape[:2]
    transformed = (g @ weights.astype("float64") @ g.T).transpose(2, 3, 0, 1)
    width = plan.tile.vectors * machine.lanes()
    blocks = math.ceil(out / width)
    padded = np.zeros(((plan.m + 2) ** 2, blocks * width, inputs), "float32")
    padded[:, :out] = transformed.reshape(-1, out, inputs)
    return np.ascontiguousarray(padded.reshape(-1, blocks, width, inputs).transpose(0, 1, 3, 2))


def define(x: Any, u: Any, window: Window, channels: int, m: int, choice: Choice | None = None) -> Any:
    """The anchor. Its body, a sum over transformed weights, only tells what is read: this rule always takes it."""
    batch, height, width, inputs = (int(dim) for dim in x.shape)
    rows, cols = window.outputs((height, width), (3, 3))
    block_width = int(u.shape[3])
    e, c = te.reduce_axis((0, (m + 2) ** 2), "e"), te.reduce_axis((0, inputs), "ic")

    def at(n: Expr, row: Expr, col: Expr, channel: Expr) -> Expr:
        value = x[n, tirx.min(row, height - 1), tirx.min(col, width - 1), c]
        return te.sum(value * u[e, channel // block_width, c, channel % block_width], axis=[e, c])

    attrs = {ANCHOR: NAME, _PADDING: [m, *window.padding], **carried(choice)}
    return te.compute((batch, rows, cols, channels), at, NAME, attrs=attrs)


def schedule(fused: Fused, machine: Machine) -> Stmt:
    """The loop nest of a Winograd convolution and its epilogue."""
    x, u = fused.reads
    m, *padding = (int(i) for i in fused.attributes[_PADDING])
    window = Window((1, 1), (1, 1), (padding[0], padding[1], padding[2], padding[3]), 1)
    channels = shape_of(fused.result)[3]
    g = direct_geometry(shape_of(x), (channels, shape_of(x)[3], 3, 3), window)
    choice = Choice.of("winograd", fused.attributes)
    plan = make_plan(m, g, machine) if choice is None else chosen_plan(choice, g)
    return _Winograd(x, u, fused, g, plan, machine).nest()


class _Winograd:
    """The nest; V and M are scratch of one task."""

    def __init__(self, x: Buffer, u: Buffer, fused: Fused, g: Geometry, plan: Plan, machine: Machine) -> None:
        self.x, self.u, self.fused, self.g, self.plan, self.machine = x, u, fused, g, plan, machine
        self.transform = TRANSFORMS[plan.m]
        alpha, tiles = self.transform.alpha, plan.block_tiles()
        blocks, width = shape_of(u)[1], shape_of(u)[3]
        self.v = scratch("transformed", (alpha**2, tiles, g.inputs), "float32")
        self.products = scratch("products", (alpha**2, tiles, blocks * width), "float32")

    def nest(self) -> Stmt:
        plan = self.plan

        def task(t: Expr) -> Stmt:
            n, part = t // plan.row_blocks, t % plan.row_blocks
            first = part * plan.tile_rows // plan.row_blocks
            last = (part + 1) * plan.tile_rows // plan.row_blocks

            def tiles(body: Any) -> Stmt:
                return between(
                    first,
                    last,
                    lambda row: loop(
                        plan.tile_cols, lambda col: body(n, row, col, (row - first) * plan.tile_cols + col), "tile_col"
                    ),
                    "tile_row",
                )

            return allocate([self.v, self.products], block(tiles(self._input), self._multiply(), tiles(self._output)))

        return parallel(self.g.batch * plan.row_blocks, task)

    def _multiply(self) -> Stmt:
        g, tiles = self.g, self.plan.block_tiles()
        shape = Geometry(
            batch=self.transform.alpha**2,
            groups=1,
            rows=tiles,
            cols=1,
            channels=g.channels,
            inputs=g.inputs,
            height=tiles,
            width=1,
        )
        operands = _Elements(self.v, self.u, self.products)
        return Contraction(
            shape, operands, self.plan.tile, Division(1, 1), self.machine.lanes(), staged=False, nested=True
        ).nest()

    def _input(self, n: Expr, row: Expr, col: Expr, tile: Expr) -> Stmt:
        """V of one tile."""
        g, alpha, m = self.g, self.transform.alpha, self.plan.m
        top, left = row * m - g.before[0], col * m - g.before[1]

        def vector(channel: Expr, lanes: int, inside: bool) -> Stmt:
            def read(i: int, j: int) -> Expr:
                value = load(self.x, n, top + i, left + j, channel, lanes=lanes)
                if inside:
                    return value
                y, z = top + i, left + j
                there = tirx.all(y >= 0, y < g.height, z >= 0, z < g.width)
                return tirx.if_then_else(there, value, number(0, "float32", lanes))

            def write(i: int, j: int, value: Expr) -> Stmt:
                return store(self.v, value, i * alpha + j, tile, channel, lanes=lanes)

            return _both_sides(self.transform.inputs, alpha, lanes, read, write)

        within = tirx.all(top >= 0, top + alpha <= g.height, left >= 0, left + alpha <= g.width)
        return when(within, self._vectors(g.inputs, vector, True), self._vectors(g.inputs, vector, False))

    def _output(self, n: Expr, row: Expr, col: Expr, tile: Expr) -> Stmt:
        """The outputs of one tile."""
        g, alpha, m = self.g, self.transform.alpha, self.plan.m
        top, left = row * m, col * m

        def vector(channel: Expr, lanes: int, inside: bool) -> Stmt:
            accumulators = []

            def read(i: int, j: int) -> Expr:
                return load(self.products, i * alpha + j, tile, channel, lanes=lanes)

            def write(i: int, j: int, value: Expr) -> Stmt:
                acc = register(f"out_{i}_{j}", lanes, "float32")
                accumulators.append(acc)
                put = self.fused.finish((n, top + i, left + j, channel), lanes, acc)
                if not inside:
                    put = when(tirx.all(top + i < g.rows, left + j < g.cols), put)
                return block(store(acc, value, 0, lanes=lanes), put)

            body = _both_sides(self.transform.outputs, alpha, lanes, read, write)
            return allocate(accumulators, body)

        whole = g.rows % m == 0 and g.cols % m == 0
        inside = self._vectors(g.channels, vector, True)
        if whole:
            return inside
        return when(tirx.all(top + m <= g.rows, left + m <= g.cols), inside, self._vectors(g.channels, vector, False))

    def _vectors(self, channels: int, vector: Any, inside: bool) -> Stmt:
        lanes = self.machine.lanes()
        full, tail = divmod(channels, lanes)
        parts = [loop(full, lambda v: vector(v * lanes, lanes, inside), "v")] if full else []
        if tail:
            parts.append(vector(full * lanes, tail, inside))
        return block(*parts)


@dataclass(frozen=True)
class _Elements:
    """The products of the transformed elements, as a batch."""

    v: Buffer
    u: Buffer
    products: Buffer

    def read(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int) -> Expr:
        return load(self.v, n, row, channel, lanes=lanes)

    def weight(
        self, n: Expr, group: Expr, channel_block: Expr, tap: tuple[Expr, Expr, Expr], at: int, lanes: int
    ) -> Expr:
        return load(self.u, n, channel_block, tap[2], at, lanes=lanes)

    def finish(self, n: Expr, row: Expr, col: Expr, channel: Expr, lanes: int, accumulator: Buffer) -> Stmt:
        return store(self.products, load(accumulator, 0, lanes=lanes), n, row, channel, lanes=lanes)


def _both_sides(matrix: Matrix, size: int, lanes: int, read: Any, write: Any) -> Stmt:
    """`matrix x X matrix^T` for a `size x size` X of vectors, element by element in registers."""
    source = {(i, j): register(f"x_{i}_{j}", lanes, "float32") for i in range(size) for j in range(size)}
    half = {(i, j): register(f"h_{i}_{j}", lanes, "float32") for i in range(len(matrix)) for j in range(size)}
    steps = [store(acc, read(i, j), 0, lanes=lanes) for (i, j), acc in source.items()]
    for (i, j), acc in half.items():
        steps.append(store(acc, _combine(matrix[i], [source[k, j] for k in range(size)], lanes), 0, lanes=lanes))
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            steps.append(write(i, j, _combine(matrix[j], [half[i, k] for k in range(size)], lanes)))
    return allocate([*source.values(), *half.values()], block(*steps))


def _combine(coefficients: Sequence[float], registers: Sequence[Buffer], lanes: int) -> Expr:
    """The linear combination of registers."""
    total: Expr = None
    for coefficient, acc in zip(coefficients, registers, strict=True):
        if not coefficient:
            continue
        value = load(acc, 0, lanes=lanes)
        if total is None:
            total = value if coefficient == 1 else value * splat(tirx.const(coefficient, "float32"), lanes)
        elif abs(coefficient) == 1:
            total = total + value if coefficient > 0 else total - value
        else:
            total = total + value * splat(tirx.const(coefficient, "float32"), lanes)
    return total
