"""Everything that needs an NVIDIA GPU, in one command; on a machine without one, the part that needs none.

    python -m benchmarks.gpu_check [--models NAME_OR_FILE ...] [--seconds S] [--runtimes onnxruntime tvm] [--emulate]

`--runtimes tvm` needs no ONNX Runtime for GPUs. `--emulate` is the rehearsal of TVM's part on a machine without a GPU:
its kernels run on the CPU (gpu_tvm.py). Exit status 1: a check failed; 2: there is a GPU, and one line says which
packages it needs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks import gpu_profile, gpu_table, gpu_tvm
from benchmarks.figure import Figure, Table, arguments, say
from benchmarks.gpu_jobs import Job, compile_all
from graphopt import models
from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt.artifact import Artifact

RUNTIMES = ("onnxruntime", "tvm")
MODELS = (
    *("ppocr-rec-v4", "mobilenet-v2-export", "resnet50-export", "convnext-t-export", "silero-vad"),
    *("minilm-l6-export", "vit-b16-export", "llama-tiny-kv"),
)
TVM_MODELS = (
    *("light-squeezenet", "resnet18-export", "resnet50-export", "mobilenet-v2-export", "densenet121-export"),
    *("minilm-l6-export", "vit-b16-export", "ppocr-cls", "magika", "bert-tiny-export"),
)
CASES = 16
CUDA = "cuda"
EXACT = "CUDA without TF32"
TARGETS = {"CUDA": CUDA, EXACT: "cuda{tf32=false}", "TensorRT": "onnxruntime{device=cuda provider=tensorrt}"}
SECONDS = 0.6
# The most that the lower end of a model's 95 % interval over plain ONNX Runtime on the same GPU may be.
MAX_LOW = 1.02

BARS = (
    "every kernel that the kernel table promises is in the installed ONNX Runtime",
    "the artifact computes what the original does, by the numerics policy",
    "every copy between host and device that ONNX Runtime's profile shows is counted at compile time",
    "TVM's kernels compute what the model does, and the official node cases that TVM takes are right",
    f"no model above {MAX_LOW:g} of plain ONNX Runtime on the same GPU by the lower end of its 95 % interval",
)

Result = Literal["passed", "failed", "not run"]


@dataclass
class Checks:
    """What was checked; a failed row misses the figure's bar, a row that was not run does not."""

    figure: Figure
    table: Table = field(default_factory=lambda: Table(("check", "model", "result", "detail"), words=4))

    def add(self, check: str, model: str, result: Result, detail: str) -> None:
        say(f"{check} | {model} | {result} | {detail}")
        self.table.add(check, model, result, detail)
        self.figure.require(result != "failed", f"{check}, {model}: {detail}")


def gpus() -> list[str]:
    """The NVIDIA GPUs of this machine, by the driver's tool or by their device files."""
    from graphopt.doctor import examine

    return examine()["machine"]["gpus"] or [str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def missing_packages(found: Sequence[str]) -> str:
    """The one line for a machine with a GPU that lacks packages; '' when nothing is missing or there is no GPU."""
    from graphopt.manager.registry import make_target

    if not found:
        return ""
    reason = make_target(CUDA).available() or why_no_session()
    if not reason:
        return ""
    return (
        f"{found[0]} is here, but {reason.partition(';')[0]}; this check needs the wheels that `pip download "
        f'"onnxruntime-gpu[cuda,cudnn]{_constraint()}"` fetches, in place of onnxruntime; for TensorRT also those of '
        "tensorrt"
    )


def why_no_session() -> str:
    """Why the CUDA provider, though it is installed, opens no session; '' when it does."""
    from graphopt.ir.text import from_text
    from graphopt.ir.writer import write
    from graphopt.running import runnable

    text = '<ir_version: 10, opset_import: ["" : 21]> probe (float[2] x) => (float[2] y) { y = Relu(x) }'
    with tempfile.TemporaryDirectory(prefix="graphopt-probe-") as folder:
        path = Path(folder) / "probe.onnx"
        write(from_text(text), path)
        try:
            runnable(path, CUDA).open().close()
        except GraphoptError as error:
            return str(error)
    return ""


def _constraint() -> str:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"=={importlib.metadata.version(package)}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME", help="models of the zoo, or ONNX files")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--cases", type=int, default=CASES, help="every N-th node case through TVM, 0 for none")
    parser.add_argument("--emulate", action="store_true", help="run TVM's kernels on this machine's CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring per row (default %(default)s)")
    options = parser.parse_args(argv)
    found = gpus()
    missing = missing_packages(found) if "onnxruntime" in options.runtimes else ""
    without_tvm = gpu_tvm.why_not() if "tvm" in options.runtimes else ""
    if found and not missing:
        missing = without_tvm
    if missing:
        print(f"gpu_check: {missing}", file=sys.stderr)
        return 2
    machine = f"GPU: {', '.join(found)}." if found else "No GPU here: what needs one was not run."
    figure = Figure(
        "gpu",
        "ONNX Runtime and TVM on an NVIDIA GPU",
        f"`graphopt compile --target cuda`, the same with TensorRT, and `--target {gpu_tvm.target(False)}`. {machine}",
        BARS if found else BARS[:2],
    )
    checks = Checks(figure)
    folder = options.folder / "gpu"
    jobs: dict[str, list[Job]] = {}
    if "onnxruntime" in options.runtimes:
        for device in ("cpu", "cuda"):
            checks.add("kernel table", device, *gpu_table.check(device))
        files = _files(options.models or MODELS)
        for short, aim in TARGETS.items():
            jobs[short] = [Job(name, path, aim, folder / f"{name}-{short.replace(' ', '-')}") for name, path in files]
    if without_tvm:
        checks.add("compile, TVM", "all", "not run", without_tvm)
    elif "tvm" in options.runtimes:
        jobs["TVM"] = gpu_tvm.jobs(_files(options.models or TVM_MODELS), folder, options.emulate)
    say("compiling ...")
    with ThreadPoolExecutor(1) as beside:
        cases = (
            beside.submit(gpu_tvm.check_cases, options.cases, options.emulate)
            if options.cases and "TVM" in jobs
            else None
        )
        errors = compile_all([job for listed in jobs.values() for job in listed])
    if cases is not None:
        checks.add(*cases.result())
    for short, listed in jobs.items():
        for job in listed:
            if errors[job]:
                checks.add(f"compile, {short}", job.label, "failed", errors[job])
    done = {short: [job for job in listed if not errors[job]] for short, listed in jobs.items()}
    for job in done.get("TVM", ()):
        gpu_tvm.check_model(checks.add, job, options.emulate)
    gpu_tvm.time_models(checks.add, done.get("TVM", ()), options.seconds)
    for short in TARGETS:
        for job in done.get(short, ()):
            say(f"{job.label} with {short} ...")
            check_model(checks, job, short, options.seconds)
    figure.tables.append(checks.table)
    not_run = sum(row[2] == "not run" for row in checks.table.rows)
    if not_run:
        figure.notes.append(f"**{not_run} of {len(checks.table.rows)} checks were not run**; the table says why.")
    whole = not options.models and set(options.runtimes) == set(RUNTIMES) and options.seconds >= SECONDS
    return figure.finish(write=bool(found) and whole and not options.no_write)


