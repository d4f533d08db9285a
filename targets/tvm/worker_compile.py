"""The child process that compiles: `python -m graphopt.targets.tvm.worker_compile`.

A compiler that crashes or hangs takes this process down, not graphopt; and TVM's import is paid here only.
"""

from __future__ import annotations

import sys
import time
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
        return compile_file(Path(request["model"]), Path(request["library"]), request["machine"]), {}
    except GraphoptError:
        raise
    except Exception as error:  # TVM raises classes of its own; all mean that it could not compile
        name = type(error).__name__
        raise GraphoptError(f"TVM cannot compile {request['model']}: {name}: {first_line(error)}") from error


def compile_file(model: Path, library: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Compile one ONNX file; return the seconds that each step took, and what `build` tells."""
    from graphopt.frontends.onnx import load
    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.lowering.graph import lower
    from graphopt.targets.tvm.machine import Machine

    start = time.perf_counter()
    import tvm  # noqa: F401

    imported = time.perf_counter()
    module = lower(load(model))
    lowered = time.perf_counter()
    where = Machine(**{**machine, "mattr": tuple(machine["mattr"])})
    built = build(module, where, library, scheduled)
    end = time.perf_counter()
    seconds = {"import": imported - start, "lower": lowered - imported, "build": end - lowered}
    return {"seconds": seconds, "not_scheduled": built.not_scheduled, "notes": built.notes}


if __name__ == "__main__":
    without_torch()
    sys.exit(serve(answer))
