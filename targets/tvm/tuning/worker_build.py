"""The child process that compiles choices: `python -m graphopt.targets.tvm.tuning.worker_build`.

It stays warm: TVM is imported once. Requests: `ready`, `space` (the choices of a workload) and `build` (one of them).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.targets.serving import serve
from graphopt.targets.tvm.cpu.choices import Choice, Workload
from graphopt.targets.tvm.library import first_line, without_torch
from graphopt.targets.tvm.machine import Machine


def answer(request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the reply's header and values.

    Raises:
        GraphoptError: TVM refuses the choice, or a compiler is missing.
    """
    try:
        return _answer(request), {}
    except GraphoptError:
        raise
    except Exception as error:  # TVM raises classes of its own; all mean that it could not compile
        raise GraphoptError(f"TVM refused it: {type(error).__name__}: {first_line(error)}") from error


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from graphopt.targets.tvm.tuning.kernel import build, shapes
    from graphopt.targets.tvm.tuning.space import space

    op = request["op"]
    if op == "ready":
        return {}
    workload, machine = Workload.parse(request["workload"]), Machine.from_json(request["machine"])
    if op == "space":
        default, choices = space(workload, machine)
        listed = [choice.to_json() for choice in choices]
        return {"default": default.to_json(), "choices": listed, "shapes": shapes(workload)}
    if op == "build":
        build(workload, Choice.from_json(request["choice"]), machine, Path(request["folder"]))
        return {}
    raise GraphoptError(f"the worker has no request {op!r}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent: no candidate is to blame for it
    without_torch()
    sys.exit(serve(answer))