def _files(names: Sequence[str]) -> list[tuple[str, Path]]:
    """Models of the zoo, or files, with their names."""
    return [(Path(name).stem, Path(name)) if name.endswith(".onnx") else (name, models.fetch(name)) for name in names]


def check_model(checks: Checks, job: Job, short: str, seconds: float) -> None:
    """Of one compiled model: its verdict, and where the target can run, its copies and how long it takes."""
    from benchmarks.latency import SHAPES, request
    from graphopt.artifact import load
    from graphopt.manager.registry import make_target

    artifact, name = load(job.folder), job.label
    checks.add(f"compile, {short}", name, "passed", compiled(artifact))
    verdict = artifact.report["numerics"]
    missing = make_target(job.target).available()
    if missing is not None:
        checks.add(f"numerics, {short}", name, "not run", verdict["reason"].rpartition("; ")[2])
        checks.add(f"copies and latency, {short}", name, "not run", missing.partition(";")[0])
        return
    known: dict[str, Result] = {"passed": "passed", "failed": "failed"}
    checks.add(f"numerics, {short}", name, known.get(verdict["status"], "not run"), differences(verdict))
    if short == EXACT:  # there for its numerics, which rounding to TF32 blurs
        return
    feeds = request(job.path, SHAPES.get(job.name, {}))
    try:
        if short == "CUDA":  # what TensorRT takes is known only there, so nothing was counted at compile time
            checks.add("copies, CUDA", name, *gpu_profile.check(artifact, feeds))
        checks.add(f"latency, {short}", name, *latency(job.path, artifact, job.target, feeds, seconds))
    except GraphoptError as error:
        checks.add(f"run, {short}", name, "failed", str(error))


def compiled(artifact: Artifact) -> str:
    before, after = artifact.report["before"]["nodes"], artifact.report["after"]["nodes"]
    notes = [note for note in artifact.report["notes"] if not note.startswith("compiled, not run")]
    return "; ".join((f"{before} -> {after} nodes", *notes))


def differences(verdict: dict[str, Any]) -> str:
    """The largest difference from the CPU reference, relative to what is allowed."""
    worst = max(verdict.get("outputs", ()), key=lambda row: _share(row), default=None)
    if worst is None:
        return verdict["reason"]
    measured = f"{worst['name']}: {float(worst['max_abs']):.3g} of {float(worst['limit']):.3g} allowed"
    return "; ".join(filter(None, (measured, verdict["reason"])))


def _share(row: dict[str, Any]) -> float:
    limit = float(row["limit"])
    return float(row["max_abs"]) / limit if limit else float(row["max_abs"]) and float("inf")


def latency(path: Path, artifact: Artifact, target: str, feeds: dict[str, Any], seconds: float) -> tuple[Result, str]:
    """Time plain ONNX Runtime on the device, ours there, and plain on the CPU, taking turns."""
    from graphopt.running import Runnable, runnable
    from graphopt.timing import BenchPlan, bench

    ways: dict[Path, Runnable] = {
        Path("plain"): runnable(path, target),
        Path("ours"): runnable(artifact.path),
        Path("cpu"): runnable(path, "cpu"),
    }
    report = bench(list(ways), feeds, lambda way: ways[way].open(force_spinning_stop=True), BenchPlan(seconds=seconds))
    plain, again, ours, cpu = report.rows
    detail = (
        f"plain {plain.median_ms:.3f} ms, ours {ours.median_ms:.3f} ms, ratio {ours.ratio:.3f} "
        f"({ours.ratio_low:.3f} to {ours.ratio_high:.3f}), A/A {again.ratio:.3f}, CPU {cpu.median_ms:.3f} ms"
    )
    return ("passed" if ours.ratio_low <= MAX_LOW else "failed"), detail


if __name__ == "__main__":
    raise SystemExit(main())
