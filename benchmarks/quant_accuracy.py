"""Static int8: what it costs in accuracy and gains in latency, for graphopt and for the peers' quantizers.

    python -m benchmarks.quant_accuracy [--tasks A,B] [--peers X,Y] [--calibration N] [--samples N] [--keep]

Same float file, calibration file, held-out samples and runtime for all; intervals are paired over the samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figure import Figure, Table, arguments, pick, say
from benchmarks.latency import DISTURBED, opener
from benchmarks.quant import quantizers, tasks
from benchmarks.quant.executed import Executed, executed
from benchmarks.quant.intervals import paired_difference
from benchmarks.quant.quantizers import OURS, OURS_INT8, OWN, Made, place_of, quantize
from benchmarks.quant.task import Task, read, write

if TYPE_CHECKING:
    import numpy as np

    from graphopt.timing import BenchRow

# The bars: our metric over float's on every task, and on half of them.
MIN_SHARE, MIN_SHARE_OF_HALF = 0.99, 0.999
CALIBRATION = 256
SECONDS = 3.0
NOT_THERE = "not there"


@dataclass
class Result:
    """What came of one tool on one task; `error` says why there is nothing."""

    made: Made
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    executed: Executed | None = None
    latency: BenchRow | None = None
    error: str = ""

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.made.path.parent.glob(self.made.path.name + "*"))


@dataclass(frozen=True)
class Measured:
    """One task: the float model's scores, and each tool's result."""

    task: Task
    scores: dict[str, np.ndarray]
    tools: dict[str, Result]
    float_rows: tuple[BenchRow, ...]

    @property
    def main(self) -> np.ndarray:
        return self.scores[self.task.metric]

    def share(self, tool: str) -> float:
        """A tool's metric over float's."""
        return float(self.tools[tool].scores[self.task.metric].mean() / self.main.mean())

    def best_peer(self) -> str | None:
        """The peer with the highest metric; None when none has a model."""
        good = {name: result for name, result in self.tools.items() if name not in OWN and not result.error}
        return max(good, key=lambda name: good[name].scores[self.task.metric].mean(), default=None)


def make(task: Task, name: str, calibration: Path, folder: Path, *, keep: bool) -> Made:
    """Run a quantizer; with `keep`, take what a peer left there in an earlier run."""
    model = place_of(name, folder)
    if keep and name not in OWN and model.exists():
        return Made(model)
    say(f"  {name} ...")
    made = quantize(name, task.model, calibration, folder)
    if name in OWN and "no such option" in made.error.lower():
        return Made(made.path, error=NOT_THERE)
    return made


def score(task: Task, path: Path, samples: int | None) -> dict[str, np.ndarray]:
    """Per-sample scores of a model file, in a process of its own; kept beside it until the file changes.

    Raises:
        GraphoptError: the runtime refuses the model or crashes on it.
    """
    kept = path.with_name(f"scores-{samples or 'all'}.npz")
    if path != task.model and kept.exists() and kept.stat().st_mtime > path.stat().st_mtime:
        return read(kept)
    with opener(path) as runner:
        values = task.scores(runner.run, samples)
    if path != task.model:
        write(kept, values)
    return values


def measure(task: Task, names: Sequence[str], options: argparse.Namespace) -> Measured:
    """Quantize with every tool, score, count, and time all of them together."""
    from graphopt.errors import GraphoptError

    calibration = task.calibration_of(options.calibration)
    place = options.folder / "quant" / task.name
    found: dict[str, Result] = {}
    for name in names:
        result = Result(make(task, name, calibration, place / name.replace(" ", ""), keep=options.keep))
        result.error = result.made.error
        if not result.error:
            try:
                result.scores = score(task, result.made.path, options.samples)
                result.executed = executed(result.made.path)
            except (GraphoptError, RuntimeError) as error:
                result.error = f"its model does not run: {str(error).splitlines()[0][:160]}"
        found[name] = result
    base = score(task, task.model, options.samples)
    good = [result for result in found.values() if not result.error]
    rows = time_all(task, [result.made.path for result in good], options.seconds)
    for result, row in zip(good, rows[2:], strict=True):
        result.latency = row
    return Measured(task, base, found, rows[:2])


def time_all(task: Task, paths: Sequence[Path], seconds: float) -> tuple[BenchRow, ...]:
    """Float, float again, and every model, taking turns on one held-out sample; once more when disturbed."""
    from graphopt.timing import BenchPlan, bench

    plan = BenchPlan(seconds=seconds)
    report = bench([task.model, *paths], task.feeds(0, 1), opener, plan)
    if abs(report.rows[1].ratio - 1) > DISTURBED:
        report = bench([task.model, *paths], task.feeds(0, 1), opener, plan)
    return report.rows


COLUMNS = (
    "task",
    "model",
    "metric",
    "difference from float (95 %)",
    "over float",
    "int8 nodes",
    "int8 conv, matmul",
    "latency ratio",
    "MB",
    "seconds",
    "peak MB",
)


def add_rows(table: Table, measured: Measured) -> None:
    """The float row, then one row per tool."""
    task, (first, again) = measured.task, measured.float_rows
    size = task.model.stat().st_size
    name = f"float, {task.metric} of {len(measured.main)}"
    aa = f"A/A {again.ratio:.3f}; {first.median_ms:.2f} ms"
    table.add(task.name, name, percent(measured.main), "", "", "", "", aa, f"{size / 1e6:.2f}", "", "")
    for tool, result in measured.tools.items():
        if result.error or result.executed is None or result.latency is None:
            table.add(task.name, tool, result.error, *["-"] * (len(COLUMNS) - 3))
            continue
        ran, time, scores = result.executed, result.latency, result.scores[task.metric]
        table.add(
            task.name,
            tool,
            percent(scores),
            paired_difference(scores, measured.main),
            f"{measured.share(tool):.4f}",
            f"{ran.integer} of {ran.nodes}",
            f"{ran.heavy_integer} of {ran.heavy}",
            f"{time.ratio:.3f} ({time.ratio_low:.3f} to {time.ratio_high:.3f})",
            f"{result.bytes / 1e6:.2f}",
            f"{result.made.seconds:.1f}" if result.made.seconds else "kept",
            f"{result.made.peak / 1e6:.0f}" if result.made.peak else "kept",
        )


def percent(scores: np.ndarray) -> str:
    return f"{100 * float(scores.mean()):.2f} %"


def other_metrics(all_measured: Sequence[Measured]) -> Table:
    """The metrics that do not count."""
    table = Table(("task", "metric", "model", "value", "difference from float (95 %)"), "Other metrics", 3)
    for measured in all_measured:
        for metric in list(measured.scores)[1:]:
            base = measured.scores[metric]
            table.add(measured.task.name, metric, "float", percent(base), "")
            for tool, result in measured.tools.items():
                if not result.error:
                    values = result.scores[metric]
                    table.add(measured.task.name, metric, tool, percent(values), paired_difference(values, base))
    return table


def judge(figure: Figure, all_measured: Sequence[Measured]) -> None:
    """Hold both rows of graphopt to the bars, on the tasks that were measured."""
    for tool in OWN:
        close = 0
        for measured in all_measured:
            name, ours = f"{measured.task.name}: {tool}", measured.tools[tool]
            if not figure.require(not ours.error, f"{name}: {ours.error}"):
                continue
            share = measured.share(tool)
            close += share >= MIN_SHARE_OF_HALF
            figure.require(share >= MIN_SHARE, f"{name}: {share:.4f} of float")
            best = measured.best_peer()
            if best is not None:
                metric = measured.task.metric
                change = paired_difference(ours.scores[metric], measured.tools[best].scores[metric])
                figure.require(change.high >= 0, f"{name}: {change} points against {best}")
        half = f"{tool}: {close} of {len(all_measured)} tasks at {MIN_SHARE_OF_HALF:g} of float or more"
        figure.require(2 * close >= len(all_measured), half)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    listed = ", ".join(quantizers.PEERS)
    parser.add_argument("--tasks", metavar="A,B", help="only these tasks (writes no page)")
    parser.add_argument("--peers", metavar="X,Y", help=f"other peers than the usual (writes no page); of: {listed}")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="samples (default %(default)s)")
    parser.add_argument("--samples", type=int, help="score so many samples only (writes no page)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timing per model (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="reuse the peers' models of an earlier run")
    return parser.parse_args()


def split(text: str | None) -> list[str] | None:
    return [part for part in text.split(",") if part] if text is not None else None


def tool_names(wanted: Sequence[str] | None) -> list[str]:
    """graphopt's rows and the usual peers, or the wanted peers of all; none with an empty list."""
    if wanted is None:
        return [*OWN, *quantizers.DEFAULT]
    return [*OWN, *(pick(quantizers.PEERS, wanted) if wanted else ())]


