"""Machines behind an RPC tracker of TVM: how many there are, and running libraries on one of them.

    machines(remote)                            # how many registered with the key
    with RemoteMachine(remote) as machine:
        runner = machine.load(Path("build/model.so"), settings)

The tracker speaks JSON; whoever may use it may run code on its machines, so it belongs into a network of one's own
(TVM's documentation says the same). Imports no TVM.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.target import Place, Runner
from graphopt.targets.child import Child
from graphopt.targets.tvm.interface import Interface
from graphopt.targets.tvm.plan import LIBRARY, read_plan
from graphopt.targets.tvm.settings import TvmSettings

if TYPE_CHECKING:
    from graphopt.target import Arrays, Feeds
    from graphopt.tuning import Remote

# tvm/rpc/base.py: what opens a connection to a tracker, and the request for a summary.
_MAGIC, _SUMMARY = 0x2F271, 6
_CONNECT_SECONDS = 5.0
_MOST_BYTES = 1 << 22
_RUN_SECONDS = 600.0


def machines(remote: Remote) -> int:
    """How many machines have registered with the key.

    Raises:
        GraphoptError: there is no tracker, or no machine with the key.
    """
    try:
        with socket.create_connection((remote.host, remote.port), _CONNECT_SECONDS) as tracker:
            tracker.sendall(struct.pack("<i", _MAGIC))
            if struct.unpack("<i", _receive(tracker, 4))[0] != _MAGIC:
                raise ValueError("it is none")
            request = json.dumps([_SUMMARY]).encode()
            tracker.sendall(struct.pack("<i", len(request)) + request)
            size = struct.unpack("<i", _receive(tracker, 4))[0]
            if not 0 < size <= _MOST_BYTES:
                raise ValueError("an answer of a strange size")
            servers = json.loads(_receive(tracker, size))[1]["server_info"]
            keys = [str(item["key"]).partition(":")[2] for item in servers]
    except (OSError, ValueError, LookupError, TypeError) as error:
        where = f"{remote.host}:{remote.port}"
        raise GraphoptError(
            f"--remote {where}: no RPC tracker answers there ({error}); start one with: python -m tvm.exec.rpc_tracker"
        ) from None
    count = keys.count(remote.key)
    if not count:
        there = f"; there are: {', '.join(sorted(set(keys)))}" if keys else ""
        raise GraphoptError(
            f"--key {remote.key}: no machine has registered with this key at {remote.host}:{remote.port}{there}; "
            f"start one with: python -m tvm.exec.rpc_server --tracker {remote.host}:{remote.port} --key {remote.key}"
        )
    return count


def _receive(tracker: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        more = tracker.recv(count - len(got))
        if not more:
            raise ValueError("it hung up")
        got += more
    return got


def as_json(remote: Remote) -> dict[str, Any]:
    """A request's words for where machines wait."""
    return {"host": remote.host, "port": remote.port, "key": remote.key}


class RemoteMachine(Place):
    """One machine, lent by the tracker until this is closed; libraries on it are run by one process."""

    def __init__(self, remote: Remote) -> None:
        """Raises GraphoptError when there is none."""
        machines(remote)
        self._child = Child("graphopt.targets.tvm.worker_remote", "TVM's client", f"the machine {remote}")
        try:
            self.ask("finding", {"op": "connect", **as_json(remote)})
        except BaseException:
            self._child.close()
            raise
        self._count = 0

    def ask(self, doing: str, header: dict[str, Any], values: Mapping[str, Any] | None = None) -> Any:
        return self._child.ask(doing, header, values, _RUN_SECONDS)

    def load(self, path: Path, settings: Mapping[str, Any] | None = None) -> Runner:
        """Open a compiled library there.

        Raises:
            GraphoptError: it is none, has other parts besides, or the machine refuses it.
        """
        if path.name != LIBRARY:
            raise GraphoptError(f"{path}: only models that are one library run on remote machines; compile it for tvm")
        self._count += 1
        return _RemoteRunner(self, path.parent, self._count, TvmSettings.from_json(settings or {}))

    def close(self) -> None:
        self._child.close()


class _RemoteRunner(Runner):
    """One library on a machine; closing it leaves the machine to the others."""

    def __init__(self, machine: RemoteMachine, folder: Path, number: int, settings: TvmSettings) -> None:
        plan = read_plan(folder)
        self.inputs, self.outputs = plan.required, plan.outputs
        self._interface, self._order = Interface(folder, plan), [spec.name for spec in plan.inputs]
        self._machine, self._folder, self._number = machine, folder, number
        self._bound: dict[str, Any] | None = None
        header = {"op": "load", "library": str(folder / LIBRARY), "threads": settings.threads}
        self._ask("loading", header)

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        feeds = self._interface.complete(feeds, outputs)
        self._bound = None
        values = self._ask("running", {"op": "run"}, self._ordered(feeds))[1]
        named = {spec.name: values[str(index)] for index, spec in enumerate(self.outputs)}
        return named if outputs is None else {name: named[name] for name in outputs}

    def with_taps(self, values: Sequence[str]) -> Runner:
        raise GraphoptError(f"{self._folder}: inner values are not looked at on remote machines")

    def time(self, feeds: Feeds, n: int) -> list[float]:
        feeds = self._interface.complete(feeds)
        bound = self._bound
        if bound is None or any(bound.get(name) is not value for name, value in feeds.items()):
            self._ask("binding feeds of", {"op": "bind"}, self._ordered(feeds))
            self._bound = dict(feeds)
        return list(self._ask("timing", {"op": "time", "n": n})[0]["seconds"])

    def close(self) -> None:
        if self._machine._child.alive:
            self._ask("closing", {"op": "unload"})

    def _ask(self, doing: str, header: dict[str, Any], values: Mapping[str, Any] | None = None) -> Any:
        return self._machine.ask(doing, {**header, "number": self._number}, values)

    def _ordered(self, feeds: Feeds) -> dict[str, Any]:
        """Values by the place of their input: the library knows no names."""
        return {str(index): feeds[name] for index, name in enumerate(self._order)}
