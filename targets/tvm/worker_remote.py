"""The child process that runs libraries on a remote machine: `python -m graphopt.targets.tvm.worker_remote`.

It answers requests on its standard input: connect, load, run, bind, time, unload. Not here: who asks (remote.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.targets.serving import serve
from graphopt.targets.tvm.library import first_line, without_torch

SESSION_SECONDS = 3600
"""The machine ends a session that lasts longer."""


def session(request: dict[str, Any], seconds: float) -> Any:
    """A session on the next machine that the tracker has for a key; it waits until one is free.

    Raises:
        Exception: of TVM's, when there is none.
    """
    import tvm.rpc

    tracker = tvm.rpc.connect_tracker(request["host"], request["port"])
    return tracker.request(request["key"], session_timeout=seconds)


def use_threads(opened: Any, threads: int) -> None:
    """Have the machine divide work among so many threads; 0 leaves it to the machine."""
    if threads:
        opened.get_function("runtime.config_threadpool")(1, threads)


class _Model:
    """One library on the machine."""

    def __init__(self, opened: Any, number: int, library: Path) -> None:
        from tvm import relax

        opened.upload(str(library), f"model{number}.so")
        self._device = opened.cpu()
        self._machine = relax.VirtualMachine(opened.load_module(f"model{number}.so"), self._device)

    def bind(self, values: dict[str, Any]) -> None:
        import tvm

        ordered = [values[str(index)] for index in range(len(values))]
        self._machine.set_input("main", *(tvm.runtime.tensor(value, self._device) for value in ordered))

    def run(self) -> dict[str, Any]:
        self._machine.invoke_stateful("main")
        found = self._machine.get_outputs("main")
        outputs = [found] if hasattr(found, "numpy") else list(found)
        return {str(index): output.numpy() for index, output in enumerate(outputs)}

    def time(self, n: int) -> list[float]:
        evaluate = self._machine.time_evaluator("invoke_stateful", self._device, number=1, repeat=n)
        return [float(seconds) for seconds in evaluate("main").results]


class Server:
    """Requests by their `op`."""

    def __init__(self) -> None:
        self._session: Any = None
        self._models: dict[int, _Model] = {}

    def answer(self, request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the reply's header and values.

        Raises:
            GraphoptError: the machine refused, or it is gone.
        """
        try:
            return self._answer(request, values)
        except Exception as error:  # TVM raises classes of its own
            raise GraphoptError(f"the remote machine failed: {first_line(error)}") from error

    def _answer(self, request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        op = request["op"]
        if op == "connect":
            self._session = session(request, SESSION_SECONDS)
            return {}, {}
        number = request["number"]
        if op == "load":
            use_threads(self._session, request["threads"])
            self._models[number] = _Model(self._session, number, Path(request["library"]))
            return {}, {}
        if op == "unload":
            self._models.pop(number, None)
            return {}, {}
        model = self._models[number]
        if op == "time":
            return {"seconds": model.time(request["n"])}, {}
        model.bind(values)
        return {}, model.run() if op == "run" else {}


if __name__ == "__main__":
    without_torch()
    sys.exit(serve(Server().answer))
