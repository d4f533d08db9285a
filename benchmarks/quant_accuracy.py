"""Static int8: what it costs in accuracy and gains in latency, for graphopt and for the peers' quantizers.

    python -m benchmarks.quant_accuracy [--tasks A,B] [--peers X,Y] [--calibration N] [--samples N] [--keep]

Same float file, calibration file, held-out samples and runtime for all; intervals are paired over the samples. Each
finished task is kept in docs/figures/quant-accuracy, and the page is made of all that are there: `--tasks` measures
some anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figure import Figure, Table, arguments, load_parts, pick, provenance, save_part, say
from benchmarks.latency import DISTURBED, geometric_mean, opener
from benchmarks.quant import quantizers, tasks
from benchmarks.quant.executed import Executed, executed
from benchmarks.quant.intervals import paired_difference
from benchmarks.quant.outcomes import Latency, Outcome, Ran
from benchmarks.quant.quantizers import OURS, OURS_INT8, OWN, Made, place_of, quantize
from benchmarks.quant.task import Task, read, write

if TYPE_CHECKING:
    import numpy as np

    from graphopt.timing import BenchRow

NAME = "quant-accuracy"
# The bars: our metric over float's on every task, and on half of them; latency over float's of what is shipped.
MIN_SHARE, MIN_SHARE_OF_HALF = 0.99, 0.999
MAX_LATENCY = 1.0
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


def measure(task: Task, names: Sequence[str], options: argparse.Namespace) -> Outcome:
    """Quantize with every tool, score, count, and time all of them together."""
    from graphopt.errors import GraphoptError
    from graphopt.targets.onnxruntime.isa import resolve

    # Processors of one name differ here, and without VNNI int8 kernels saturate.
    made_at = f"{provenance()}, int8 kernels for {resolve('auto')}"
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
    return summary(task, base, found, rows[:2], made_at)


def time_all(task: Task, paths: Sequence[Path], seconds: float) -> tuple[BenchRow, ...]:
    """Float, float again, and every model, taking turns on one held-out sample; once more when disturbed."""
    from graphopt.timing import BenchPlan, bench

    plan = BenchPlan(seconds=seconds)
    report = bench([task.model, *paths], task.feeds(0, 1), opener, plan)
    if abs(report.rows[1].ratio - 1) > DISTURBED:
        report = bench([task.model, *paths], task.feeds(0, 1), opener, plan)
    return report.rows


def summary(
    task: Task, base: Mapping[str, np.ndarray], found: Mapping[str, Result], rows: Sequence[BenchRow], made_at: str
) -> Outcome:
    """What is kept: `base` are float's scores, `rows` its two rows of timing."""

    def main(name: str) -> np.ndarray:
        return found[name].scores[task.metric]

    good = [name for name, result in found.items() if not result.error]
    best = max((name for name in good if name not in OWN), key=lambda name: main(name).mean(), default=None)
    tools: dict[str, Ran | str] = {}
    for name, result in found.items():
        if result.executed is None or result.latency is None:
            tools[name] = result.error
            continue
        tools[name] = Ran(
            metrics=_means(result.scores),
            from_float={metric: paired_difference(scores, base[metric]) for metric, scores in result.scores.items()},
            from_best=paired_difference(main(name), main(best)) if name in OWN and best is not None else None,
            executed=result.executed,
            latency=Latency(result.latency.ratio, result.latency.ratio_low, result.latency.ratio_high),
            bytes=result.bytes,
            seconds=result.made.seconds,
            peak=result.made.peak,
        )
    return Outcome(
        task=task.name,
        version=task.spec.version,
        metric=task.metric,
        samples=len(base[task.metric]),
        provenance=made_at,
        metrics=_means(base),
        ms=rows[0].median_ms,
        again=rows[1].ratio,
        bytes=task.model.stat().st_size,
        best_peer=best,
        tools=tools,
    )


