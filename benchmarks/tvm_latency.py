"""End to end: `graphopt compile --target tvm` against ONNX Runtime on what `graphopt opt --target cpu` makes.

    python -m benchmarks.tvm_latency [--models NAME ...] [--seconds S] [--threads N ...] [--tune TIME]

Each runtime has a process of its own, ONNX Runtime a second one as well (A/A); they take turns. With `--tune` the model
is compiled once more, tuned for so long, and has a process beside the others; that makes a page of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import Figure, Table, arguments, choose_models, pick, say
from benchmarks.latency import DISTURBED
from benchmarks.peers import graphopt_tool
from benchmarks.tvm_worker import Worker, race
from graphopt import driver, models
from graphopt.driver import Options
from graphopt.tuning import parse_duration

MODELS = (
    "resnet18-export",
    "resnet50-export",
    "mobilenet-v2-export",
    "light-squeezenet",
    "densenet121-export",
    "minilm-l6-export-static",
    "vit-b16-export",
)
MEAN_BAR = 1.3
TUNED_BAR = 1.0
MOST = 2.0
COMPILE_BAR = 60.0
SECONDS = 6.0
# New processes are timed when the A/A ratio is further from 1 than DISTURBED, so many times in all.
TRIES = 3
# Largest difference from the unoptimized reference, as a share of the reference's largest value.
TOLERANCE = 1e-4


def compile_library(model: Path, threads: int, folder: Path, tune: float | None = None) -> tuple[Path, float]:
    """`graphopt compile --target tvm`: the library, and the seconds of lowering, scheduling and code generation."""
    artifact = driver.compile(str(model), f"tvm{{threads={threads}}}", folder, Options(numerics="off", tune=tune))
    return folder / artifact.manifest["main"], artifact.report["seconds"]["lower"]


def reference(model: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime with its optimizations off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def outputs(library: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of the compiled library."""
    import tvm

    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(value) for value in feeds.values()))
    return [result.numpy()] if hasattr(result, "numpy") else [value.numpy() for value in result]


def make_feeds(model: Path, file: Path) -> dict[str, np.ndarray]:
    """Legal feeds in the order of the model's inputs, saved for the workers."""
    from graphopt import feeds
    from graphopt.frontends.capture import capture

    made = {name: np.asarray(value) for name, value in feeds.make_feeds(capture(str(model), {})[0]).items()}
    np.savez(file, **made)  # type: ignore[arg-type]
    return made


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Largest difference over the largest value, of the worst output."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def timed(kinds: Mapping[str, tuple[Any, ...]], threads: int, feeds: Path, seconds: float) -> dict[str, list[float]]:
    """Blocks of runs that take turns, each worker in a process of its own."""
    with ExitStack() as stack:
        workers = {key: Worker(kind, threads, file, feeds, *more) for key, (kind, file, *more) in kinds.items()}
        for worker in workers.values():
            stack.callback(worker.close)
        return race(workers, seconds)


def main() -> int:
    parser = arguments(__doc__)
    choose_models(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring per model (default %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tune", type=parse_duration, help="also tuned for so long, for example 20m")
    options = parser.parse_args()
    chosen = pick(MODELS, options.models)
    folder = options.folder / "tvm_latency"
    folder.mkdir(parents=True, exist_ok=True)
    bars = [
        f"geometric mean of the ratios at most {MEAN_BAR:g}, none above {MOST:g}, for each number of threads",
        f"difference at most {TOLERANCE:g}",
        f"compile time at most {COMPILE_BAR:g} s",
    ]
    if options.tune:
        bars.append(f"tuned for {options.tune:g} s: geometric mean at most {TUNED_BAR:g}")
    figure = Figure(
        "tvm-latency-tuned" if options.tune else "tvm-latency",
        "Latency on TVM, untuned and tuned" if options.tune else "Latency on TVM, untuned",
        "Batch 1, float32: `graphopt compile --target tvm` over ONNX Runtime on the output of `graphopt opt --target "
        "cpu`; the A/A column is a second process of ONNX Runtime over the first. The difference is from ONNX Runtime "
        "on the original with optimizations off, as a share of the largest value.",
        tuple(bars),
    )
    for threads in options.threads:
        columns = ("model", "ONNX Runtime ms", "ours ms", "ratio", "A/A", "difference", "compile s")
        more = ("tuned ms", "tuned ratio", "tuned difference") if options.tune else ()
        table = Table((*columns, *more), f"{threads} thread{'s' * (threads > 1)}")
        ratios: dict[str, list[float]] = {"ours": [], "tuned": []}
        for name in chosen:
            say(f"{name}, {threads} threads ...")
            source, model, feeds_file = models.fetch(name), folder / f"{name}.onnx", folder / f"{name}.npz"
            attempt = graphopt_tool("--numerics", "off")(source, model)
            if not figure.require(not attempt.error, f"{name}: {attempt.error}"):
                continue
            feeds = make_feeds(source, feeds_file)
            library, seconds = compile_library(source, threads, folder / f"{name}-{threads}")
            off = difference(outputs(library, feeds), reference(source, feeds))
            kinds = {"ours": ("vm", library), "theirs": ("ort", model), "again": ("ort", model)}
            if options.tune:
                tuned, _ = compile_library(source, threads, folder / f"{name}-{threads}-tuned", options.tune)
                kinds["tuned"] = ("vm", tuned)
            for _ in range(TRIES):
                blocks = timed(kinds, threads, feeds_file, options.seconds)
                found = {key: float(np.median(np.array(blocks[key]) / np.array(blocks["theirs"]))) for key in kinds}
                ratio, same = found["ours"], found["again"]
                if abs(same - 1) <= DISTURBED:
                    break
            times = {key: f"{1e3 * float(np.median(blocks[key])):.3f}" for key in kinds}
            cells = [times["theirs"], times["ours"], f"{ratio:.3f}", f"{same:.3f}", f"{off:.1e}", f"{seconds:.1f}"]
            if options.tune:
                away = difference(outputs(tuned, feeds), reference(source, feeds))
                cells += [times["tuned"], f"{found['tuned']:.3f}", f"{away:.1e}"]
                figure.require(away <= TOLERANCE, f"{name}, tuned: difference {away:.1e}")
            table.add(name, *cells)
            for key, values in ratios.items():
                values += [found[key]] if key in found else []
            say(" ".join(table.rows[-1]))
            figure.require(ratio <= MOST, f"{name}, {threads} threads: ratio {ratio:.2f}")
            figure.require(off <= TOLERANCE, f"{name}: difference {off:.1e}")
            figure.require(seconds <= COMPILE_BAR, f"{name}: compiled in {seconds:.0f} s")
        if len(ratios["ours"]) == len(MODELS):
            mean = geometric_mean(ratios["ours"])
            figure.require(mean <= MEAN_BAR, f"{threads} threads: geometric mean {mean:.2f}")
            cells = ["", "", f"{mean:.3f}", "", "", ""]
            if options.tune:
                mean = geometric_mean(ratios["tuned"])
                figure.require(mean <= TUNED_BAR, f"{threads} threads, tuned: geometric mean {mean:.2f}")
                cells += ["", f"{mean:.3f}", ""]
            table.add("geometric mean", *cells)
        figure.tables.append(table)
    return figure.finish(write=not (options.no_write or options.models or options.seconds < SECONDS))


if __name__ == "__main__":
    raise SystemExit(main())