def describe(tools: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({tools[name].peer.requirement})" for name in tools)


def main() -> int:
    options = parse()
    chosen, names = pick(tasks.specs(), split(options.tasks)), tool_names(split(options.peers))
    partly = options.tasks or options.peers is not None or options.samples or options.seconds < SECONDS
    figure = Figure(
        "quant-accuracy",
        "Accuracy and latency of static int8",
        f"Every tool gets the same float file and the same {options.calibration} unlabelled calibration samples of the "
        "train split. All models are scored on the same held-out samples and run in the same ONNX Runtime; latency is "
        "at batch 1, two threads, all models of a task taking turns. Differences are in percentage points. "
        f"Peers: {describe({name: quantizers.PEERS[name] for name in names if name not in OWN})}. "
        f"`{OURS}` is `graphopt compile --target cpu --precision int8`, which ships float where int8 is slower on this "
        f"machine; `{OURS_INT8}` shows its int8 also there.",
        (
            f"both rows of {OURS} at least {MIN_SHARE:g} of float on every task, and {MIN_SHARE_OF_HALF:g} on half",
            "both at least as good as the best peer within the paired 95 % interval, on every task",
        ),
    )
    table = Table(COLUMNS, words=2)
    all_measured = []
    for name in chosen:
        task = tasks.load(name)
        say(f"{name} ...")
        all_measured.append(measure(task, names, options))
        add_rows(table, all_measured[-1])
        say("\n".join(" | ".join(row) for row in table.rows if row[0] == name))
    figure.tables.append(table)
    others = other_metrics(all_measured)
    figure.tables += [others] if others.rows else []
    judge(figure, all_measured)
    return figure.finish(write=not (options.no_write or partly))


if __name__ == "__main__":
    raise SystemExit(main())
