"""The child process that compiles: `python -m graphopt.targets.tvm.worker_compile`, one request, then it ends.

A compiler that crashes or hangs takes this process down, not graphopt; and TVM's import is paid here only.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.targets.onnxruntime.wire import Channel, WireClosed
from graphopt.targets.onnxruntime.worker import end_with_parent
from graphopt.targets.tvm.library import first_line, without_torch


def main() -> int:
    """Answer one request: compile ONNX files to libraries."""
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a compiler prints must not end up between two messages
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    without_torch()
    channel = Channel(os.dup(0), replies)
    try:
        request, _ = channel.receive()
        channel.send(_answer(request))
    except WireClosed:
        return 0
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return compile_file(Path(request["model"]), Path(request["library"]), request["machine"])
    except GraphoptError as error:
        return {"error": str(error)}
    except Exception as error:  # TVM raises classes of its own; all mean that it could not compile
        if os.environ.get("GRAPHOPT_DEBUG"):
            import traceback

            traceback.print_exc()
        return {"error": f"TVM cannot compile {request['model']}: {type(error).__name__}: {first_line(error)}"}


def compile_file(model: Path, library: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Compile one ONNX file; return the seconds that each step took, and whose schedules it has."""
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
    reason = build(module, where, library, scheduled)
    end = time.perf_counter()
    seconds = {"import": imported - start, "lower": lowered - imported, "build": end - lowered}
    return {"seconds": seconds, "not_scheduled": reason}


if __name__ == "__main__":
    sys.exit(main())
