"""Honest comparison of model files: interleaved blocks, an A/A row that shows the error of the method, intervals.

    report = bench([path_a, path_b], feeds, opener)      # opener(path) -> Runner, each in a process of its own
    print(report); report.to_json()

The first model is timed twice (rows A and A'), as if it were two models: when their ratio is off 1, so is every other.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    import numpy as np

    from graphopt.target import Runner

Opener = Callable[[Path], "Runner"]
_RESAMPLES = 2000


@dataclass(frozen=True)
class BenchPlan:
    """How long to measure.

    Attributes:
        seconds: of measuring per row, without warm-up.
        block_seconds: of one row before the next row takes its turn; shorter blocks share disturbances better.
        warmup: runs of each row before anything counts, at least.
        min_blocks: blocks per row, at least; the interval is drawn from them.
        seed: of the order of rows and of the bootstrap.
    """

    seconds: float = 3.0
    block_seconds: float = 0.03
    warmup: int = 3
    min_blocks: int = 20
    seed: int = 0


@dataclass(frozen=True)
class BenchRow:
    """One model's figures; times in milliseconds, memory in bytes.

    Attributes:
        ratio: median of the blocks' medians over those of the first row in the same round; `ratio_low` and
            `ratio_high` bound it at 95 % (bootstrap over rounds).
        load_ms: time to open the model. peak_memory: of its process; 0 when the runner does not tell.
    """

    name: str
    path: str
    median_ms: float
    p95_ms: float
    runs: int
    ratio: float
    ratio_low: float
    ratio_high: float
    load_ms: float
    peak_memory: int


@dataclass(frozen=True)
class BenchReport:
    """Rows in the order given; the second is the first model again (A/A)."""

    rows: tuple[BenchRow, ...]
    rounds: int
    cpus: int
    load_average: float

    def __str__(self) -> str:
        labels = [row.name if row.name == "A again" else f"{row.name}  {_short(row.path)}" for row in self.rows]
        wide = max(map(len, labels))
        lines = [f"{'':{wide}} {'median':>10} {'p95':>10} {'ratio':>7}  95% interval     load     peak"]
        for row, label in zip(self.rows, labels, strict=True):
            lines.append(
                f"{label:{wide}} {row.median_ms:8.3f}ms {row.p95_ms:8.3f}ms {row.ratio:7.3f}  "
                f"[{row.ratio_low:.3f}, {row.ratio_high:.3f}] {row.load_ms:6.0f}ms {row.peak_memory / 2**20:6.0f}MB"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dataclasses.asdict(self)


def _short(path: str) -> str:
    """The end of a path that tells it from others: files of artifacts have the same name."""
    text = str(Path(*Path(path).parts[-2:]))
    return text if len(text) <= 40 else f"...{text[-37:]}"


def bench(
    paths: Sequence[Path],
    feeds: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    opener: Opener,
    plan: BenchPlan | None = None,
) -> BenchReport:
    """Time models against each other on the same feeds.

    Args:
        paths: model files; the first is what the others are compared with.
        feeds: for all models, or one mapping per model where their interfaces differ.
        opener: opens a model in a process of its own, with threads that stop spinning when a run ends; else idle
            threads of one model slow the other.
        plan: how long; None for the defaults.

    Raises:
        GraphoptError: no path, or a model that does not run.
    """
    if not paths:
        raise GraphoptError("there is nothing to time: give at least one model")
    plan = plan or BenchPlan()
    each = [feeds] * len(paths) if isinstance(feeds, Mapping) else list(feeds)
    if len(each) != len(paths):
        raise GraphoptError(f"{len(each)} sets of feeds are given for {len(paths)} models")
    todo = [(paths[0], each[0]), *zip(paths, each, strict=True)]
    with ExitStack() as stack:
        rows = [_Row(stack.enter_context(opener(path)), path, given) for path, given in todo]
        for row in rows:
            row.warm_up(plan)
        rounds = _measure(rows, plan)
        return _report(rows, rounds, plan)


class _Row:
    """One runner, its feeds, and its blocks of seconds by round."""

    def __init__(self, runner: Runner, path: Path, feeds: Mapping[str, Any]) -> None:
        self.runner = runner
        self.path = path
        self.feeds = feeds
        self.per_block = 1
        self.blocks: list[list[float]] = []

    def warm_up(self, plan: BenchPlan) -> None:
        """Run until warm, then size the blocks by the fastest run."""
        seconds = self.runner.time(self.feeds, plan.warmup)
        spent = sum(seconds)
        while spent < plan.block_seconds:
            more = self.runner.time(self.feeds, _runs_in(plan.block_seconds - spent, min(seconds)))
            seconds += more
            spent += sum(more)
        self.per_block = _runs_in(plan.block_seconds, min(seconds))


def _runs_in(seconds: float, fastest: float) -> int:
    return max(1, min(1000, int(seconds / max(fastest, 1e-6))))


def _measure(rows: list[_Row], plan: BenchPlan) -> int:
    """Give every row one block per round, in an order that changes from round to round; return the rounds."""
    import numpy as np

    rng = np.random.default_rng(plan.seed)
    start, rounds = time.perf_counter(), 0
    while rounds < plan.min_blocks or time.perf_counter() - start < plan.seconds * len(rows):
        for index in rng.permutation(len(rows)):
            row = rows[index]
            row.runner.time(row.feeds, 1)  # the caches still hold the model before it
            row.blocks.append(row.runner.time(row.feeds, row.per_block))
        rounds += 1
    return rounds


def _report(rows: list[_Row], rounds: int, plan: BenchPlan) -> BenchReport:
    import numpy as np

    medians = np.array([[np.median(block) for block in row.blocks] for row in rows])
    out = []
    for index, row in enumerate(rows):
        ratio, low, high = interval(medians[index], medians[0], plan.seed)
        seconds = np.concatenate([np.asarray(block) for block in row.blocks])
        out.append(
            BenchRow(
                name="A" if index == 0 else "A again" if index == 1 else chr(ord("A") + index - 1),
                path=str(row.path),
                median_ms=float(np.median(seconds)) * 1e3,
                p95_ms=float(np.percentile(seconds, 95)) * 1e3,
                runs=len(seconds),
                ratio=ratio,
                ratio_low=low,
                ratio_high=high,
                load_ms=float(getattr(row.runner, "load_seconds", 0.0)) * 1e3,
                peak_memory=_peak(row.runner),
            )
        )
    return BenchReport(tuple(out), rounds, os.cpu_count() or 1, os.getloadavg()[0])


def interval(row: np.ndarray, base: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Median of the paired ratios and its 95 % bootstrap interval over rounds."""
    import numpy as np

    ratios = row / base
    picks = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    resampled = np.median(ratios[picks], axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def _peak(runner: Runner) -> int:
    memory = getattr(runner, "memory", None)
    return int(memory()["peak_rss"]) if memory is not None else 0
