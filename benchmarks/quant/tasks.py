"""The list of evaluation tasks, and how one gets its files.

    python -m benchmarks.quant.tasks [NAME ...]     makes tasks and prints the float model's metric

Tasks lie in the user's cache folder, beside the zoo's models.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from pathlib import Path

from benchmarks.figure import say
from benchmarks.quant.sources import data_root
from benchmarks.quant.task import Run, Spec, Task
from graphopt.models.cache import place

_MODULES = ("fashion", "text", "filetypes", "ocr", "photos")


def specs() -> dict[str, Spec]:
    """Every task by name."""
    modules = [import_module(f"benchmarks.quant.{name}") for name in _MODULES]
    return {spec.name: spec for module in modules for spec in module.SPECS}


def load(name: str) -> Task:
    """The task of that name, whose files are made on first use.

    Raises:
        SystemExit: there is no such task.
    """
    there = specs()
    if name not in there:
        raise SystemExit(f"no such task: {name}; there are: {', '.join(there)}")
    spec = there[name]
    folder = data_root() / "tasks" / f"{name}-{spec.version}"
    if not folder.exists():
        say(f"building the task {name} ...")
        start = time.perf_counter()
        place(folder, lambda made: _build(spec, made))
        say(f"  {time.perf_counter() - start:.0f} s")
    return Task(spec, folder)


def _build(spec: Spec, folder: Path) -> None:
    folder.mkdir()
    spec.build(folder)


def open_float(task: Task, threads: int = 2) -> Run:
    """The task's float model in ONNX Runtime, as a callable."""
    return open_file(str(task.model), threads)


def open_file(path: str, threads: int = 2) -> Run:
    """An ONNX file in ONNX Runtime on the CPU with its default optimizations, in this process."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description="Build evaluation tasks and print the float model's metric.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks; all when none is given")
    options = parser.parse_args()
    for name in options.names or specs():
        task = load(name)
        start = time.perf_counter()
        for metric, values in task.scores(open_float(task)).items():
            print(f"{name:20} {metric:20} {values.mean():.4f} of {len(values)} samples  {task.folder}")
        say(f"  scored in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
