"""The child process that compiles: `python -m graphopt.targets.tvm.worker_compile`.

A compiler that crashes or hangs takes this process down, not graphopt; and TVM's import is paid here only.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.targets.serving import serve
from graphopt.targets.tvm.library import first_line, without_torch


def answer(request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compile an ONNX file to a library.

    Raises:
        GraphoptError: TVM refuses the model, or a compiler is missing.
    """
    try:
        return _compile(request), {}
    except GraphoptError:
        raise
    except Exception as error:  # TVM raises classes of its own; all mean that it could not compile
        name = type(error).__name__
        raise GraphoptError(f"TVM cannot compile {request['model']}: {name}: {first_line(error)}") from error


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one ONNX file.

    Returns:
        The seconds that each step took, how often each workload occurs, and what is told of the library (Built).
    """
    from graphopt.frontends.onnx import load
    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.cpu.choices import Choice, Workload
    from graphopt.targets.tvm.lowering.graph import lower
    from graphopt.targets.tvm.machine import Machine

    start = time.perf_counter()
    import tvm  # noqa: F401

    imported = time.perf_counter()
    module = lower(load(Path(request["model"])))
    lowered = time.perf_counter()
    choices = {text: Choice.from_json(choice) for text, choice in request["choices"].items()}
    workloads: Counter[str] = Counter()

    def pick(workload: Workload) -> Choice | None:
        workloads[str(workload)] += 1
        return choices.get(str(workload))

    schedule = functools.partial(scheduled, pick=pick)
    told = build(module, Machine.from_json(request["machine"]), Path(request["library"]), schedule)
    end = time.perf_counter()
    seconds = {"import": imported - start, "lower": lowered - imported, "build": end - lowered}
    return {"seconds": seconds, "workloads": dict(workloads), **dataclasses.asdict(told)}


if __name__ == "__main__":
    without_torch()
    sys.exit(serve(answer))
