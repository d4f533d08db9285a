"""What gpu_check checks of `tvm{device=cuda}`: models and node cases compiled, right, and how long they take.

Without a GPU models are compiled; with `emulate` their kernels run on this machine's CPU, which proves what they
compute and says nothing of speed.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from benchmarks.gpu_jobs import Job, processes
from graphopt.errors import GraphoptError
from graphopt.targets.tvm.gpu.driver import first_gpu
from graphopt.targets.tvm.target import Arch

if TYPE_CHECKING:
    from graphopt.artifact import Artifact

Result = Literal["passed", "failed", "not run"]
Add = Callable[[str, str, Result, str], None]
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


def check_model(add: Add, job: Job, seconds: float, emulate: bool) -> None:
    """Of one compiled model: its verdict, and on a GPU how long it takes."""
    from benchmarks.latency import SHAPES, request
    from graphopt.artifact import load

    artifact, name = load(job.folder), job.label
    add("compile, TVM", name, "passed", compiled(artifact))
    verdict = artifact.report["numerics"]
    known: dict[str, Result] = {"passed": "passed", "failed": "failed"}
    where = " in emulation" if emulate else ""
    add(f"numerics, TVM{where}", name, known.get(verdict["status"], "not run"), verdict["reason"] or "as the reference")
    missing = first_gpu()
    if isinstance(missing, str):
        add("latency, TVM", name, "not run", missing)
        return
    try:
        add("latency, TVM", name, *latency(job, artifact, request(job.path, SHAPES.get(job.name, {})), seconds))
    except (GraphoptError, RuntimeError) as error:
        add("latency, TVM", name, "failed", str(error))


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


def latency(job: Job, artifact: Artifact, feeds: dict[str, Any], seconds: float) -> tuple[Result, str]:
    """Median milliseconds of ours, ours again, ONNX Runtime's CUDA provider and torch.compile, taking turns."""
    from benchmarks.tvm_worker import Worker, race
    from graphopt.models.registry import MODELS

    if artifact.main.suffix != ".so":
        return "not run", "the model has parts in ONNX Runtime"
    stored = job.folder.with_suffix(".npz")
    np.savez(stored, **feeds)
    workers = {"ours": Worker("gpu", 0, artifact.main, stored), "ours again": Worker("gpu", 0, artifact.main, stored)}
    if "CUDAExecutionProvider" in _providers():
        workers["ONNX Runtime"] = Worker("ort-gpu", 0, artifact.model if job.precision else job.path, stored)
    if _torch_has_cuda() and job.name in MODELS and MODELS[job.name].kind == "built":
        workers["torch.compile"] = Worker("torch-gpu-half" if job.precision else "torch-gpu", 0, Path(job.name), stored)
    try:
        blocks = race(workers, seconds * len(workers))
    finally:
        for worker in workers.values():
            worker.close()
    told = [f"{who} {1e3 * float(np.median(times)):.3f} ms" for who, times in blocks.items()]
    ours = np.array(blocks["ours"])
    told += [
        f"ours/{who} {float(np.median(ours / np.array(times))):.3f}" for who, times in blocks.items() if who != "ours"
    ]
    return "passed", ", ".join(told)


def check_cases(add: Add, every: int, emulate: bool) -> None:
    """Every so many node cases, on the GPU or in emulation."""
    from benchmarks.tvm_conformance import MIN_PASSED, measure

    name = f"every {every}th node case" if every > 1 else "all node cases"
    missing = first_gpu()
    if isinstance(missing, str) and not emulate:
        add("node cases, TVM", name, "not run", missing)
        return
    outcomes = list(measure(every, "emulated" if emulate else "cuda", processes()))
    counts = Counter(outcome.status for outcome in outcomes)
    bad = [f"{item.case}: {item.reason}" for item in outcomes if item.status not in ("passed", "refused")]
    taken = len(outcomes) - counts["refused"]
    right = counts["passed"] >= MIN_PASSED * taken and not counts["crashed"]
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    add("node cases, TVM", name, "passed" if right else "failed", "; ".join((told, *bad[:5])))


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _torch_has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
