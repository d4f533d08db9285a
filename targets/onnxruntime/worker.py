"""The child process that holds one ONNX Runtime session: `python -m graphopt.targets.onnxruntime.worker`.

It answers requests on its standard input until that closes. A model that crashes, hangs or eats memory takes
this process down, not graphopt. Imports numpy and ONNX Runtime only.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.targets.onnxruntime.observer import Observer
from graphopt.targets.onnxruntime.session import Session, memory
from graphopt.targets.onnxruntime.settings import SessionSettings
from graphopt.targets.serving import serve


class Server:
    """Requests by their `op`: load, run, sizes, observe, statistics, bind, time, profile, memory."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._observer: Observer | None = None

    def answer(self, request: dict[str, Any], values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the reply's header and values."""
        op = request["op"]
        if op == "load":
            return self._load(request), {}
        if op == "memory":
            return {"memory": memory()}, {}
        session = self._session
        if session is None:
            raise GraphoptError("no model is loaded")
        if op == "run":
            return {}, session.run(values, request["outputs"])
        if op == "observe":
            if self._observer is None:
                self._observer = Observer(session, request["abreast"])
            self._observer.observe(values, request["names"])
            return {}, {}
        if op == "sizes":
            results = session.run(values, request["names"])
            return {"sizes": {name: results[name].nbytes for name in request["names"]}}, {}
        if op == "statistics":
            observer, self._observer = self._observer, None
            headers, counts = observer.finish() if observer is not None else ({}, {})
            return {"statistics": headers}, counts
        if op == "bind":
            session.bind(values)
            return {}, {}
        if op == "time":
            return {"seconds": session.time(request["n"])}, {}
        if op == "profile":
            return {"profile": session.end_profile()}, {}
        raise GraphoptError(f"the worker has no request {op!r}")

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        limit = request["data_limit"]
        if limit is not None:
            # Private writable mappings count, and ONNX Runtime maps weight files that way: the caller adds their size
            # and watches the anonymous pages. RLIMIT_AS would also count address space that is only reserved.
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        extras = {key: Path(request[key]) for key in ("optimized", "profile") if request[key] is not None}
        session = Session(Path(request["path"]), SessionSettings.from_json(request["settings"]), **extras)
        self._session = session
        return {
            "inputs": [[spec.name, spec.type, spec.shape] for spec in session.inputs],
            "outputs": [[spec.name, spec.type, spec.shape] for spec in session.outputs],
            "providers": session.providers,
            "load_seconds": session.load_seconds,
            "memory": memory(),
        }


if __name__ == "__main__":
    sys.exit(serve(Server().answer))
