"""A builder of candidates with faults planted into some: `python -m tvm_planted_builder`, its behaviour by choice.

Choices with register tiles of seven vectors crash, those of eight hang; all others are built as usual.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from graphopt.targets.serving import serve
from graphopt.targets.tvm.library import without_torch
from graphopt.targets.tvm.tuning import worker_build


def answer(request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if request["op"] == "build":
        vectors = request["choice"][3]
        if vectors == 7:
            os.kill(os.getpid(), signal.SIGSEGV)
        if vectors == 8:
            time.sleep(600)
    return worker_build.answer(request, values)


if __name__ == "__main__":
    without_torch()
    sys.exit(serve(answer))
