"""What gpu_check checks of `tvm{device=cuda}`: models and node cases compiled, right, and how long they take.

Without a GPU models are compiled; with `emulate` their kernels run on this machine's CPU, which proves what they
compute and says nothing of speed.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from benchmarks.figure import say
from benchmarks.gpu_jobs import Job, processes
from benchmarks.tvm_worker import Worker, race
from graphopt.errors import GraphoptError
from graphopt.targets.tvm.gpu.driver import first_gpu
from graphopt.targets.tvm.target import Arch

if TYPE_CHECKING:
    from graphopt.artifact import Artifact

Result = Literal["passed", "failed", "not run"]
Add = Callable[[str, str, Result, str], None]
COMPILED = ("resnet18-export", "resnet50-export", "mobilenet-v2-export", "minilm-l6-export", "vit-b16-export")
"""Models that torch.compile is timed on too; compiling all of them takes longer than everything else here."""
HALVES = ("resnet18-export", "resnet50-export", "minilm-l6-export", "vit-b16-export")
"""Models that are compiled with `--precision fp16` too."""


def why_not() -> str:
    """What is missing to compile for a GPU, and to run on one where there is one; '' when nothing is."""
    from graphopt.targets.tvm.gpu.nvcc import nvcc
    from graphopt.targets.tvm.library import with_cuda, with_runtime

    if importlib.util.find_spec("tvm") is None:
        return "TVM is not installed; bring the wheels that `pip download apache-tvm apache-tvm-ffi` fetches"
    try:
        nvcc(arch())
        if not isinstance(first_gpu(), str):
            with_runtime()
            with_cuda()
    except GraphoptError as error:
        return str(error)
    return ""


def arch() -> str:
    """The architecture of the GPU here, or sm_90."""
    found = first_gpu()
    name = "sm_90" if isinstance(found, str) else f"sm_{found[0]}{found[1]}"
    return name if name in get_args(Arch) else "sm_80"


def target(emulate: bool) -> str:
    emulator = " emulator=cpu" if emulate else ""
    return f"tvm{{device=cuda arch={arch()} fallback=onnxruntime{emulator}}}"


def jobs(files: Sequence[tuple[str, Path]], folder: Path, emulate: bool) -> list[Job]:
    """Each model as it is, and some of them in half precision too."""
    aim = target(emulate)
    plain = [Job(name, path, aim, folder / f"{name}-tvm") for name, path in files]
    halves = [Job(name, path, aim, folder / f"{name}-tvm-fp16", "fp16") for name, path in files if name in HALVES]
    return plain + halves


def check_model(add: Add, job: Job, emulate: bool) -> None:
    """The verdict on one compiled model."""
    from graphopt.artifact import load

    artifact, name = load(job.folder), job.label
    add("compile, TVM", name, "passed", compiled(artifact))
    verdict = artifact.report["numerics"]
    known: dict[str, Result] = {"passed": "passed", "failed": "failed"}
    where = " in emulation" if emulate else ""
    add(f"numerics, TVM{where}", name, known.get(verdict["status"], "not run"), verdict["reason"] or "as the reference")


def compiled(artifact: Artifact) -> str:
    """Rules, kernels, spilled registers, seconds and bytes of an artifact."""
    parts = [part for part in artifact.report["lowering"]["parts"] if part["runtime"] == "tvm"]
    rules: Counter[str] = sum((Counter(part.get("rules", {})) for part in parts), Counter())
    kernels = [kernel for part in parts for kernel in part.get("kernels", {}).values()]
    spilled = sum(kernel["spilled"] > 0 for kernel in kernels)
    megabytes = sum((artifact.path / part["file"]).stat().st_size for part in parts) / 1e6
    told = ", ".join(f"{count} {rule}" for rule, count in rules.most_common())
    return (
        f"{len(kernels)} kernels ({told}), {spilled} spill, {artifact.report['seconds']['lower']:.0f} s, "
        f"{megabytes:.1f} MB, {len(artifact.report['lowering']['parts'])} parts"
    )


def time_models(add: Add, jobs: Sequence[Job], seconds: float) -> None:
    """Median milliseconds of ours, ours again, ONNX Runtime's CUDA provider and torch.compile, taking turns.

    All runtimes of all models are opened first, at the same time: torch.compile takes long, and not on the GPU.
    """
    missing = first_gpu()
    if isinstance(missing, str):
        for job in jobs:
            add("latency, TVM", job.label, "not run", missing)
        return
    opened = {job: _workers(job) for job in jobs}
    say("opening runtimes ...")
    try:
        dead = {job: _first_dead(workers) for job, workers in opened.items()}
        for job, workers in opened.items():
            say(f"timing {job.label} ...")
            if not workers:
                add("latency, TVM", job.label, "not run", "the model has parts in ONNX Runtime")
            elif dead[job]:
                add("latency, TVM", job.label, "failed", dead[job])
            else:
                add("latency, TVM", job.label, "passed", _raced(workers, seconds))
    finally:
        for workers in opened.values():
            for worker in workers.values():
                worker.close()


def _workers(job: Job) -> dict[str, Worker]:
    """The runtimes that run a model here; none when TVM does not run all of it."""
    from benchmarks.latency import SHAPES, request
    from graphopt.artifact import load

    artifact = load(job.folder)
    if artifact.main.suffix != ".so":
        return {}
    stored = job.folder.with_suffix(".npz")
    np.savez(stored, **request(job.path, SHAPES.get(job.name, {})))
    out = {"ours": Worker("gpu", 0, artifact.main, stored), "ours again": Worker("gpu", 0, artifact.main, stored)}
    if "CUDAExecutionProvider" in _providers():
        out["ONNX Runtime"] = Worker("ort-gpu", 0, artifact.model if job.precision else job.path, stored)
    if job.name in COMPILED and _torch_has_cuda():
        out["torch.compile"] = Worker("torch-gpu-half" if job.precision else "torch-gpu", 0, Path(job.name), stored)
    return out


def _first_dead(workers: dict[str, Worker]) -> str:
    """Wait until all have run once; which one did not, '' when all did."""
    for name, worker in workers.items():
        try:
            worker.time(1)
        except RuntimeError as error:
            return f"{name}: {error}"
    return ""


def _raced(workers: dict[str, Worker], seconds: float) -> str:
    blocks = {who: np.array(times) for who, times in race(workers, seconds * len(workers)).items()}
    told = [f"{who} {1e3 * float(np.median(times)):.3f} ms" for who, times in blocks.items()]
    ours = blocks["ours"]
    told += [f"ours/{who} {float(np.median(ours / times)):.3f}" for who, times in blocks.items() if who != "ours"]
    return ", ".join(told)


def check_cases(every: int, emulate: bool) -> tuple[str, str, Result, str]:
    """A row about every so many node cases, on the GPU or in emulation."""
    from benchmarks.tvm_conformance import MIN_PASSED, measure

    check, name = "node cases, TVM", f"every {every}th node case" if every > 1 else "all node cases"
    missing = first_gpu()
    if isinstance(missing, str) and not emulate:
        return check, name, "not run", missing
    outcomes = list(measure(every, "emulated" if emulate else "cuda", processes()))
    counts = Counter(outcome.status for outcome in outcomes)
    bad = [f"{item.case}: {item.reason}" for item in outcomes if item.status not in ("passed", "refused")]
    taken = len(outcomes) - counts["refused"]
    right = counts["passed"] >= MIN_PASSED * taken and not counts["crashed"]
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return check, name, "passed" if right else "failed", "; ".join((told, *bad[:5]))


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _torch_has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
