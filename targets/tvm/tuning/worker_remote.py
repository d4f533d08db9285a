"""The child process that times choices on remote machines: `python -m graphopt.targets.tvm.tuning.worker_remote`.

The requests are those of worker_measure.py, and `connect`. Each workload gets a session of its own from the tracker, so
machines are shared with others. A machine that fails is left, and what it was doing is done once more on another; when
no machine is left, the answer says `lost`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.targets.serving import serve
from graphopt.targets.tvm.library import first_line, without_torch
from graphopt.targets.tvm.remote import machines
from graphopt.targets.tvm.tuning.bench import Limits, race
from graphopt.targets.tvm.tuning.worker_measure import LIBRARY, WEIGHTS, Values, as_row, check
from graphopt.targets.tvm.worker_remote import session, use_threads
from graphopt.tuning import Remote

SESSION_SECONDS = 120
"""The machine ends a session that lasts longer: a function that hangs must not keep it."""
# In a model the weights of a layer have left the near caches until they are used again.
_FLUSH = "cache_flush_cpu_non_first_arg"


class Function:
    """A compiled choice on a machine, with values of its workload."""

    def __init__(self, opened: Any, number: int, folder: Path, values: Values) -> None:
        import tvm

        opened.upload(str(folder / LIBRARY), f"candidate{number}.so")
        self._module, self._device = opened.load_module(f"candidate{number}.so"), opened.cpu()
        weights = np.load(folder / WEIGHTS, allow_pickle=False)
        rest = [] if values.bias is None else [values.bias]
        self._flush = _FLUSH if values.bias is not None else ""
        arrays = [values.x, weights, *rest, values.out]
        self._arguments = [tvm.runtime.tensor(array, self._device) for array in arrays]

    def result(self) -> np.ndarray:
        self._module["main"](*self._arguments)
        return self._arguments[-1].numpy()

    def time(self, n: int) -> list[float]:
        evaluate = self._module.time_evaluator("main", self._device, number=1, repeat=n, f_preproc=self._flush)
        return [float(seconds) for seconds in evaluate(*self._arguments).results]


class _Lost(Exception):
    """No machine is left."""


class Server:
    """Requests by their `op`."""

    def __init__(self) -> None:
        self._where: dict[str, Any] = {}
        self._opened: dict[str, Any] = {}
        self._session: Any = None
        self._base: Function | None = None
        self._values: Values | None = None
        self._expected: np.ndarray | None = None
        self._count = 0

    def answer(self, request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the reply's header."""
        op = request["op"]
        if op == "ready":
            import tvm.rpc  # noqa: F401

            return {}, {}
        if op == "connect":
            self._where = request
            return {}, {}
        try:
            if op == "open":
                self._opened = request
                return {
                    "seconds": self._twice(lambda: race([self._begin().time], Limits(request["seconds"])))[0].seconds
                }, {}
            return self._twice(lambda: self._compare(request)), {}
        except _Lost as error:
            return {"lost": str(error)}, {}

    def _begin(self) -> Function:
        """A session, and the untuned choice on it."""
        self._leave()
        try:
            machines(Remote(self._where["host"], self._where["port"], self._where["key"]))
            self._session = session(self._where, SESSION_SECONDS)
        except Exception as error:
            raise _Lost(first_line(error)) from error
        use_threads(self._session, self._where["threads"])
        self._values = Values.of(self._opened["shapes"])
        base = self._function(self._opened["folder"])
        self._expected = base.result()
        self._base = base
        return base

    def _leave(self) -> None:
        """Give the machine back."""
        self._base = self._session = None

    def _function(self, folder: str) -> Function:
        assert self._values is not None
        self._count += 1
        return Function(self._session, self._count, Path(folder), self._values)

    def _compare(self, request: dict[str, Any]) -> dict[str, Any]:
        base = self._base or self._begin()
        assert self._expected is not None
        tried = self._function(request["folder"])
        check(tried.result(), self._expected)
        if request["op"] == "try":
            limits = Limits(request["seconds"], request["hopeless"])
            return {"ratio": as_row(race([base.time, tried.time], limits)[1])}
        rows = race([base.time, base.time, tried.time], Limits(request["seconds"]))
        return {"again": as_row(rows[1]), "ratio": as_row(rows[2])}

    def _twice(self, do: Callable[[], Any]) -> Any:
        """Do it, and once more on another machine if this one fails.

        Raises:
            GraphoptError: it failed on both, or what was tried computes something else.
        """
        try:
            return do()
        except (GraphoptError, _Lost):
            raise
        except Exception:  # TVM raises classes of its own
            self._leave()
        try:
            return do()
        except (GraphoptError, _Lost):
            raise
        except Exception as error:
            self._leave()
            raise GraphoptError(f"it failed on two machines: {first_line(error)}") from error


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent: no candidate is to blame for it
    without_torch()
    sys.exit(serve(Server().answer))
