"""A Runner of what the `tvm` target compiled: the parts of a plan in a child process (worker.py)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.target import Runner
from graphopt.targets.child import Child
from graphopt.targets.tvm.machine import missing_flags
from graphopt.targets.tvm.plan import MODEL, read_plan
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
        lacking = missing_flags(plan.isa)
        if lacking:
            raise GraphoptError(
                f"{folder}: the code is made for {plan.isa}, and this CPU lacks {', '.join(lacking)}; "
                "compile it for this one: tvm{isa=auto}"
            )
        self.folder, self.inputs, self.outputs = folder, plan.inputs, plan.outputs
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
            header, _ = self._child.ask("loading", {"op": "load", "folder": str(folder), "threads": settings.threads})
        except BaseException:
            self._child.close()
            raise
        self.load_seconds: float = header["load_seconds"]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        self._check(feeds, outputs)
        header = {"op": "run", "outputs": None if outputs is None else list(outputs)}
        return self._child.ask("running", header, feeds)[1]

    def with_taps(self, values: Sequence[str]) -> Runner:
        """A new runner on a library that is compiled for it: inner values are no longer there in this one."""
        from graphopt.targets.onnxruntime.taps import write_tapped

        with tempfile.TemporaryDirectory(prefix="graphopt-taps-") as folder:
            tapped = write_tapped(self.folder / MODEL, values, Path(folder))
            return compile_and_open(tapped, self._target, self._settings, **self._limits)

    def time(self, feeds: Feeds, n: int) -> list[float]:
        """Seconds of each of `n` runs. Feeds are sent once, as long as the same arrays are given."""
        self._check(feeds, None)
        bound = self._bound
        if bound is None or bound.keys() != feeds.keys() or any(bound[name] is not feeds[name] for name in feeds):
            self._child.ask("binding feeds of", {"op": "bind"}, feeds)
            self._bound = dict(feeds)
        return list(self._child.ask("timing", {"op": "time", "n": n})[0]["seconds"])

    def memory(self) -> dict[str, int]:
        """Bytes of the process that holds the model: `rss`, `anonymous`, `peak_rss`, `data`."""
        return dict(self._child.ask("measuring", {"op": "memory"})[0]["memory"])

    def close(self) -> None:
        self._child.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _check(self, feeds: Feeds, outputs: Sequence[str] | None) -> None:
        """Names, element types and ranks: generated code reads what it is given without looking."""
        import numpy as np

        known = {spec.name: spec for spec in self.inputs}
        for name, value in feeds.items():
            if name not in known:
                raise GraphoptError(f"the model has no input {name!r}{did_you_mean(name, known)}")
            spec = known[name]
            array = np.asarray(value)
            if _type_text(array.dtype) != spec.type:
                raise GraphoptError(f"input {name!r} is {spec.type}, the feed is {_type_text(array.dtype)}")
            if spec.shape is not None and not _fits(array.shape, spec.shape):
                raise GraphoptError(f"input {name!r} is {list(spec.shape)}, the feed is {list(array.shape)}")
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        if missing:
            raise GraphoptError(f"no value is given for input {missing[0]!r}")
        there = [spec.name for spec in self.outputs]
        for name in outputs or ():
            if name not in there:
                raise GraphoptError(f"the model has no output {name!r}{did_you_mean(name, there)}")


def compile_and_open(
    path: Path,
    target: Tvm,
    settings: TvmSettings,
    *,
    time_limit: float | None = None,
    memory_limit: int | None = None,
) -> TvmRunner:
    """A runner of an ONNX file: compiled as it stands, into a folder that lives as long as the runner.

    Nodes that TVM does not take go to ONNX Runtime only where the target says so.
    """
    from graphopt.frontends.onnx import load

    folder = tempfile.TemporaryDirectory(prefix="graphopt-tvm-")
    try:
        target.compile(load(path), Path(folder.name))
        runner = TvmRunner(Path(folder.name), target, settings, time_limit=time_limit, memory_limit=memory_limit)
    except BaseException:
        folder.cleanup()
        raise
    runner._scratch = folder
    return runner


def _fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(dim, int) or dim == size for size, dim in zip(shape, wanted, strict=True)
    )


_TYPES = {"float32": "float", "float64": "double"}


def _type_text(dtype: Any) -> str:
    """ONNX's type text of a tensor."""
    return f"tensor({_TYPES.get(dtype.name, dtype.name)})"
