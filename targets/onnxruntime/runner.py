"""Runners: a model in a child process with limits (`OrtRunner`), or in this process (`InProcessRunner`).

    with open_runner(path, SessionSettings(), time_limit=60, memory_limit=4 << 30) as runner:
        outputs = runner.run(feeds)                  # {name: array}; None outputs of optional type, lists for sequences
        inner = runner.with_taps(["hidden"])         # same interface, then the named inner values
        seconds = runner.time(feeds, n=20)
        runner.load_seconds, runner.memory()["peak_rss"]

A crash, hang or out-of-memory of the runtime is one GraphoptError that names it; the runner is closed then.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, MissingDependency, did_you_mean
from graphopt.numerics import RunSetting
from graphopt.target import Runner, TensorSpec, bytes_in
from graphopt.targets.child import Child
from graphopt.targets.onnxruntime.settings import OptimizationLevel, SessionSettings

if TYPE_CHECKING:
    from graphopt.quantization.statistics import TensorStats
    from graphopt.target import Arrays, Feeds

# Where external data is looked for when it does not lie beside the model file.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_WORKER = "graphopt.targets.onnxruntime.worker"


def open_runner(
    path: Path,
    settings: SessionSettings | None = None,
    *,
    isolate: bool = True,
    time_limit: float | None = None,
    memory_limit: int | None = None,
) -> OrtRunner | InProcessRunner:
    """Open an ONNX file for running.

    Args:
        path: the model; external data lies beside it.
        settings: session options; None for the runtime's defaults.
        isolate: run in a child process. False is for small trusted graphs (folding) and tests; limits need a child.
        time_limit: seconds that loading and each request may take; None for no limit.
        memory_limit: bytes of anonymous memory the child may have; mapped weights do not count.

    Raises:
        GraphoptError: no such file, ONNX Runtime is missing, or it refuses the model.
    """
    _need(Path(path))
    settings = settings or SessionSettings()
    if not isolate:
        return InProcessRunner(Path(path), settings)
    return OrtRunner(Path(path), settings, time_limit=time_limit, memory_limit=memory_limit)


def open_tapped(
    path: Path,
    values: Sequence[str],
    settings: SessionSettings | None = None,
    *,
    time_limit: float | None = None,
    memory_limit: int | None = None,
) -> OrtRunner:
    """`open_runner(...).with_taps(values)` without opening the model twice; arguments as there."""
    from graphopt.targets.onnxruntime.taps import write_tapped

    _need(path)
    folder = tempfile.TemporaryDirectory(prefix="graphopt-taps-")
    settings = settings or SessionSettings()
    config = {_WEIGHTS_FOLDER: str(path.absolute().parent), **dict(settings.config)}
    try:
        tapped = write_tapped(path, values, Path(folder.name))
        settings = settings.replace(config=tuple(config.items()))
        runner = OrtRunner(tapped, settings, time_limit=time_limit, memory_limit=memory_limit)
    except BaseException:
        folder.cleanup()
        raise
    runner.on_close(folder.cleanup)
    return runner


def _need(path: Path) -> None:
    import importlib.util

    if not path.is_file():
        raise GraphoptError(f"there is no model file {path}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingDependency("running a model", "cpu")


def runner_factory(
    *, time_limit: float | None = None, memory_limit: int | None = None, isolate: bool = True
) -> Callable[[Path, RunSetting], Runner]:
    """What `graphopt.numerics` wants: opens a model for a `RunSetting`, weights left mapped (no prepacking).

    Sums of 8-bit products are exact also on CPUs whose kernels saturate: that is a fault of theirs, and no noise.
    """
    levels: Mapping[str, OptimizationLevel] = {"off": "disable_all", "basic": "basic", "all": "all"}

    def open_for(path: Path, setting: RunSetting) -> Runner:
        settings = SessionSettings().reference()
        settings = settings.replace(
            threads=setting.threads, optimization_level=levels[setting.optimizations], precise_u8s8=True
        )
        return open_runner(path, settings, isolate=isolate, time_limit=time_limit, memory_limit=memory_limit)

    return open_for


def missing_kernel(error: GraphoptError) -> str | None:
    """What an error of opening a model says of a node without a kernel; None for any other error."""
    found = re.search(r"Could not find an implementation for .*", str(error))
    return found.group() if found is not None else None


class _Base(Runner):
    """What both runners share: the taps, and checks that need no session."""

    def __init__(self, path: Path, settings: SessionSettings) -> None:
        self.path = path
        self.settings = settings
        self.load_seconds = 0.0
        self.providers: tuple[str, ...] = ()
        self._cleanups: list[Callable[[], None]] = []

    def with_taps(self, values: Sequence[str]) -> Runner:
        """A new runner on a temporary copy of the graph (its weights are referred to, not copied).

        Raises:
            GraphoptError: a name that is no value of the main graph (did you mean).
        """
        from graphopt.targets.onnxruntime.taps import write_tapped

        folder = tempfile.TemporaryDirectory(prefix="graphopt-taps-")
        config = dict(self.settings.config)
        config[_WEIGHTS_FOLDER] = str(self._weights_folder())
        try:
            tapped = self._reopen(
                write_tapped(self.path, values, Path(folder.name)), self.settings.replace(config=tuple(config.items()))
            )
        except BaseException:
            folder.cleanup()
            raise
        tapped.on_close(folder.cleanup)
        return tapped

    def on_close(self, cleanup: Callable[[], None]) -> None:
        """Have this called when the runner is closed: for files that live as long as it."""
        self._cleanups.append(cleanup)

    def close(self) -> None:
        while self._cleanups:
            self._cleanups.pop()()

    def memory(self) -> dict[str, int]:
        """Bytes of the process that holds the model: `rss`, `anonymous`, `peak_rss`, `data`."""
        raise NotImplementedError

    def _reopen(self, path: Path, settings: SessionSettings) -> _Base:
        raise NotImplementedError

    def _weights_folder(self) -> Path:
        return Path(dict(self.settings.config).get(_WEIGHTS_FOLDER, self.path.absolute().parent))

    def _check(self, feeds: Feeds, outputs: Sequence[str] | None) -> None:
        known = [spec.name for spec in self.inputs]
        for name in feeds:
            if name not in known:
                raise GraphoptError(f"the model has no input {name!r}{did_you_mean(name, known)}")
        missing = [spec.name for spec in self.inputs if spec.name not in feeds and not spec.type.startswith("optional")]
        if missing:
            raise GraphoptError(f"no value is given for input {missing[0]!r}")
        there = [spec.name for spec in self.outputs]
        for name in outputs or ():
            if name not in there:
                raise GraphoptError(f"the model has no output {name!r}{did_you_mean(name, there)}")


class InProcessRunner(_Base):
    """The model in this process: no start-up cost, no protection."""

    def __init__(self, path: Path, settings: SessionSettings) -> None:
        from graphopt.targets.onnxruntime.session import Session

        super().__init__(path, settings)
        self._session: Session | None = Session(path, settings)
        self.inputs = self._session.inputs
        self.outputs = self._session.outputs
        self.load_seconds = self._session.load_seconds
        self.providers = self._session.providers

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        from graphopt.targets.onnxruntime.wire import pack, unpack

        session = self._open()
        self._check(feeds, outputs)
        results = session.run({name: pack(value) for name, value in feeds.items()}, outputs)
        return {name: unpack(value) for name, value in results.items()}

    def time(self, feeds: Feeds, n: int) -> list[float]:
        from graphopt.targets.onnxruntime.wire import pack

        session = self._open()
        self._check(feeds, None)
        session.bind({name: pack(value) for name, value in feeds.items()})
        return session.time(n)

    def memory(self) -> dict[str, int]:
        from graphopt.targets.onnxruntime.session import memory

        return memory()

    def close(self) -> None:
        self._session = None
        super().close()

    def _reopen(self, path: Path, settings: SessionSettings) -> InProcessRunner:
        return InProcessRunner(path, settings)

    def _open(self) -> Any:
        if self._session is None:
            raise GraphoptError(f"the runner of {self.path} is closed")
        return self._session


class OrtRunner(_Base):
    """The model in a child process. One request at a time; not for use from several threads at once."""

    def __init__(
        self,
        path: Path,
        settings: SessionSettings,
        *,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        optimized: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        super().__init__(path, settings)
        self._time_limit = time_limit
        self._memory_limit = memory_limit
        self._bound: dict[str, Any] | None = None
        self._child = Child(_WORKER, "ONNX Runtime", path, time_limit=time_limit, memory_limit=memory_limit)
        load = {
            "op": "load",
            "path": str(path),
            "settings": settings.to_json(),
            "optimized": None if optimized is None else str(optimized),
            "profile": None if profile is None else str(profile),
            "data_limit": None if memory_limit is None else memory_limit + bytes_in(self._weights_folder()),
        }
        try:
            header, _ = self._ask("loading", load)
        except BaseException:
            self.close()
            raise
        self.inputs = _specs(header["inputs"])
        self.outputs = _specs(header["outputs"])
        self.load_seconds = header["load_seconds"]
        self.providers = tuple(header["providers"])
        self.memory_after_load: dict[str, int] = header["memory"]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        from graphopt.targets.onnxruntime.wire import pack, unpack

        self._check(feeds, outputs)
        packed = {name: pack(value) for name, value in feeds.items()}
        wanted = list(outputs) if outputs is not None else None
        _, results = self._ask("running", {"op": "run", "outputs": wanted}, packed)
        return {name: unpack(value) for name, value in results.items()}

    def sizes(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, int]:
        """Run, and return the bytes of these outputs, tensors of types that numpy has."""
        from graphopt.targets.onnxruntime.wire import pack

        self._check(feeds, outputs)
        header = {"op": "sizes", "names": list(outputs)}
        return dict(self._ask("running", header, {k: pack(v) for k, v in feeds.items()})[0]["sizes"])

    def observe(self, feeds: Feeds, values: Sequence[str], abreast: int = 1) -> None:
        """Run, and take these inputs and outputs into statistics that the child keeps; nothing but feeds is sent.

        Args:
            feeds: as for `run`.
            values: names of inputs and outputs of float type.
            abreast: so many runs may be under way; an error of one may be raised by a later call.
        """
        from graphopt.targets.onnxruntime.wire import pack

        self._check(feeds, None)
        header = {"op": "observe", "names": list(values), "abreast": abreast}
        self._ask("running", header, {k: pack(v) for k, v in feeds.items()})

    def statistics(self) -> dict[str, TensorStats]:
        """The statistics of what was observed since the last call, by name."""
        from graphopt.quantization.statistics import TensorStats

        header, counts = self._ask("reading the statistics of", {"op": "statistics"})
        items = header["statistics"].items()
        return {name: TensorStats.from_json({**data, "counts": counts[name]}) for name, data in items}

    def time(self, feeds: Feeds, n: int) -> list[float]:
        """Seconds of each of `n` runs. Feeds are sent and bound once, as long as the same arrays are given."""
        from graphopt.targets.onnxruntime.wire import pack

        self._check(feeds, None)
        bound = self._bound
        if bound is None or bound.keys() != feeds.keys() or any(bound[name] is not feeds[name] for name in feeds):
            self._ask("binding feeds of", {"op": "bind"}, {name: pack(value) for name, value in feeds.items()})
            self._bound = dict(feeds)
        header, _ = self._ask("timing", {"op": "time", "n": n})
        return header["seconds"]

    def end_profile(self) -> Path:
        """The file of a runner that was opened with `profile`; nothing is timed any more."""
        return Path(self._ask("reading the profile of", {"op": "profile"})[0]["profile"])

    def memory(self) -> dict[str, int]:
        return self._ask("measuring", {"op": "memory"})[0]["memory"]

    def close(self) -> None:
        self._child.close()
        super().close()

    def _reopen(self, path: Path, settings: SessionSettings) -> OrtRunner:
        return OrtRunner(path, settings, time_limit=self._time_limit, memory_limit=self._memory_limit)

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        return self._child.process

    def _ask(
        self, doing: str, header: dict[str, Any], values: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return self._child.ask(doing, header, values)


def _specs(items: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, text, None if shape is None else tuple(shape)) for name, text, shape in items)
