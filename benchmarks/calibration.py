"""Figure 5 of quantization: what calibration takes, in memory and in time.

    python -m benchmarks.calibration [--only memory|time] [--models NAME ...]

Memory: `graphopt opt -p convert-float16 --calibration-data` looks at every float value of the model, on few samples and
on many. Time: against the calibrators of ONNX Runtime's quantizer, on the same model, data and values.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figure import ROOT, Figure, Table, arguments, choose_models, pick, say
from benchmarks.scale import HERTZ, watch
from graphopt.models import fetch

# The bars.
FEW, MANY, MAX_MEMORY_RATIO = 10, 1000, 1.1
MAX_TIME_RATIO = 1.0
# ONNX Runtime keeps the outputs of all samples until it makes histograms of them, which bounds their number.
SAMPLES = {"minmax": 128, "percentile": 16, "entropy": 16}
REPEAT = 3
SECONDS = 900

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model of the zoo and made-up samples of its inputs; `batches` are those that it takes."""

    name: str
    sample: Callable[[np.random.Generator, int], Arrays]
    batches: tuple[int, ...]


def _image(*shape: int) -> Callable[[np.random.Generator, int], Arrays]:
    return lambda rng, count: {"x": rng.standard_normal((count, *shape), dtype=np.float32)}


def _tokens(rng: np.random.Generator, count: int) -> Arrays:
    return {
        "input_ids": rng.integers(0, 30522, (count, 128)),
        "attention_mask": np.ones((count, 128), np.int64),
    }


SUBJECTS = (
    Subject("mobilenet-v2-export", _image(3, 224, 224), (1,)),
    Subject("minilm-l6-export", _tokens, (1, 8)),
    Subject("ppocr-rec-v4", _image(3, 48, 320), (1, 8)),
)


def write_samples(subject: Subject, count: int, folder: Path) -> Path:
    """An archive of samples, the same ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{subject.name}-{count}.npz"
    if not path.exists():
        np.savez(path, **subject.sample(np.random.default_rng(0), count))  # type: ignore[arg-type]
    return path


def measure_memory(figure: Figure, subjects: list[Subject], folder: Path) -> None:
    """Peak memory of the command's process tree on few and on many samples of one archive."""
    table = Table(("model", f"{FEW} samples", f"{MANY:,} samples", "ratio", "seconds"), "Peak memory")
    for subject in subjects:
        model, data = fetch(subject.name), write_samples(subject, MANY, folder)
        peaks = []
        for count in (FEW, MANY):
            say(f"{subject.name}: memory on {count} samples ...")
            command = [sys.executable, "-m", "graphopt", "opt", str(model), "-p", "convert-float16", "--quiet"]
            command += ["--numerics", "off", "--calibration-data", str(data), "--calibration-samples", str(count)]
            done = watch(command, folder)
            if not figure.require(done.status == 0, f"{subject.name}: exit status {done.status}: {done.errors}"):
                break
            peaks.append(done.peak)
        else:
            ratio = peaks[1] / peaks[0]
            megabytes = [f"{peak / 1e6:.0f} MB" for peak in peaks]
            table.add(subject.name, *megabytes, f"{ratio:.2f}x", f"{done.seconds:.0f}")
            figure.require(ratio <= MAX_MEMORY_RATIO, f"{subject.name}: memory is {ratio:.2f}x on {MANY:,} samples")
        data.unlink()
    figure.tables.append(table)


def calibrate(tool: str, subject: Subject, method: str, data: Path, batch: int = 0) -> dict[str, object]:
    """Run one calibration in a process of its own; its seconds and ranges."""
    command = [sys.executable, "-m", "benchmarks.calibration_worker", tool, str(fetch(subject.name)), str(data), method]
    command += [str(SAMPLES[method]), *([str(batch)] if batch else [])]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode:
        raise SystemExit(f"{tool} on {subject.name}, {method}: {done.stderr.strip()[-600:]}")
    return dict(json.loads(done.stdout))


def measure_time(figure: Figure, subjects: list[Subject], folder: Path) -> None:
    """Median seconds of both, taking turns; ONNX Runtime at the better of the batches that the model takes."""
    columns = ("model", "method", "samples", "values", "ONNX Runtime", "its batch", "graphopt", "ratio")
    table = Table(columns, f"Seconds to ranges, median of {REPEAT}", words=2)
    for subject in subjects:
        for method, count in SAMPLES.items():
            data = write_samples(subject, count, folder)
            theirs: dict[int, list[float]] = {batch: [] for batch in subject.batches}
            ours: list[float] = []
            values = 0
            for turn in range(REPEAT):
                say(f"{subject.name}, {method}, {turn + 1} of {REPEAT} ...")
                for batch, taken in theirs.items():
                    taken.append(float(str(calibrate("onnxruntime", subject, method, data, batch)["seconds"])))
                result = calibrate("graphopt", subject, method, data)
                ours.append(float(str(result["seconds"])))
                values = len(dict(result["ranges"]))  # type: ignore[call-overload]
            best = min(theirs, key=lambda batch: statistics.median(theirs[batch]))
            their, our = statistics.median(theirs[best]), statistics.median(ours)
            row = (subject.name, method, count, values, f"{their:.2f}", best, f"{our:.2f}", f"{our / their:.2f}x")
            table.add(*row)
            slow = f"{subject.name}, {method}: {our / their:.2f}x of ONNX Runtime's time"
            figure.require(our / their <= MAX_TIME_RATIO, slow)
    figure.tables.append(table)


def main() -> int:
    parser = arguments(__doc__)
    choose_models(parser)
    parser.add_argument("--only", choices=("memory", "time"), help="one of the two parts (writes no page)")
    options = parser.parse_args()
    chosen = pick([subject.name for subject in SUBJECTS], options.models)
    subjects = [subject for subject in SUBJECTS if subject.name in chosen]
    folder = options.folder / "calibration"
    figure = Figure(
        "calibration",
        "Calibration",
        "Memory: `graphopt opt -p convert-float16 --calibration-data` takes statistics of every float value of the "
        "main graph; anonymous and shared memory of the whole process tree, sampled "
        f"{HERTZ} times a second from outside. Time: from the model file and an `.npz` of made-up samples to ranges of "
        "the values that ONNX Runtime's quantizer asks for, against its own calibrators at the better of the batches "
        "that the model takes. graphopt gathers the same for every method: ends, moments and a histogram.",
        (
            f"memory on {MANY:,} samples at most {MAX_MEMORY_RATIO}x of that on {FEW}",
            f"time at most {MAX_TIME_RATIO}x of ONNX Runtime's",
        ),
    )
    if options.only != "time":
        measure_memory(figure, subjects, folder)
    if options.only != "memory":
        measure_time(figure, subjects, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return figure.finish(write=not (options.no_write or options.only or options.models))


if __name__ == "__main__":
    raise SystemExit(main())
