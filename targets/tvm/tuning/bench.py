"""Timing of functions in turns, in one process: what is compared shares its disturbances.

    found = race([untuned, untuned, tuned], Limits(seconds=0.5))
    found[2]        # Ratio to the first: median and 95 % interval

Imports numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.timing import interval

Timer = Callable[[int], Sequence[float]]
"""timer(n): seconds of each of n runs."""
_BLOCK_SECONDS = 0.004
_MOST_RUNS = 200
_LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Limits:
    """How long to measure: `seconds` in all, and not longer than a few rounds what is `hopeless` times slower."""

    seconds: float
    hopeless: float = float("inf")


@dataclass(frozen=True)
class Ratio:
    """Time over that of the first row: median, and its 95 % interval; and the row's own seconds."""

    value: float
    low: float
    high: float
    seconds: float


def race(rows: Sequence[Timer], limits: Limits) -> list[Ratio]:
    """Time rows in blocks that take turns, in an order that changes from round to round."""
    counts = [_runs(row) for row in rows]
    rng = np.random.default_rng(0)
    blocks: list[list[float]] = [[] for _ in rows]
    start = time.perf_counter()
    while True:
        for index in rng.permutation(len(rows)):
            rows[index](1)  # the caches still hold what ran before
            blocks[index].append(float(np.median(rows[index](counts[index]))))
        rounds = len(blocks[0])
        if rounds >= _LEAST_ROUNDS and time.perf_counter() - start >= limits.seconds:
            break
        if rounds >= 2 and all(min(row) > limits.hopeless * max(blocks[0]) for row in blocks[1:]):
            break
    base = np.array(blocks[0])
    return [Ratio(*interval(np.array(row), base, 0), float(np.median(row))) for row in blocks]


def _runs(row: Timer) -> int:
    row(2)
    return max(1, min(_MOST_RUNS, int(_BLOCK_SECONDS / max(min(row(3)), 1e-7))))
