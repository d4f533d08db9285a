"""The choices worth trying for a workload, best estimate first.

Estimates are cycles of the busiest core, as far as the analytic model of tiling.py knows; they order the choices and
decide nothing. Imports TVM.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

from graphopt.targets.tvm.cpu import tiling
from graphopt.targets.tvm.cpu.choices import Choice, Workload
from graphopt.targets.tvm.cpu.contraction import Geometry
from graphopt.targets.tvm.cpu.rules import conv2d, depthwise, matmul, winograd
from graphopt.targets.tvm.cpu.tiling import Division, Problem, Tile
from graphopt.targets.tvm.machine import Machine

MOST = 400
"""Choices that are kept of a workload."""
# Register tiles of fewer accumulators wait for the multiply-adds before.
_LEAST_ACCUMULATORS = 6
# Cycles to hand a task to a thread, and bytes per cycle that one core gets from the shared cache.
_TASK_CYCLES = 1500.0
_SHARED_BYTES_PER_CYCLE = 10.0
# Tiles that each size of Winograd's blocks is tried with.
_WINOGRAD_TILES = 4

Estimated = tuple[float, Choice]


def space(workload: Workload, machine: Machine) -> tuple[Choice, list[Choice]]:
    """What the analytic model chooses, and the other choices in the order of their estimates.

    The first of each kind of register tile come before further divisions of the same tiles.
    """
    default, found = _convolution(workload, machine) if workload.op == "conv2d" else _product(workload, machine)
    unique = {choice: cycles for cycles, choice in sorted(found, key=lambda item: -item[0])}
    unique.pop(default, None)
    ranked = sorted(unique, key=lambda choice: (unique[choice], choice.to_json()))
    kinds: dict[tuple[str, int, Tile], Choice] = {}
    for choice in ranked:
        kinds.setdefault((choice.algorithm, choice.m, choice.tile), choice)
    first = list(kinds.values())
    taken = set(first)
    return default, (first + [choice for choice in ranked if choice not in taken])[:MOST]


def _convolution(workload: Workload, machine: Machine) -> tuple[Choice, list[Estimated]]:
    window = conv2d.Window.of(workload.window)
    g = conv2d.geometry(workload.inputs, workload.weights, window)
    if depthwise.is_depthwise(workload.weights, window.groups):
        return depthwise.default(g.rows, g.cols, machine), list(_depthwise(g, machine))
    found = list(_direct(conv2d.problem(g), machine, staged=(True,) if g.padded() else (False, True)))
    default = conv2d.default(g, machine)
    if winograd.applies(workload.weights, window):
        found += _winograd(g, machine)
        plan = winograd.better_plan(workload.inputs, workload.weights, window, machine)
        default = default if plan is None else _of_plan(plan)
    return default, found


def _product(workload: Workload, machine: Machine) -> tuple[Choice, list[Estimated]]:
    g = matmul.geometry(workload.inputs, workload.weights[-1], shared=workload.op == "matmul")
    return matmul.default(g, machine), list(_direct(matmul.problem(g), machine, staged=(False, True)))


def _direct(problem: Problem, machine: Machine, staged: Iterable[bool]) -> Iterator[Estimated]:
    usual, *others = staged
    for tile in _tiles(problem.rows, problem.cols, problem.channels, machine):
        cycles = tiling.estimate(problem, tile, machine) * problem.batch * problem.groups / machine.threads
        for division in _divisions(problem, tile, machine):
            total = cycles * tiling.wasted(problem, tile, division, machine) + _traffic(problem, division, machine)
            yield total, Choice("direct", tile, division, usual)
            for other in others:
                copied = problem.row_bytes * problem.rows * problem.batch / machine.threads / 16
                yield total + copied * division.channel_chunks, Choice("direct", tile, division, other)


def _tiles(rows: int, cols: int, channels: int, machine: Machine) -> Iterator[Tile]:
    """Register tiles that fit, columns first."""
    for vectors in range(1, min(8, math.ceil(channels / machine.lanes())) + 1):
        positions = (machine.registers - vectors) // vectors
        for high in range(1, min(positions, rows) + 1):
            for wide in range(1, min(positions // high, cols) + 1):
                tile = Tile(high, wide, vectors)
                whole = high == rows and wide == cols
                if (high == 1 or wide == cols) and (whole or tile.accumulators() >= _LEAST_ACCUMULATORS):
                    yield tile


def _divisions(problem: Problem, tile: Tile, machine: Machine) -> Iterator[Division]:
    row_tiles = math.ceil(problem.rows / tile.rows)
    blocks = problem.groups * math.ceil(problem.channels / (machine.lanes() * tile.vectors))
    chunks = {min(blocks, machine.threads * k) for k in (1, 2, 4)} | {1} if machine.threads > 1 else {1}
    for chunk in sorted(chunks):
        for row_blocks in _counts(row_tiles, machine.threads):
            yield Division(row_blocks, chunk)


def _counts(most: int, threads: int) -> list[int]:
    """Numbers of blocks worth trying: few of them, and multiples of the threads."""
    return sorted({1, most, *(min(most, threads * k) for k in (1, 2, 3, 4, 6, 8, 12, 16))})


def _traffic(problem: Problem, division: Division, machine: Machine) -> float:
    """Cycles that a core waits for weights and input to pass between caches, and for tasks to begin."""
    weight_bytes = 4 * problem.groups * problem.channels * problem.taps
    passes = weight_bytes * division.row_blocks + problem.row_bytes * problem.rows * division.channel_chunks
    tasks = division.row_blocks * division.channel_chunks
    cycles = passes / _SHARED_BYTES_PER_CYCLE / 4 + tasks * _TASK_CYCLES
    return problem.batch * cycles / machine.threads


def _winograd(g: Geometry, machine: Machine) -> Iterator[Estimated]:
    alone = dataclasses.replace(machine, threads=1)
    for m in winograd.TRANSFORMS:
        usual = winograd.make_plan(m, g, machine)
        for row_blocks in _counts(usual.tile_rows, machine.threads):
            plan = dataclasses.replace(usual, row_blocks=row_blocks)
            products = winograd.element_products(plan.block_tiles(), g)
            tiles = _tiles(products.rows, 1, g.channels, machine)
            for tile in sorted(tiles, key=lambda t: tiling.estimate(products, t, alone))[:_WINOGRAD_TILES]:
                tried = dataclasses.replace(plan, tile=tile)
                cycles = winograd.plan_cycles(tried, g, machine) + row_blocks * _TASK_CYCLES / machine.threads
                yield cycles, _of_plan(tried)


def _of_plan(plan: winograd.Plan) -> Choice:
    return Choice("winograd", plan.tile, Division(plan.row_blocks, 1), m=plan.m)


def _depthwise(g: Geometry, machine: Machine) -> Iterator[Estimated]:
    """Nothing is known but what is usual: what is near to that comes first."""
    usual = depthwise.default(g.rows, g.cols, machine)
    for width in range(1, min(g.cols, machine.registers - 4) + 1):
        for row_blocks in _counts(g.rows, machine.threads):
            far = abs(math.log(width / usual.tile.cols)) + abs(math.log(row_blocks / usual.division.row_blocks))
            yield far, Choice("depthwise", Tile(1, width, 1), Division(row_blocks, 1))
