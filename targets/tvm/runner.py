"""A Runner of what the `tvm` target compiled: the parts of a plan in a child process (worker.py)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.target import Runner
from graphopt.targets.child import Child
from graphopt.targets.tvm.gpu.driver import why_not
from graphopt.targets.tvm.interface import Interface
from graphopt.targets.tvm.machine import foreign, missing_flags, of
from graphopt.targets.tvm.plan import MODEL, SOURCE, ExecutionPlan, read_plan
from graphopt.targets.tvm.settings import TvmSettings

if TYPE_CHECKING:
    from graphopt.target import Arrays, Feeds
    from graphopt.targets.tvm.target import Tvm


class TvmRunner(Runner):
    """One artifact. One request at a time; not for use from several threads at once."""

    def __init__(
        self,
        folder: Path,
        target: Tvm,
        settings: TvmSettings,
        *,
        time_limit: float | None = None,
        memory_limit: int | None = None,
    ) -> None:
        """Open the plan in `folder`.

        Raises:
            GraphoptError: no plan, code for a CPU with other instructions, or a part that its runtime refuses.
        """
        plan = read_plan(folder)
        if foreign(of(plan.isa)):
            raise GraphoptError(
                f"{folder}: the code is made for {plan.triple.partition('-')[0]}, and this machine is not"
            )
        lacking = missing_flags(plan.isa)
        if lacking:
            raise GraphoptError(
                f"{folder}: the code is made for {plan.isa}, and this CPU lacks {', '.join(lacking)}; "
                "compile it for this one: tvm{isa=auto}"
            )
        emulated = target.emulator == "cpu"
        missing = why_not(plan.arch) if plan.arch and not emulated else None
        if missing is not None:
            raise GraphoptError(f"{folder}: the code is made for {plan.arch}: {missing}")
        self.folder, self.inputs, self.outputs = folder, plan.required, plan.outputs
        self._interface = Interface(folder, plan)
        self._target, self._settings = target, settings
        self._limits: dict[str, Any] = {"time_limit": time_limit, "memory_limit": memory_limit}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._bound: dict[str, Any] | None = None
        self._child = Child(
            "graphopt.targets.tvm.worker",
            "TVM",
            folder,
            time_limit=time_limit,
            memory_limit=memory_limit,
            environment=settings.environment(),
        )
        try:
            with tempfile.TemporaryDirectory(prefix="graphopt-emulation-") as made:
                stand_ins = _emulation(plan, folder, Path(made)) if emulated else {}
                request = {"op": "load", "folder": str(folder), "threads": settings.threads, "emulation": stand_ins}
                header, _ = self._child.ask("loading", request)
        except BaseException:
            self._child.close()
            raise
        self.load_seconds: float = header["load_seconds"]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        from graphopt.targets.onnxruntime.wire import pack, unpack

        feeds = self._interface.complete(feeds, outputs)
        header = {"op": "run", "outputs": None if outputs is None else list(outputs)}
        results = self._child.ask("running", header, {name: pack(value) for name, value in feeds.items()})[1]
        return {name: unpack(value) for name, value in results.items()}

    def with_taps(self, values: Sequence[str]) -> Runner:
        """A new runner on a library that is compiled for it: inner values are no longer there in this one."""
        from graphopt.targets.onnxruntime.taps import write_tapped

        with tempfile.TemporaryDirectory(prefix="graphopt-taps-") as folder:
            scratch = compile_into(write_tapped(self.folder / MODEL, values, Path(folder)), self._target)
        return TvmRunner.in_scratch(scratch, self._target, self._settings, **self._limits)

    @classmethod
    def in_scratch(
        cls, scratch: tempfile.TemporaryDirectory[str], target: Tvm, settings: TvmSettings, **limits: Any
    ) -> TvmRunner:
        """A runner whose folder lives as long as it."""
        try:
            runner = cls(Path(scratch.name), target, settings, **limits)
        except BaseException:
            scratch.cleanup()
            raise
        runner._scratch = scratch
        return runner

    def time(self, feeds: Feeds, n: int) -> list[float]:
        """Seconds of each of `n` runs. Feeds are sent once, as long as the same arrays are given.

        Raises:
            GraphoptError: the feeds do not fit, or the kernels of a GPU are emulated.
        """
        if self._target.emulator == "cpu":
            raise GraphoptError(f"{self.folder}: times under an emulator say nothing; bench it on a machine with a GPU")
        from graphopt.targets.onnxruntime.wire import pack

        feeds = self._interface.complete(feeds)
        bound = self._bound
        if bound is None or bound.keys() != feeds.keys() or any(bound[name] is not feeds[name] for name in feeds):
            self._child.ask("binding feeds of", {"op": "bind"}, {name: pack(value) for name, value in feeds.items()})
            self._bound = dict(feeds)
        return list(self._child.ask("timing", {"op": "time", "n": n})[0]["seconds"])

    def memory(self) -> dict[str, int]:
        """Bytes of the process that holds the model: `rss`, `anonymous`, `peak_rss`, `data`."""
        return dict(self._child.ask("measuring", {"op": "memory"})[0]["memory"])

    def close(self) -> None:
        self._child.close()
        if self._scratch is not None:
            self._scratch.cleanup()


def _emulation(plan: ExecutionPlan, folder: Path, made: Path) -> dict[str, tuple[str, str]]:
    """What stands in for a GPU, by the file of a part: a runtime, and its kernels."""
    from graphopt.targets.tvm.gpu.emulation import compile_kernels, runtime_library

    if not plan.arch:
        raise GraphoptError(f"{folder}: the code is made for a CPU; emulator=cpu is for kernels of a GPU")
    runtime = str(runtime_library(plan.triple))
    names = [part.file for part in plan.parts if part.runtime == "tvm"]
    sources = {name: (folder / name).with_suffix(SOURCE) for name in names}
    return {name: (runtime, str(compile_kernels(path, made, plan.triple))) for name, path in sources.items()}


def compile_into(path: Path, target: Tvm) -> tempfile.TemporaryDirectory[str]:
    """Compile an ONNX file as it stands into a temporary folder.

    Nodes that TVM does not take go to ONNX Runtime only where the target says so.
    """
    from graphopt.frontends.onnx import load

    folder = tempfile.TemporaryDirectory(prefix="graphopt-tvm-")
    try:
        target.compile(load(path), Path(folder.name))
    except BaseException:
        folder.cleanup()
        raise
    return folder
