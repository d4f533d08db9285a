"""The warm processes that tuning works with: builders that compile choices, and runners that time them.

A choice that crashes or hangs one of them costs that process: it is an error that tells why, and the next request
starts another. Imports no TVM.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.targets.child import Child
from graphopt.targets.tvm.remote import as_json

if TYPE_CHECKING:
    from graphopt.targets.tvm.machine import Machine
    from graphopt.tuning import Remote

BUILDER = "graphopt.targets.tvm.tuning.worker_build"
MEASURER = "graphopt.targets.tvm.tuning.worker_measure"
REMOTE = "graphopt.targets.tvm.tuning.worker_remote"
START_SECONDS = 60.0
"""For a process to be ready: it imports TVM."""


class Warm:
    """A child that is started when it is asked, and again after it died."""

    def __init__(self, start: Callable[[], Child], limit: float) -> None:
        self._start, self._limit = start, limit
        self._child: Child | None = None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    def ask(self, doing: str, header: Mapping[str, Any], more: float = 0.0) -> dict[str, Any]:
        """As `Child.ask`, without values; `more` seconds than usual where the machine may be busy with imports."""
        if not self.alive:
            self.close()
            self._child = self._start()
            self._child.ask("starting", {"op": "ready"}, time_limit=START_SECONDS)
        assert self._child is not None
        return self._child.ask(doing, dict(header), time_limit=self._limit + more)[0]

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


@dataclass(frozen=True)
class Space:
    """A workload's untuned choice, the others by estimate, and the shapes of its input, bias and output."""

    default: list[Any]
    choices: list[list[Any]]
    shapes: list[list[int] | None]


@dataclass(frozen=True)
class Built:
    """A compiled choice: a folder with its library, and its weights in the order that it wants."""

    folder: Path

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Builder:
    """Compiles choices for a machine; each may take `limit` seconds."""

    def __init__(self, machine: Machine, folder: Path, limit: float, worker: str = BUILDER) -> None:
        self._machine, self._folder = machine.to_json(), folder
        self._warm = Warm(lambda: Child(worker, "TVM's compiler", "the candidate"), limit)

    def space(self, workload: str) -> Space:
        reply = self._warm.ask("listing", {"op": "space", "workload": workload, "machine": self._machine})
        return Space(reply["default"], reply["choices"], reply["shapes"])

    def base(self, workload: str, space: Space) -> Built:
        """The untuned choice, which is known to compile."""
        return self._build(workload, space.default, START_SECONDS)

    def build(self, workload: str, choice: Sequence[Any]) -> Built:
        """Raises GraphoptError when the choice cannot be compiled within the limit."""
        return self._build(workload, choice, 0.0)

    def _build(self, workload: str, choice: Sequence[Any], more: float) -> Built:
        built = Built(Path(tempfile.mkdtemp(dir=self._folder)))
        header = {"op": "build", "workload": workload, "choice": list(choice)}
        try:
            self._warm.ask("compiling", {**header, "machine": self._machine, "folder": str(built.folder)}, more)
        except GraphoptError:
            built.drop()
            raise
        return built

    def close(self) -> None:
        self._warm.close()


@dataclass(frozen=True)
class Measured:
    """Time over that of the untuned choice, its 95 % interval, and seconds."""

    ratio: float
    low: float
    high: float
    seconds: float


class RunnerLost(GraphoptError):
    """A runner cannot be reached any more, whatever it is given."""


class Runner:
    """Times choices of one workload after another, each against the untuned one.

    Args:
        start: makes the process.
        limit: seconds that a request may take.
        hello: the first request to a new process: where machines wait; None where it is this machine.
    """

    def __init__(self, start: Callable[[], Child], limit: float, hello: Mapping[str, Any] | None = None) -> None:
        self._warm, self._hello = Warm(start, limit), hello
        self._opened: dict[str, Any] | None = None

    def open(self, shapes: Sequence[Sequence[int] | None], base: Built, seconds: float) -> float:
        """Begin with a workload: the shapes of its values, and its untuned choice. Returns the seconds of that.

        Raises:
            GraphoptError: it cannot be run.
        """
        self._opened = None
        header = {"op": "open", "shapes": list(shapes), "seconds": seconds, "folder": str(base.folder)}
        found = self._begin(header)
        self._opened = header
        return found

    def measure(self, built: Built, seconds: float, hopeless: float) -> Measured:
        """Time a choice, briefly if it is `hopeless` times slower.

        Raises:
            GraphoptError: it crashed, took too long, or computes something else.
        """
        return Measured(*self._ask({"op": "try", "seconds": seconds, "hopeless": hopeless}, built)["ratio"])

    def confirm(self, built: Built, seconds: float) -> tuple[Measured, Measured]:
        """Time a choice, and the untuned one against itself.

        Raises:
            GraphoptError: as `measure`.
        """
        reply = self._ask({"op": "confirm", "seconds": seconds}, built)
        return Measured(*reply["ratio"]), Measured(*reply["again"])

    def close(self) -> None:
        self._warm.close()

    def _begin(self, header: dict[str, Any]) -> float:
        if self._hello is not None and not self._warm.alive:
            self._warm.ask("starting", self._hello)
        # A remote machine may have to be waited for.
        return float(self._answered(header, 0.0 if self._hello is None else START_SECONDS)["seconds"])

    def _ask(self, header: dict[str, Any], built: Built) -> dict[str, Any]:
        if self._opened is None:
            raise GraphoptError("no workload is open")
        if not self._warm.alive:  # it died on another choice
            self._begin(self._opened)
        return self._answered({**header, "folder": str(built.folder)})

    def _answered(self, header: dict[str, Any], more: float = 0.0) -> dict[str, Any]:
        reply = self._warm.ask("timing", header, more)
        if "lost" in reply:
            raise RunnerLost(reply["lost"])
        return reply


def remote_runner(remote: Remote, threads: int, limit: float) -> Runner:
    """A runner on whatever machines the tracker has for the key, one at a time."""
    hello = {"op": "connect", **as_json(remote), "threads": threads}
    return Runner(lambda: Child(REMOTE, "TVM's client", "the candidate"), limit, hello)


def local_runner(environment: Mapping[str, str], limit: float, worker: str = MEASURER) -> Runner:
    """A runner on this machine."""
    return Runner(lambda: Child(worker, "the candidate", "its function", environment=environment), limit)
