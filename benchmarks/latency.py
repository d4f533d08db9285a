"""Figure 3: latency in ONNX Runtime, all its own optimizations on, of `opt -O2 --target cpu` output over the original.

    python -m benchmarks.latency [--models NAME ...] [--seconds S]

Two threads, blocks of both models and of the original again (A/A) taking turns, medians, bootstrap intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import zoo
from benchmarks.figure import Figure, Table, arguments, choose_models, pick, say
from benchmarks.peers import graphopt_tool
from graphopt import models

if TYPE_CHECKING:
    from graphopt.target import Runner
    from graphopt.timing import BenchReport

# The bars: geometric means of our latency over the original's by group, and the most that the lower end of any
# model's 95 % interval may be.
GROUPS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "CNN and OCR": (zoo.OCR_AND_CNN, 0.99),
    "transformers": (zoo.TRANSFORMERS, 0.92),
    "MiniLM": (zoo.MINILM, 0.87),
}
MAX_LOW = 1.02
# A run whose A/A ratio is further from 1 than this was disturbed, and is taken once more.
DISTURBED = 0.02
THREADS = 2
SECONDS = 5.0

# Shapes of a typical request, for inputs that are dynamic. The other models have static shapes.
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "ppocr-det-v4": {"x": (1, 3, 640, 640)},
    "ppocr-rec-v4": {"x": (1, 3, 48, 320)},
    "ppocr-cls": {"x": (1, 3, 48, 192)},
    "magika": {"bytes": (1, 2048)},
    "silero-vad": {"input": (1, 576), "state": (2, 1, 128)},
    "silero-vad-16k-op15": {"input": (1, 576), "state": (2, 1, 128)},
    "silero-vad-half": {"input": (1, 576), "state": (2, 1, 128)},
    "silero-vad-ifless": {"input": (1, 576), "state": (2, 1, 128)},
    "silero-vad-16k-sequence": {"input": (100, 576)},
    "minilm-l6-export": {"input_ids": (1, 128), "attention_mask": (1, 128)},
    "llama-tiny": {"input_ids": (1, 128), "attention_mask": (1, 128)},
    "llama-tiny-kv": {
        "input_ids": (1, 1),
        "attention_mask": (1, 128),
        **{f"past_{what}_{layer}": (1, 2, 127, 32) for layer in range(4) for what in ("key", "value")},
    },
}


def opener(path: Path) -> Runner:
    """A session in a process of its own, whose threads stop spinning when a run ends."""
    from graphopt.targets.onnxruntime.runner import open_runner
    from graphopt.targets.onnxruntime.settings import SessionSettings

    return open_runner(path, SessionSettings(threads=THREADS, force_spinning_stop=True))


def request(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Legal feeds of the given shapes, masks full."""
    from graphopt.feeds import make_feeds
    from graphopt.frontends.capture import capture

    return make_feeds(capture(str(path), {name: tuple(dims) for name, dims in shapes.items()})[0])


def time_pair(before: Path, after: Path, feeds: Mapping[str, Any], seconds: float) -> BenchReport:
    """Time the original, the original again, and the result; once more when the A/A row shows a disturbance."""
    from graphopt.timing import BenchPlan, bench

    plan = BenchPlan(seconds=seconds)
    report = bench([before, after], feeds, opener, plan)
    if abs(report.rows[1].ratio - 1) > DISTURBED:
        report = bench([before, after], feeds, opener, plan)
    return report


def geometric_mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def judge_groups(figure: Figure, ratios: Mapping[str, float]) -> Table:
    """Hold the groups to their bars; a group with a model that was not timed has no mean."""
    table = Table(("group", "models", "geometric mean", "bar"), "Groups")
    for group, (members, bar) in GROUPS.items():
        missing = [name for name in members if name not in ratios]
        if missing:
            table.add(group, len(members), f"not timed: {', '.join(missing)}", f"{bar:g}")
            figure.require(False, f"{group}: not timed: {', '.join(missing)}")
            continue
        mean = geometric_mean([ratios[name] for name in members])
        table.add(group, len(members), f"{mean:.3f}", f"{bar:g}")
        figure.require(mean <= bar, f"{group}: geometric mean {mean:.3f} is over {bar:g}")
    return table


def main() -> int:
    parser = arguments(__doc__)
    choose_models(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring per row (default %(default)s)")
    options = parser.parse_args()
    chosen = pick([name for name in zoo.onnx_models() if not zoo.is_light(name)], options.models)
    figure = Figure(
        "latency",
        "Latency in ONNX Runtime",
        f"`graphopt opt -O2 --target cpu` (numerics checked) over the original file: batch 1, {THREADS} threads, ONNX "
        "Runtime's own optimizations all on for both. The A/A column times the original against itself.",
        (
            *(f"{group}: geometric mean at most {bar:g}" for group, (_, bar) in GROUPS.items()),
            f"no model above {MAX_LOW:g} by the lower end of its 95 % interval",
        ),
    )
    columns = ("model", "original ms", "ours ms", "ratio", "95 % interval", "A/A", "A/A interval")
    table = Table(columns)
    optimize = graphopt_tool("--numerics", "end")
    ratios: dict[str, float] = {}
    for name in chosen:
        say(f"{name} ...")
        before = models.fetch(name)
        after = options.folder / "latency" / f"{name}.onnx"
        attempt = optimize(before, after)
        if not figure.require(not attempt.error, f"{name}: {attempt.error}"):
            table.add(name, *["-"] * (len(columns) - 1))
            continue
        rows = time_pair(before, after, request(before, SHAPES.get(name, {})), options.seconds).rows
        ratios[name] = rows[2].ratio
        spans = [f"{row.ratio_low:.3f} to {row.ratio_high:.3f}" for row in rows]
        times = (f"{rows[0].median_ms:.3f}", f"{rows[2].median_ms:.3f}")
        table.add(name, *times, f"{rows[2].ratio:.3f}", spans[2], f"{rows[1].ratio:.3f}", spans[1])
        figure.require(rows[2].ratio_low <= MAX_LOW, f"{name}: {rows[2].ratio:.3f} ({spans[2]})")
    figure.tables.append(table)
    if not options.models:
        figure.tables.append(judge_groups(figure, ratios))
    return figure.finish(write=not (options.no_write or options.models or options.seconds < SECONDS))


if __name__ == "__main__":
    raise SystemExit(main())
