"""Tile sizes of a matrix product on a GPU and the number of parts its depth is cut into, from a small model of time.

    tile, parts = best(Problem(batch=1, rows=3136, cols=64, depth=576), TILES, "sm_90")

A block of threads computes rows x cols of the result in steps along the depth. A step takes `latency` where a
multiprocessor has a block or two, and `work` for each block where it has enough to hide that. Both are microseconds
measured on an H100 (benchmarks/gpu_tiles.py); other GPUs are assumed to be alike but for their multiprocessors.
No TVM here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

_MULTIPROCESSORS = {"sm_75": 40, "sm_86": 84, "sm_87": 16, "sm_89": 128, "sm_90": 132, "sm_100": 148, "sm_103": 148}
"""Of the largest common GPU of each architecture; 108 (A100) for others."""
_PARTS = (1, 2, 4, 8, 16, 32)
_SECOND_KERNEL = 4.6
"""Microseconds that starting and running the kernel takes which adds the parts."""
_BYTES = 1e7
"""Of partial sums, which stay in the L2 cache, that a microsecond moves."""


@dataclass(frozen=True)
class Problem:
    """`batch` products of rows x depth and depth x cols."""

    batch: int
    rows: int
    cols: int
    depth: int


class Costs(Protocol):
    """What the model of time wants to know of a tile; a multiprocessor holds `resident` blocks of it at once."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def latency(self) -> float: ...
    @property
    def work(self) -> float: ...
    @property
    def resident(self) -> int: ...


AnyTile = TypeVar("AnyTile", bound=Costs)


@dataclass(frozen=True)
class Tile:
    """A block computes rows x cols in steps of `depth`; a thread thread_rows of them in four neighbouring columns."""

    rows: int
    cols: int
    depth: int
    thread_rows: int
    latency: float
    work: float
    resident: int

    @property
    def threads(self) -> int:
        return self.rows // self.thread_rows * (self.cols // VECTOR)

    def shared_bytes(self, element: int) -> int:
        """Of both operands' tiles, with the padding of rows."""
        return (self.rows + self.cols) * (self.depth + VECTOR) * element


VECTOR = 4
"""Columns of a thread: elements that it loads and stores at once."""
TILES = (
    Tile(64, 64, 16, 8, 0.974, 0.610, 5),
    Tile(64, 64, 16, 4, 0.821, 0.599, 4),
    Tile(64, 32, 16, 4, 0.512, 0.367, 8),
    Tile(32, 64, 16, 4, 0.696, 0.317, 8),
    Tile(32, 64, 32, 4, 0.977, 0.609, 8),
    Tile(32, 32, 32, 4, 0.843, 0.395, 16),
    Tile(16, 64, 16, 2, 0.571, 0.223, 10),
    Tile(16, 32, 32, 2, 0.903, 0.253, 21),
)


def multiprocessors(arch: str) -> int:
    """Of the largest common GPU of an architecture."""
    return _MULTIPROCESSORS.get(arch, 108)


def best(problem: Problem, tiles: Sequence[AnyTile], arch: str) -> tuple[AnyTile, int]:
    """The tile with the least estimated time, and the number of parts that the depth is cut into."""
    choices = [(tile, parts) for tile in tiles for parts in possible_parts(problem, tile)]
    return min(choices, key=lambda choice: microseconds(problem, choice[0], choice[1], arch))


def possible_parts(problem: Problem, tile: Costs) -> Iterable[int]:
    """Numbers of parts that have two steps at least, or one part."""
    return (parts for parts in _PARTS if parts == 1 or problem.depth >= 2 * parts * tile.depth)


def microseconds(problem: Problem, tile: Costs, parts: int, arch: str) -> float:
    """Estimated time of a product."""
    rows, cols = math.ceil(problem.rows / tile.rows), math.ceil(problem.cols / tile.cols)
    blocks = math.ceil(problem.batch * rows * cols * parts / multiprocessors(arch))
    steps = math.ceil(problem.depth / (tile.depth * parts))
    time = steps * max(tile.latency * math.ceil(blocks / tile.resident), tile.work * blocks)
    if parts == 1:
        return time
    moved = 8 * parts * problem.batch * rows * tile.rows * cols * tile.cols
    return time + _SECOND_KERNEL + moved / _BYTES
