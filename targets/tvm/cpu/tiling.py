"""The analytic model: register tiles and the division of work, from shapes, register counts and cache sizes.

A contraction computes out[row, col, channel] = sum over taps (kernel position, input channel) of x * w. Its register
tile is `rows x cols` output positions times `vectors` vectors of channels: every tap loads `vectors` vectors of packed
weights, broadcasts one input element per position, and does `rows * cols * vectors` fused multiply-adds into
accumulators.

Not here: the loop nests themselves (contraction.py), and anything measured.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from graphopt.targets.tvm.machine import Machine

# Fused multiply-adds that start per cycle, and cycles from one to the next on the same accumulator, typical of cores
# with the vector width that a Machine describes. Only ratios matter.
_FMA_PER_CYCLE = 2.0
_FMA_LATENCY = 4.0
# Cycles per load that are not hidden behind multiply-adds, and bytes per cycle at which weights stream from the
# second-level cache and from behind it. Fitted to measured tiles.
_LOAD_CYCLES = 0.02
_L2_BYTES_PER_CYCLE = 25.6
_L3_BYTES_PER_CYCLE = 10.0
# Streams that a core prefetches well, cycles for each further one, and the input bytes per position from which a
# position is a stream of its own.
_STREAMS = 8
_STREAM_CYCLES = 0.35
_STREAM_BYTES = 1536
# Cycles to start and drain a tile: clearing accumulators, the epilogue's address arithmetic.
_TILE_OVERHEAD = 16.0
_MAX_VECTORS = 8
# Registers that LLVM needs besides accumulators: tiles of one vector spill before they run out of them.
_SPARE = 4
# Share of the second-level cache that a block of input rows may take, the rest being for weights and output.
_L2_SHARE = 0.4
_ALIAS_BYTES = 4096
_LINE = 64


@dataclass(frozen=True)
class Tile:
    """A register tile: output positions and vectors of channels."""

    rows: int
    cols: int
    vectors: int

    def accumulators(self) -> int:
        return self.rows * self.cols * self.vectors


@dataclass(frozen=True)
class Problem:
    """The extents of a contraction: batch, output rows and columns, channels per group, taps, and input bytes.

    Attributes:
        inputs: input channels per group.
        taps: kernel positions times input channels per group.
        row_bytes: bytes of input read for one output row.
    """

    batch: int
    groups: int
    rows: int
    cols: int
    channels: int
    inputs: int
    taps: int
    row_bytes: int


@dataclass(frozen=True)
class Division:
    """How a contraction is divided into tasks: blocks of row tiles times chunks of channel blocks."""

    row_blocks: int
    channel_chunks: int


@functools.cache
def best_tile(problem: Problem, machine: Machine) -> Tile:
    """The tile of least estimated time, on the busiest thread, among those that fit the registers."""
    lanes = machine.lanes()
    most = math.ceil(problem.channels / lanes)
    best: tuple[float, Tile] | None = None
    for vectors in range(1, min(_MAX_VECTORS, most) + 1):
        positions = min(machine.registers - vectors - 1, machine.registers - _SPARE) // vectors
        for rows in range(1, min(positions, problem.rows) + 1):
            for cols in _useful(positions // rows, problem.cols):
                if rows > 1 and cols < problem.cols:
                    continue  # columns first: they share cache lines
                tile = Tile(rows, cols, vectors)
                found = (busiest(problem, tile, machine), tile)
                if best is None or found[0] < best[0]:
                    best = found
    assert best is not None
    return best[1]


def estimate(problem: Problem, tile: Tile, machine: Machine) -> float:
    """Cycles of one image and group on one core, as far as tails, latency and loads decide."""
    lanes = machine.lanes()
    row_parts = _parts(problem.rows, tile.rows)
    col_parts = _parts(problem.cols, tile.cols)
    vector_parts = _parts(math.ceil(problem.channels / lanes), tile.vectors)
    return sum(
        many_rows * many_cols * many_vectors * _tile_cycles(rows * cols, vectors, problem, machine)
        for rows, many_rows in row_parts
        for cols, many_cols in col_parts
        for vectors, many_vectors in vector_parts
    )


def _tile_cycles(positions: int, vectors: int, problem: Problem, machine: Machine) -> float:
    fmas = positions * vectors
    weight_bytes = vectors * machine.vector_bits / 8
    streamed = weight_bytes / _L2_BYTES_PER_CYCLE if weight_bytes * problem.taps > machine.l1 / 4 else 0.0
    extra = positions - _STREAMS if 4 * problem.inputs >= _STREAM_BYTES else 0
    cycles = max(fmas / _FMA_PER_CYCLE, streamed, _FMA_LATENCY)
    cycles += _LOAD_CYCLES * (positions + vectors) + _STREAM_CYCLES * max(0, extra)
    return problem.taps * cycles + _TILE_OVERHEAD + fmas


def stream_cycles(weight_bytes: int, machine: Machine) -> float:
    """Cycles to read weights once, where they do not stay in the second-level cache."""
    return weight_bytes / _L3_BYTES_PER_CYCLE if weight_bytes > machine.l2 / 2 else 0.0


def busiest(problem: Problem, tile: Tile, machine: Machine) -> float:
    """Estimated cycles of the thread that has most to do."""
    waste = wasted(problem, tile, divide(problem, tile, machine), machine)
    return waste * estimate(problem, tile, machine) * problem.batch * problem.groups / machine.threads


def divide(problem: Problem, tile: Tile, machine: Machine) -> Division:
    """Tasks for the threads: even work first, then the least traffic between caches.

    Blocks of rows keep their input in the second-level cache while all weights pass; chunks of channels keep weights.
    What is larger, weights or input, is divided, so that each core reads its own part once.
    """
    row_tiles = math.ceil(problem.rows / tile.rows)
    lanes = machine.lanes()
    blocks = problem.groups * math.ceil(problem.channels / (lanes * tile.vectors))
    weight_bytes = 4 * problem.groups * problem.channels * problem.taps
    input_bytes = problem.row_bytes * problem.rows
    best: tuple[tuple[float, float], Division] | None = None
    fit = max(1, min(row_tiles, math.ceil(input_bytes / (_L2_SHARE * machine.l2))))
    for chunks in _chunks(blocks, machine.threads):
        for row_blocks in sorted({fit, *(min(row_tiles, fit * k) for k in range(1, 2 * machine.threads + 1))}):
            division = Division(row_blocks, chunks)
            waste = wasted(problem, tile, division, machine)
            traffic = weight_bytes * row_blocks * problem.batch + input_bytes * chunks * problem.batch
            found = ((round(waste, 1), traffic), division)
            if best is None or found[0] < best[0]:
                best = found
    assert best is not None
    return best[1]


def wasted(problem: Problem, tile: Tile, division: Division, machine: Machine) -> float:
    """Work of the busiest thread over that of an even division."""
    row_tiles = math.ceil(problem.rows / tile.rows)
    blocks = problem.groups * math.ceil(problem.channels / (machine.lanes() * tile.vectors))
    tasks = problem.batch * division.row_blocks * division.channel_chunks
    rounds = math.ceil(tasks / machine.threads)
    share = math.ceil(row_tiles / division.row_blocks) * math.ceil(blocks / division.channel_chunks)
    return rounds * machine.threads * share / (problem.batch * row_tiles * blocks)


def aliases(row_elements: int, positions: int) -> bool:
    """Whether `positions` rows of so many floats fall on too few sets of an eight-way first-level cache."""
    stride = row_elements * 4
    if stride % _LINE:
        return False
    distinct = _ALIAS_BYTES // math.gcd(stride, _ALIAS_BYTES)
    return positions / distinct > 6


def _chunks(blocks: int, threads: int) -> list[int]:
    return sorted({min(blocks, k * threads) for k in (1, 2)} | {1})


def _useful(most: int, extent: int) -> list[int]:
    """Tile widths worth looking at: those that cut an extent into a different number of parts."""
    most = min(most, extent)
    widths = {math.ceil(extent / parts) for parts in range(1, extent + 1)}
    return sorted({width for width in widths if width <= most} | {most})


def _parts(extent: int, size: int) -> list[tuple[int, int]]:
    """(size, how many) of the full parts and of the tail."""
    full, tail = divmod(extent, size)
    return [(size, full)] * bool(full) + [(tail, 1)] * bool(tail)
