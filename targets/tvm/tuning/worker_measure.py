"""The child process that times choices on this machine: `python -m graphopt.targets.tvm.tuning.worker_measure`.

Requests: `ready`, `open` (a workload with what it is compared to), `try` (a choice against that) and `confirm` (the
same for longer, and the untuned function against itself). TVM's runtime is loaded, its compiler is not.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.targets.serving import serve
from graphopt.targets.tvm.library import aligned, first_line, with_runtime, without_torch
from graphopt.targets.tvm.tuning.bench import Limits, Ratio, race

# In a model the weights of a layer have left the near caches until they are used again: copies of them take turns.
_COLD_BYTES = 48 << 20
_MOST_COPIES = 32
LIBRARY, WEIGHTS = "candidate.so", "weights.npy"
"""A compiled choice: its function `main`, and the weights in the order that it wants."""
TOLERANCE = 1e-4
"""Largest difference of a choice from the untuned function, as a share of the largest value."""


@dataclass(frozen=True)
class Values:
    """What a function is called with besides its weights: input, bias (where it takes one), room for the output."""

    x: np.ndarray
    bias: np.ndarray | None
    out: np.ndarray

    @classmethod
    def of(cls, shapes: Sequence[Sequence[int] | None]) -> Values:
        """Values for the shapes of input, bias and output."""
        rng = np.random.default_rng(1)
        x, bias, out = (None if shape is None else rng.standard_normal(shape, "float32") for shape in shapes)
        assert x is not None and out is not None
        return cls(x, bias, out)


class Function:
    """A compiled choice on values of its workload."""

    def __init__(self, folder: Path, values: Values) -> None:
        """Raises GraphoptError when the runtime refuses the library."""
        ffi = with_runtime()
        try:
            self._call = ffi.load_module(str(folder / LIBRARY))["main"]
        except Exception as error:  # the runtime raises classes of its own
            raise GraphoptError(f"TVM cannot load it: {first_line(error)}") from error
        weights = np.load(folder / WEIGHTS, allow_pickle=False)
        constant = values.bias is not None
        copies = max(1, min(_MOST_COPIES, math.ceil(_COLD_BYTES / weights.nbytes))) if constant else 1
        self._out = aligned(values.out.copy())
        rest = [] if values.bias is None else [ffi.from_dlpack(aligned(values.bias))]
        x, out = ffi.from_dlpack(aligned(values.x)), ffi.from_dlpack(self._out)
        self._arguments = [(x, ffi.from_dlpack(aligned(weights.copy())), *rest, out) for _ in range(copies)]
        self._turn = 0

    def result(self) -> np.ndarray:
        self._call(*self._arguments[0])
        return self._out.copy()

    def time(self, n: int) -> list[float]:
        seconds = []
        for _ in range(n):
            arguments = self._arguments[self._turn]
            self._turn = (self._turn + 1) % len(self._arguments)
            start = time.perf_counter()
            self._call(*arguments)
            seconds.append(time.perf_counter() - start)
        return seconds


class Server:
    """Requests by their `op`."""

    def __init__(self) -> None:
        self._values: Values | None = None
        self._base: Function | None = None
        self._expected: np.ndarray | None = None

    def answer(self, request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the reply's header and values."""
        op = request["op"]
        if op == "ready":
            with_runtime()
            return {}, {}
        folder = Path(request["folder"])
        if op == "open":
            self._base = None
            self._values = Values.of(request["shapes"])
            self._base = Function(folder, self._values)
            self._expected = self._base.result()
            return {"seconds": race([self._base.time], Limits(request["seconds"]))[0].seconds}, {}
        if self._base is None or self._values is None or self._expected is None:
            raise GraphoptError("no workload is open")
        tried = Function(folder, self._values)
        check(tried.result(), self._expected)
        if op == "try":
            limits = Limits(request["seconds"], request["hopeless"])
            return {"ratio": as_row(race([self._base.time, tried.time], limits)[1])}, {}
        if op == "confirm":
            rows = race([self._base.time, self._base.time, tried.time], Limits(request["seconds"]))
            return {"again": as_row(rows[1]), "ratio": as_row(rows[2])}, {}
        raise GraphoptError(f"the worker has no request {op!r}")


def as_row(ratio: Ratio) -> list[float]:
    """A reply's words for a measurement."""
    return [ratio.value, ratio.low, ratio.high, ratio.seconds]


def check(result: np.ndarray, expected: np.ndarray) -> None:
    """Compare a choice's output with that of the untuned function.

    Raises:
        GraphoptError: they differ.
    """
    off = float(np.abs(result - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
    if not off <= TOLERANCE:
        raise GraphoptError(f"its output is {off:.1e} of the largest value away from that of the untuned function")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent: no candidate is to blame for it
    without_torch()
    sys.exit(serve(Server().answer))
