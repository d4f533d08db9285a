"""Contractions as data: what one computes (a workload), and how it is cut (a choice). Both are plain JSON.

    choice = pick(workload)         # None: what the analytic model of tiling.py says

A choice decides how weights are packed and how the nest is made, so the anchor carries it from one to the other. Not
here: which choices are worth trying (targets/tvm/tuning).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from graphopt.targets.tvm.cpu.tiling import Division, Tile

Op = Literal["conv2d", "matmul", "batch_matmul"]
Algorithm = Literal["direct", "winograd", "depthwise"]

CHOICE = "graphopt.choice"
"""The annotation under which an anchor carries a choice that was made for it."""
_MOST = 1 << 24
_RANKS: dict[Op, tuple[tuple[int, ...], int, int]] = {
    "conv2d": ((4,), 4, 9),
    "matmul": ((2,), 2, 0),
    "batch_matmul": (tuple(range(2, 9)), 0, 0),
}
"""Ranks of the input, rank of the weights (0: that of the input), and integers of the window."""


@dataclass(frozen=True)
class Workload:
    """A contraction of float32 by its shapes.

    Attributes:
        op: `conv2d` (NHWC input, constant OIHW weights), `matmul` ([M, K] times constant [K, N]) or `batch_matmul`
            ([..., M, K] times [..., K, N], both computed).
        inputs, weights: the two shapes.
        window: of a convolution: strides, dilations, padding (top, left, bottom, right), groups.
    """

    op: Op
    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    window: tuple[int, ...] = ()

    def __str__(self) -> str:
        """One line that tells workloads apart."""
        shapes = ["x".join(map(str, dims)) for dims in (self.inputs, self.weights)]
        return " ".join([self.op, *shapes, *([",".join(map(str, self.window))] if self.window else [])])

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read what `str` wrote.

        Raises:
            ValueError: it is something else.
        """
        op, *parts = text.split(" ")
        if op not in get_args(Op) or len(parts) not in (2, 3):
            raise ValueError(f"{text!r} is no workload")
        inputs, weights = (_dims(part.split("x")) for part in parts[:2])
        window = tuple(int(i) for i in parts[2].split(",")) if len(parts) == 3 else ()
        ranks, rank, count = _RANKS[op]  # type: ignore[index]
        if len(inputs) not in ranks or len(weights) != (rank or len(inputs)) or len(window) != count:
            raise ValueError(f"{text!r} is no workload")
        if window and (min(window[:4]) < 1 or min(window) < 0 or window[8] < 1):
            raise ValueError(f"{text!r} has an impossible window")
        return cls(op, inputs, weights, window)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Choice:
    """How a contraction is computed.

    Attributes:
        algorithm: `direct` is the nest of contraction.py.
        tile: its register tile; of `depthwise`, `cols` alone counts.
        division: its tasks; `winograd` and `depthwise` have no chunks of channels.
        staged: copy input rows before; a padded window is staged whatever this says.
        m: of `winograd`, the size of the output tiles.
    """

    algorithm: Algorithm
    tile: Tile
    division: Division
    staged: bool = False
    m: int = 0

    def ints(self) -> list[int]:
        """The numbers, as an anchor carries them."""
        tile, division = self.tile, self.division
        sizes = [tile.rows, tile.cols, tile.vectors, division.row_blocks, division.channel_chunks]
        return [*sizes, int(self.staged), self.m]

    def to_json(self) -> list[Any]:
        """The algorithm and its numbers."""
        return [self.algorithm, *self.ints()]

    @classmethod
    def from_json(cls, data: Any) -> Choice:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else, or a number is out of all bounds.
        """
        if not isinstance(data, list) or len(data) != 8 or data[0] not in get_args(Algorithm):
            raise ValueError(f"{data!r} is no choice")
        if any(type(item) is not int for item in data[1:]):
            raise ValueError(f"{data!r} is no choice")
        return cls._of(data[0], data[1:])

    @classmethod
    def of(cls, algorithm: Algorithm, attributes: Mapping[str, Any]) -> Choice | None:
        """The choice that an anchor carries; None where it carries none."""
        if CHOICE not in attributes:
            return None
        return cls._of(algorithm, [int(i) for i in attributes[CHOICE]])

    @classmethod
    def _of(cls, algorithm: Algorithm, ints: Sequence[int]) -> Choice:
        *sizes, staged, m = ints
        sized = all(1 <= size <= _MOST for size in sizes) and sizes[0] * sizes[1] * sizes[2] <= 64
        if not sized or staged not in (0, 1) or m not in ((2, 4) if algorithm == "winograd" else (0,)):
            raise ValueError(f"{algorithm} {list(ints)} is no choice")
        return cls(algorithm, Tile(*sizes[:3]), Division(*sizes[3:]), bool(staged), m)


Pick = Callable[[Workload], Choice | None]
"""pick(workload): the choice for it; None leaves it to the analytic model."""


def analytic(workload: Workload) -> Choice | None:
    """No choices but those of the analytic model."""
    return None


def carried(choice: Choice | None) -> dict[str, list[int]]:
    """The annotations by which an anchor carries a choice."""
    return {} if choice is None else {CHOICE: choice.ints()}


def _dims(parts: Sequence[str]) -> tuple[int, ...]:
    dims = tuple(int(part) for part in parts)
    if not all(0 < dim <= _MOST for dim in dims):
        raise ValueError(f"{dims} is no shape")
    return dims