def _means(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {metric: float(values.mean()) for metric, values in scores.items()}


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


def add_rows(table: Table, outcome: Outcome) -> None:
    """The float row, then one row per tool."""
    name = f"float, {outcome.metric} of {outcome.samples}"
    aa = f"A/A {outcome.again:.3f}; {outcome.ms:.2f} ms"
    value = percent(outcome.metrics[outcome.metric])
    table.add(outcome.task, name, value, "", "", "", "", aa, f"{outcome.bytes / 1e6:.2f}", "", "")
    for tool, ran in outcome.tools.items():
        if isinstance(ran, str):
            table.add(outcome.task, tool, ran, *["-"] * (len(COLUMNS) - 3))
            continue
        table.add(
            outcome.task,
            tool,
            percent(ran.metrics[outcome.metric]),
            ran.from_float[outcome.metric],
            f"{outcome.share(tool):.4f}",
            f"{ran.executed.integer} of {ran.executed.nodes}",
            f"{ran.executed.heavy_integer} of {ran.executed.heavy}",
            ran.latency,
            f"{ran.bytes / 1e6:.2f}",
            f"{ran.seconds:.1f}" if ran.seconds else "kept",
            f"{ran.peak / 1e6:.0f}" if ran.peak else "kept",
        )


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def other_metrics(outcomes: Sequence[Outcome]) -> Table:
    """The metrics that do not count."""
    table = Table(("task", "metric", "model", "value", "difference from float (95 %)"), "Other metrics", 3)
    for outcome in outcomes:
        for metric in [name for name in outcome.metrics if name != outcome.metric]:
            table.add(outcome.task, metric, "float", percent(outcome.metrics[metric]), "")
            for tool, ran in outcome.ran.items():
                table.add(outcome.task, metric, tool, percent(ran.metrics[metric]), ran.from_float[metric])
    return table


def judge(figure: Figure, outcomes: Sequence[Outcome]) -> None:
    """Hold both rows of graphopt to the bars of accuracy, on the tasks that were measured."""
    for tool in OWN:
        close = 0
        for outcome in outcomes:
            name, ours = f"{outcome.task}: {tool}", outcome.tools[tool]
            if isinstance(ours, str):
                figure.require(False, f"{name}: {ours}")
                continue
            share = outcome.share(tool)
            close += share >= MIN_SHARE_OF_HALF
            figure.require(share >= MIN_SHARE, f"{name}: {share:.4f} of float")
            if ours.from_best is not None:
                behind = f"{name}: {ours.from_best} points against {outcome.best_peer}"
                figure.require(ours.from_best.high >= 0, behind)
        half = f"{tool}: {close} of {len(outcomes)} tasks at {MIN_SHARE_OF_HALF:g} of float or more"
        figure.require(2 * close >= len(outcomes), half)


def judge_latency(figure: Figure, outcomes: Sequence[Outcome]) -> Table:
    """Hold what is shipped to the bars of latency; the table has the geometric means.

    A peer is compared with ours on the tasks where it keeps the accuracy that ours has to keep.
    """
    ours = {outcome.task: outcome.ran[OURS].latency for outcome in outcomes if OURS in outcome.ran}
    for task, latency in ours.items():
        figure.require(latency.low <= MAX_LATENCY, f"{task}: {OURS} takes {latency} of float's time")
    columns = ("tool", f"tasks at {MIN_SHARE:g} of float", "latency over float", f"{OURS} on the same tasks")
    table = Table(columns, "Geometric means of the latency over float's")
    mean = geometric_mean([latency.ratio for latency in ours.values()]) if ours else None
    at_gate = sum(outcome.share(OURS) >= MIN_SHARE for outcome in outcomes if OURS in outcome.ran)
    shown = "-" if mean is None else f"{mean:.3f}"
    table.add(OURS, f"{at_gate} of {len(outcomes)}", shown, shown)
    for peer in dict.fromkeys(name for outcome in outcomes for name in outcome.peers):
        kept = [o for o in outcomes if peer in o.peers and o.share(peer) >= MIN_SHARE and o.task in ours]
        if not kept:
            table.add(peer, f"0 of {len(outcomes)}", "-", "-")
            continue
        theirs = geometric_mean([outcome.peers[peer].latency.ratio for outcome in kept])
        mean = geometric_mean([ours[outcome.task].ratio for outcome in kept])
        table.add(peer, f"{len(kept)} of {len(outcomes)}", f"{theirs:.3f}", f"{mean:.3f}")
        figure.require(mean <= theirs, f"{OURS}: {mean:.3f} of float's time, {peer} {theirs:.3f} on the same tasks")
    return table


def page(figure: Figure, outcomes: Sequence[Outcome]) -> None:
    """Fill the page, and hold it to the bars."""
    table = Table(COLUMNS, words=2)
    for outcome in outcomes:
        add_rows(table, outcome)
    figure.tables += [table, judge_latency(figure, outcomes)]
    others = other_metrics(outcomes)
    figure.tables += [others] if others.rows else []
    measured = Table(("task", "measured"), "Measurements", 2)
    for outcome in outcomes:
        measured.add(outcome.task, outcome.provenance)
    figure.tables.append(measured)
    judge(figure, outcomes)


def kept_outcomes(figure: Figure) -> list[Outcome]:
    """The kept outcomes of all tasks, in their order; one that is missing, or is of other files, misses the bar."""
    kept, found = load_parts(NAME), []
    for name, spec in tasks.specs().items():
        if not figure.require(name in kept, f"{name}: not measured"):
            continue
        outcome = Outcome.from_json(kept[name])
        if figure.require(
            outcome.version == spec.version, f"{name}: measured on version {outcome.version} of the task"
        ):
            found.append(outcome)
    return found


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    listed = ", ".join(quantizers.PEERS)
    parser.add_argument("--tasks", metavar="A,B", help="measure only these tasks; the page keeps the others")
    parser.add_argument("--peers", metavar="X,Y", help=f"other peers than the usual (writes no page); of: {listed}")
    parser.add_argument(
        "--calibration",
        type=int,
        default=CALIBRATION,
        help="samples (default %(default)s; another number writes no page)",
    )
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
    usual = (options.peers is None, not options.samples, options.seconds >= SECONDS, options.calibration == CALIBRATION)
    write = all(usual) and not options.no_write
    figure = Figure(
        NAME,
        "Accuracy and latency of static int8",
        f"Every tool gets the same float file and the same {options.calibration} unlabelled calibration samples of the "
        "train split. All models are scored on the same held-out samples and run in the same ONNX Runtime; latency is "
        "at batch 1, two threads, all models of a task taking turns. Differences are in percentage points. "
        f"Peers: {describe({name: quantizers.PEERS[name] for name in names if name not in OWN})}. "
        f"`{OURS}` is `graphopt compile --target cpu --precision int8`, which ships float where int8 is slower on this "
        f"machine; `{OURS_INT8}` shows its int8 also there. Tasks are measured one by one, each at the commit named in "
        f"the last table, and kept in [{NAME}]({NAME}).",
        (
            f"both rows of {OURS} at least {MIN_SHARE:g} of float on every task, and {MIN_SHARE_OF_HALF:g} on half",
            "both at least as good as the best peer within the paired 95 % interval, on every task",
            f"{OURS}: latency at most {MAX_LATENCY:g} of float's by the lower end of its interval, on every task",
            f"{OURS}: geometric mean of the latency at most each peer's, on the tasks where that peer keeps "
            f"{MIN_SHARE:g} of float",
        ),
    )
    outcomes = []
    for name in chosen:
        task = tasks.load(name)
        say(f"{name} ...")
        outcomes.append(measure(task, names, options))
        if write:
            save_part(NAME, name, outcomes[-1].to_json())
        table = Table(COLUMNS, words=2)
        add_rows(table, outcomes[-1])
        say("\n".join(" | ".join(row) for row in table.rows))
    page(figure, kept_outcomes(figure) if write else outcomes)
    return figure.finish(write=write)


if __name__ == "__main__":
    raise SystemExit(main())
