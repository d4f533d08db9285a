"""Tile sizes of a matrix product on a GPU, from a small model of time; no TVM here.

    tile = best_tile(Problem(batch=1, rows=3136, cols=64, depth=576), "sm_90")

A block of threads computes rows x cols of the result, each thread a part of it in registers. Large tiles read shared
memory less often for each multiply-add; small ones give every multiprocessor work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MULTIPROCESSORS = {"sm_75": 40, "sm_86": 84, "sm_87": 16, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_103": 148}
"""Of the largest common GPU of each architecture; 108 (A100) for others."""
_BUSY = 512
"""Threads with which a multiprocessor hides the latency of its arithmetic."""
_BLOCKS = 4
"""Blocks that a multiprocessor is assumed to hold at once."""


@dataclass(frozen=True)
class Problem:
    """`batch` products of rows x depth and depth x cols."""

    batch: int
    rows: int
    cols: int
    depth: int


@dataclass(frozen=True)
class Tile:
    """A block computes rows x cols in steps of `depth`; a thread thread_rows x thread_cols."""

    rows: int
    cols: int
    depth: int
    thread_rows: int
    thread_cols: int

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * (self.cols // self.thread_cols)

    def shared_bytes(self, element: int) -> int:
        """Of both operands' tiles, with the padding of rows."""
        return (self.rows + self.cols) * (self.depth + 4) * element


TILES = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 16, 8, 4),
    Tile(64, 128, 16, 8, 4),
    Tile(64, 64, 16, 8, 4),
    Tile(64, 32, 16, 4, 4),
    Tile(32, 64, 16, 4, 4),
    Tile(32, 32, 16, 4, 4),
    Tile(16, 64, 16, 2, 4),
    Tile(16, 32, 32, 2, 4),
    Tile(64, 8, 16, 2, 4),
    Tile(8, 64, 16, 2, 4),
)


def multiprocessors(arch: str) -> int:
    """Of the largest common GPU of an architecture."""
    return _MULTIPROCESSORS.get(arch, 108)


def best_tile(problem: Problem, arch: str) -> Tile:
    """The tile with the least estimated time."""
    return min(TILES, key=lambda tile: cost(problem, tile, arch))


def cost(problem: Problem, tile: Tile, arch: str) -> float:
    """Time of a product in arbitrary units: rounds of blocks over the multiprocessors, each slower where shared memory
    is read often for each multiply-add and where too few threads hide latency."""
    blocks = problem.batch * math.ceil(problem.rows / tile.rows) * math.ceil(problem.cols / tile.cols)
    rounds = math.ceil(blocks / multiprocessors(arch))
    work = tile.rows * tile.cols * math.ceil(problem.depth / tile.depth) * tile.depth
    reads = 1 + 2 / tile.thread_rows + 2 / tile.thread_cols
    busy = min(1.0, min(rounds, _BLOCKS) * tile.threads / _BUSY)
    return rounds * work * reads / busy
