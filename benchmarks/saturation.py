"""Saturation of int8 kernels on CPUs without VNNI: what it costs each way of choosing weights, and what each way costs.

    python -m benchmarks.saturation

The metric of one int8 model is taken twice: with exact sums, and from ONNX Runtime's kernels without VNNI. Where this
CPU has no VNNI, all models are timed against each other too.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figure import Figure, Table, arguments, say
from benchmarks.latency import DISTURBED, THREADS
from benchmarks.quant import emulated, quantizers, tasks
from benchmarks.quant.ours import quantized
from benchmarks.quant.outcomes import Latency
from benchmarks.quant.task import Task

if TYPE_CHECKING:
    import numpy as np

    from graphopt.target import Runner

TASKS = {"fashion-cnn": 2000, "fashion-resnet": 2000, "mobilenet-fashion": 500}
"""Held-out samples per task on an emulated CPU, which is slow; a real one takes them all."""
CALIBRATION = 256
SAFE, OURS = "weights that cannot saturate", "ours: --precision int8"
"""The same quantizer as u8s8 but for the weights, and what graphopt makes of the model for a CPU without VNNI."""
GAP = 0.001
"""Part of the metric that saturation may change."""
MIN_SPEED = 0.97
"""Of ours over unsafe u8s8."""
SECONDS = 3.0

FIGURE = Figure(
    "saturation",
    "Saturation of int8 kernels without VNNI",
    "CPUs without VNNI add pairs of u8 x s8 products in 16 bits with saturation. `exact` is the metric of an int8 "
    "model whose sums are exact (int8 kernels with VNNI, or those that the session key takes where this CPU has none), "
    "`kernel` the metric from ONNX Runtime's int8 kernels on a CPU without VNNI, `changed` the part of the samples "
    "whose outputs differ between the two by more than a hundredth of their largest value. u8s8, the session key and "
    f"`{SAFE}` are the same quantizer (min-max, per channel); reduce_range and u8u8 are ONNX Runtime's own; "
    f"`{OURS}` is the whole pipeline with all of it in int8 (`--keep-slow`). `time` "
    f"is the latency over that of u8s8 at batch 1, {THREADS} threads, with its 95 % interval.",
    (
        "ours, and weights that cannot saturate: between exact arithmetic and the kernel at most 0.1 % of the metric",
        "ours: a metric from the kernel at least that of reduce_range and of u8u8, up to 0.1 %",
        f"both: at least {MIN_SPEED:.0%} of the speed of u8s8 by the end of its interval, where this CPU has no VNNI",
    ),
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="only these")
    options = parser.parse_args()
    if emulated.emulator() is None:
        raise SystemExit("this CPU has VNNI; install qemu-user (Debian) to emulate one without")
    table = Table(("task", "weights", "exact", "kernel", "lost", "changed", "time"), words=2)
    FIGURE.tables.append(table)
    for name in options.tasks:
        task = tasks.load(name)
        _task(task, task.samples if emulated.HERE else TASKS[name], options.folder / "saturation" / name, table)
    where = (
        "this CPU, which has no VNNI" if emulated.HERE else "an emulated Haswell (qemu-x86_64), as this CPU has VNNI"
    )
    FIGURE.notes.append(
        f"The kernels ran on {where}. "
        + (
            ""
            if emulated.HERE
            else "Speed is not measured there: an emulator's time says nothing. Ours runs the same u8s8 kernels as the "
            "unsafe weights, with other numbers in them."
        )
    )
    return FIGURE.finish(write=not options.no_write and options.tasks == list(TASKS))


def _task(task: Task, samples: int, folder: Path, table: Table) -> None:
    say(f"{task.name} ...")
    batches = [task.feeds(at, min(at + task.spec.batch, samples)) for at in range(0, samples, task.spec.batch)]
    kernel: dict[str, float] = {}
    made = _models(task, folder)
    times = _times(task, made) if emulated.HERE else {}
    for label, model, precise in made:
        exact = _exact(model, batches)
        real = emulated.run_all(model, batches, folder / "run", precise=precise)
        a, b = (_metric(task, outputs, samples, model) for outputs in (exact, real))
        changed = _changed(exact, real)
        kernel[label] = b
        time = times.get(label, "-")
        table.add(task.name, label, f"{a:.4f}", f"{b:.4f}", f"{(a - b) / a:.2%}", f"{changed:.1%}", time)
        if label in (SAFE, OURS):
            FIGURE.require(abs(a - b) <= GAP * a, f"{task.name}: saturation changes {label} from {a:.4f} to {b:.4f}")
    for label in (SAFE, OURS) if times else ():
        FIGURE.require(
            times[label].low <= 1 / MIN_SPEED, f"{task.name}: {label} takes {times[label]} of the time of u8s8"
        )
    for other in ("reduce_range", "u8u8"):
        FIGURE.require(
            kernel[OURS] >= kernel[other] * (1 - GAP),
            f"{task.name}: ours has {kernel[OURS]:.4f}, {other} {kernel[other]:.4f}",
        )


def _models(task: Task, folder: Path) -> list[tuple[str, Path, bool]]:
    calibration = task.calibration_of(CALIBRATION)
    unsafe, safe = (
        quantized(task.model, [f"quantize-static{{method=minmax saturation={kind}}}"], folder / kind, calibration).path
        for kind in ("ignore", "safe")
    )
    whole = {}
    for label, name in (("reduce_range", "ort-reduce-range"), ("u8u8", "ort-u8u8"), (OURS, quantizers.OURS_INT8)):
        made = quantizers.quantize(name, task.model, calibration, folder / name, "cpu{isa=avx2}")
        if made.error:
            raise SystemExit(f"{name} does not quantize {task.name}: {made.error}")
        whole[label] = made.path
    return [
        ("u8s8", unsafe, False),
        ("u8s8 with the session key", unsafe, True),
        (SAFE, safe, False),
        *((label, path, False) for label, path in whole.items()),
    ]


def _times(task: Task, made: Sequence[tuple[str, Path, bool]]) -> dict[str, Latency]:
    """Each model's latency over the first one's, all taking turns; once more when disturbed."""
    from graphopt.targets.onnxruntime.runner import open_runner
    from graphopt.targets.onnxruntime.settings import SessionSettings
    from graphopt.timing import BenchPlan, bench

    # One file opened in two ways has to have two names.
    paths = {model.with_name("keyed.onnx") if precise else model: label for label, model, precise in made}
    for _, model, precise in made:
        if precise:
            shutil.copyfile(model, model.with_name("keyed.onnx"))

    def opener(path: Path) -> Runner:
        precise = path.name == "keyed.onnx"
        return open_runner(path, SessionSettings(threads=THREADS, force_spinning_stop=True, precise_u8s8=precise))

    plan, feeds = BenchPlan(seconds=SECONDS), task.feeds(0, 1)
    rows = bench(list(paths), feeds, opener, plan).rows
    if abs(rows[1].ratio - 1) > DISTURBED:
        rows = bench(list(paths), feeds, opener, plan).rows
    FIGURE.notes.append(f"{task.name}: A/A {rows[1].ratio:.3f}, u8s8 takes {rows[0].median_ms:.2f} ms.")
    found = {paths[Path(row.path)]: Latency(row.ratio, row.ratio_low, row.ratio_high) for row in rows[2:]}
    return {made[0][0]: Latency(1.0, 1.0, 1.0), **found}


def _exact(model: Path, batches: list[dict[str, Any]]) -> list[list[Any]]:
    """With exact sums: of the int8 kernels with VNNI, or of those that the session key takes where this CPU has none.

    Both add in 32 bits; arithmetic in float would round otherwise in a deep net.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    if emulated.HERE:
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feeds) for feeds in batches]


def _metric(task: Task, outputs: list[list[Any]], samples: int, model: Path) -> float:
    from graphopt import ir

    names = [str(value.name) for value in ir.load(model).graph.outputs]
    turns = iter(outputs)

    def replay(_: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(names, next(turns), strict=True))

    return float(task.score(replay, samples).mean())


def _changed(exact: list[list[Any]], real: list[list[Any]]) -> float:
    """Part of the samples whose first output moved by more than a hundredth of its largest value."""
    import numpy as np

    moved: list[np.ndarray] = []
    for a, b in zip(exact, real, strict=True):
        gap = np.abs(a[0] - b[0]).reshape(len(a[0]), -1).max(axis=1)
        moved.append(gap > 0.01 * np.abs(a[0]).reshape(len(a[0]), -1).max(axis=1))
    return float(np.concatenate(moved).mean())


if __name__ == "__main__":
    raise SystemExit(main())
