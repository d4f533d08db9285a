"""The child process that runs an artifact of the `tvm` target: `python -m graphopt.targets.tvm.worker`.

It answers requests on its standard input until that closes: load, run, bind, time, memory. Imports numpy and the
runtimes of the parts only.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.targets.onnxruntime.session import Session, memory
from graphopt.targets.onnxruntime.settings import SessionSettings
from graphopt.targets.serving import serve
from graphopt.targets.tvm.library import Emulation, Library, without_torch
from graphopt.targets.tvm.plan import Part, read_plan


class Server:
    """Requests by their `op`."""

    def __init__(self) -> None:
        self._model: _Model | None = None

    def answer(self, request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the reply's header and values."""
        op = request["op"]
        if op == "load":
            start = time.perf_counter()
            self._model = _Model(Path(request["folder"]), request["threads"], request["emulation"])
            return {"load_seconds": time.perf_counter() - start, "memory": memory()}, {}
        if op == "memory":
            return {"memory": memory()}, {}
        if self._model is None:
            raise GraphoptError("no model is loaded")
        if op == "run":
            return {}, self._model.run(values, request["outputs"])
        if op == "bind":
            self._model.bind(values)
            return {}, {}
        if op == "time":
            return {"seconds": self._model.time(request["n"])}, {}
        raise GraphoptError(f"the worker has no request {op!r}")


class _Model:
    """The parts of a plan, open."""

    def __init__(self, folder: Path, threads: int, emulation: dict[str, list[str]]) -> None:
        self._plan = read_plan(folder)
        self._parts = [(part, self._open(folder, part, threads, emulation)) for part in self._plan.parts]
        self._bound: dict[str, Any] = {}
        self._tensors: list[Any] | None = None

    def run(self, feeds: dict[str, Any], outputs: list[str] | None) -> dict[str, np.ndarray]:
        values = dict(feeds)
        for part, opened in self._parts:
            if isinstance(opened, Library):
                made = opened.run([np.asarray(values[name]) for name in part.inputs])
                values.update(zip(part.outputs, made, strict=True))
            else:
                values.update(opened.run({name: values[name] for name in part.inputs}, list(part.outputs)))
        names = outputs if outputs is not None else [spec.name for spec in self._plan.outputs]
        return {name: values[name] for name in names}

    def bind(self, feeds: dict[str, Any]) -> None:
        """Keep feeds for timing; a library that is all of the model gets them as tensors, without copies by run."""
        self._bound, self._tensors = feeds, None
        if len(self._parts) == 1 and isinstance(self._parts[0][1], Library):
            part, library = self._parts[0]
            self._tensors = [library.tensor(np.asarray(feeds[name])) for name in part.inputs]

    def time(self, n: int) -> list[float]:
        seconds = []
        for _ in range(n):
            start = time.perf_counter()
            if self._tensors is not None:
                self._parts[0][1].run_tensors(self._tensors)
            else:
                self.run(self._bound, None)
            seconds.append(time.perf_counter() - start)
        return seconds

    def _open(self, folder: Path, part: Part, threads: int, emulation: dict[str, list[str]]) -> Any:
        if part.runtime == "onnxruntime":
            return Session(folder / part.file, SessionSettings(threads=threads, force_spinning_stop=True))
        stand_in = Emulation(*emulation[part.file]) if part.file in emulation else None
        return Library(folder / part.file, stand_in or bool(self._plan.arch))


if __name__ == "__main__":
    without_torch()
    sys.exit(serve(Server().answer))
