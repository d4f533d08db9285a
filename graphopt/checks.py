"""Ties a run to its reference: the untouched model, the folding evaluator, and the numerics verdict.

Lives here: which file is the reference and which runner judges. Not here: how numbers are compared (numerics.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, VerificationError
from graphopt.frontends.onnx import file_hash, load
from graphopt.ir.hash import structural_hash
from graphopt.ir.writer import write
from graphopt.manager.registry import get
from graphopt.stretches import ORDER, Stretch, Stretches, join
from graphopt.target import RUN_BYTES, RUN_SECONDS

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.base import Pass
    from graphopt.manager.instruments import Instruments, When
    from graphopt.manager.runner import RunResult
    from graphopt.numerics import Case, NumericsReport, RunnerFactory, RunSetting, Status, ToleranceClass
    from graphopt.reference import Reference
    from graphopt.target import Runner, Target


_INVALID = ("bound to different types", "does not match expected type", "[ShapeInferenceError]", "[TypeInferenceError]")
"""ONNX Runtime's words, while it loads, for a model that is at fault: it contradicts itself."""


@dataclass(frozen=True)
class Numbers:
    """The verdict on a result's numbers; `details` holds what was measured."""

    status: Status
    reason: str = ""
    tolerance: str = "exact"
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    gates: tuple[str, ...] = ()
    """Gates on accuracy that judged the loss."""

    def verdict(self) -> dict[str, Any]:
        """The part that is the same for the same inputs: it stands in the manifest."""
        return {
            "status": self.status,
            "tolerance": self.tolerance,
            "reason": self.reason if self.status != "passed" else "",
            **self._judges(),
        }

    def as_json(self) -> dict[str, Any]:
        first = {"status": self.status, "reason": self.reason, "tolerance": self.tolerance}
        return {**first, **self._judges(), **self.details}

    def judged_by(self, gates: Sequence[str]) -> Numbers:
        """The verdict when gates on accuracy were met: they judge the loss; what lies between must have passed."""
        stretches = self.details.get("stretches", ())
        open_ = self.status != "not-checked" or self.tolerance != "lossy"
        if open_ or not gates or any(row["status"] != "passed" for row in stretches):
            return self
        return replace(self, status="passed", reason="", gates=tuple(gates))

    def _judges(self) -> dict[str, Any]:
        return {"judged_by": list(self.gates)} if self.gates else {}


def runs_elsewhere(target: Target | None) -> bool:
    """Whether what is compiled may need kernels that plain ONNX Runtime on the CPU lacks."""
    return target is None or not target.is_reference()


class Check:
    """Knows the untouched model of one run.

    Args:
        model: The captured model, before any pass.
        origin: The ONNX file it came from; None writes the model into `scratch` as the reference.
        data: The user's feeds.
        scratch: A folder for temporary files.
        reload: Captures the source anew; None reads the reference file.
        elsewhere: What is judged may have no kernel in plain ONNX Runtime on the CPU (`runs_elsewhere`).
    """

    def __init__(
        self,
        model: ir.Model,
        origin: Path | None,
        data: Path | None,
        scratch: Path,
        reload: Callable[[], ir.Model] | None = None,
        *,
        elsewhere: bool = False,
    ) -> None:
        self.scratch = scratch
        self.data = data
        self._is_file = origin is not None
        self._reload = reload
        self._lacks = _missing_kernel if elsewhere else None
        self._count = 0
        if origin is None:
            self.reference = scratch / "reference.onnx"
            write(model, self.reference)
            self.identity: dict[str, Any] = {"structural_hash": structural_hash(model)}
        else:
            self.reference = origin
            self.identity = {"name": origin.name, "files": _hashes(model, origin)}
        self._opened: Reference | None = None
        self.stretches = Stretches(self._file)

    def fresh(self) -> ir.Model:
        """The untouched model again."""
        return self._reload() if self._reload is not None else load(self.reference)

    def evaluate(self, model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a small model in a child process with the runtime's optimizations off (manager.context.Evaluator)."""
        path = self._file("fold")
        write(model, path)
        try:
            with _reference_runner(path) as runner:
                return runner.run(feeds)
        finally:
            path.unlink(missing_ok=True)

    def skipped(self, reason: str) -> Numbers:
        return Numbers("not-checked", reason)

    def watch(self, instruments: Instruments, when: When) -> Instruments:
        """The instruments with the hooks by which this check follows a new run."""
        self.stretches = Stretches(self._file)
        if when == "off":
            return instruments
        after = self.after_pass if when == "each" else self.stretches.after_pass
        return replace(instruments, before_pass=self.stretches.before_pass, after_pass=after)

    def after_pass(self, model: ir.Model, item: Pass) -> None:
        """`--numerics each`: judge the model after one pass against the one that its stretch began with.

        Raises:
            VerificationError: the numbers are wrong; names the pass.
        """
        self.stretches.after_pass(model, item)
        if item.tolerance == "lossy":
            return
        path = self._file("after")
        write(model, path)
        stretch = Stretch(self.stretches.start, path, self.stretches.tolerance, "")
        report = self._judge_stretch(stretch, path)
        path.unlink(missing_ok=True)
        if report.status == "failed":
            raise VerificationError(f"after pass {item.name!r}: numerics failed: {report.reason}")

    def end(
        self,
        candidate: Path,
        result: RunResult | None,
        target: Target | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Numbers:
        """Judge a file against the untouched model, by the loosest class of the passes that changed something.

        With lossy passes the loss is measured against the untouched model, and each stretch between them is judged
        against the model that it received.

        Args:
            candidate: The file that will be shipped.
            result: What ran.
            target: Where it will run. On a device that is not here the file is checked on the CPU, and the verdict is
                not-checked; None: plain ONNX Runtime on the CPU.
            settings: The target's settings for the file.
        """
        start = time.perf_counter()
        tolerance = loosest(result)
        status: Status
        report = self.compare(candidate, tolerance, target, settings)
        if tolerance == "lossy":
            runs = _runs_on(target, settings)
            parts = [(stretch, self._judge_stretch(stretch, candidate, runs)) for stretch in self.stretches.all()]
            status, reason, details = join(parts, report)
        else:
            status, reason, details = report.status, report.reason, report.to_json()
            details = {key: value for key, value in details.items() if key not in ("status", "reason", "tolerance")}
        return Numbers(status, reason, report.tolerance, details, time.perf_counter() - start)

    def _judge_stretch(self, stretch: Stretch, candidate: Path, runs: RunnerFactory | None = None) -> NumericsReport:
        """Judge one stretch; on the CPU, where its passes were run, but for a file that only its target runs."""
        from graphopt.reference import Reference

        end, tolerance = stretch.end or candidate, stretch.tolerance
        factory = runs if end.suffix != ".onnx" else None
        if factory is not None:
            tolerance = max(tolerance, "reassociates", key=ORDER.index)
        untouched = self._reference_model()
        if stretch.start is None:
            return untouched.judge(end, tolerance, factory, lacks=self._lacks)
        model = load(stretch.start)
        feeds = [case for case in untouched.cases if not case.special] if _same_inputs(model, untouched) else []
        with Reference.open(stretch.start, model, _factory(), data=feeds) as reference:
            return reference.judge(end, tolerance, factory, lacks=self._lacks)

    def compare(
        self,
        candidate: Path,
        tolerance: ToleranceClass,
        target: Target | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> NumericsReport:
        """Judge a file against the untouched model by one tolerance class; target and settings as for `end`."""
        missing = target.available() if target is not None else None
        factory = _runs_on(target, settings)
        if factory is not None:
            # Another device rounds differently even where the passes were exact.
            tolerance = max(tolerance, "reassociates", key=ORDER.index)
        noisy = target is not None and target.rounds_operands()
        report = self._reference_model().judge(candidate, tolerance, factory, noisy=noisy, lacks=self._lacks)
        if missing is None or report.status == "failed":
            return report
        on_cpu = "it passed on the CPU" if report.status == "passed" else f"nor checked on the CPU: {report.reason}"
        reason = f"compiled, not run on the target ({missing}); {on_cpu}"
        return replace(report, status="not-checked", reason=reason)

    def cases(self) -> list[Case]:
        """The feeds that the numerics use."""
        return list(self._reference_model().cases)

    def _reference_model(self) -> Reference:
        from graphopt.reference import Reference

        if self._opened is None:
            factory = _factory()
            self._opened = Reference.open(self.reference, self.fresh(), factory, data=self._cases())
            if self.data is not None and self._opened.unchecked:
                raise GraphoptError(f"--data {self.data}: {self._opened.unchecked}")
            if self._is_file and any(text in self._opened.refusal for text in _INVALID):
                raise GraphoptError(f"{self._opened.refusal}; correct the model, or go on with --numerics off")
        return self._opened

    def _cases(self) -> list[Case]:
        from graphopt.numerics import Case

        if self.data is None:
            return []
        with _reference_runner(self.reference) as runner:
            feeds = _load(self.data, runner)
            return [Case(f"--data {self.data.name}", feeds)]

    def _file(self, stem: str) -> Path:
        self._count += 1
        return self.scratch / f"{stem}-{self._count}.onnx"


def loosest(result: RunResult | None) -> ToleranceClass:
    """The loosest tolerance class among the passes that applied a rewrite."""
    classes: list[ToleranceClass] = [
        get(name).tolerance for name, count in (result.effects() if result else {}).items() if count
    ]
    return max(classes, key=ORDER.index, default="exact")


def _same_inputs(model: ir.Model, untouched: Reference) -> bool:
    """Whether the feeds of the untouched model fit: a lossy pass may have changed the interface."""
    import numpy as np

    wanted = {value.name: value.dtype.numpy() for value in model.graph.inputs if value.dtype is not None}
    return all(
        set(case.feeds) <= set(wanted)
        and all(np.asarray(value).dtype == wanted[name] for name, value in case.feeds.items())
        for case in untouched.cases
    )


def _load(data: Path, runner: Runner) -> dict[str, Any]:
    from graphopt.feedfiles import load_feeds

    try:
        return load_feeds(data, runner.inputs)
    except GraphoptError as error:
        raise GraphoptError(f"--data: {error}") from None


def _factory() -> RunnerFactory:
    from graphopt.targets.onnxruntime.runner import runner_factory

    return runner_factory(time_limit=RUN_SECONDS, memory_limit=RUN_BYTES)


def _missing_kernel(error: GraphoptError) -> str | None:
    from graphopt.targets.onnxruntime.runner import missing_kernel

    return missing_kernel(error)


def _runs_on(target: Target | None, settings: Mapping[str, Any] | None) -> RunnerFactory | None:
    """What opens a file on a target that is here and does not compute as the reference does."""
    if target is None or target.available() is not None or target.is_reference():
        return None

    def factory(path: Path, setting: RunSetting) -> Runner:
        return target.load(path, settings)

    return factory


def _reference_runner(path: Path) -> Runner:
    from graphopt.targets.onnxruntime.runner import open_runner
    from graphopt.targets.onnxruntime.settings import SessionSettings

    return open_runner(path, SessionSettings().reference(), time_limit=RUN_SECONDS, memory_limit=RUN_BYTES)


def data_files(model: ir.Model) -> list[Path]:
    """The files with the model's external data, each once."""
    from graphopt import ir

    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    return list(dict.fromkeys(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)))


def _hashes(model: ir.Model, origin: Path) -> dict[str, str]:
    """SHA-256 of the model file and of each file with its external data."""
    paths = {origin.name: origin}
    for path in data_files(model):
        # Two folders may hold files of one name.
        name = path.name if path.name not in paths else os.path.relpath(path, os.path.realpath(origin.parent))
        paths[name] = path
    return {name: file_hash(path) for name, path in sorted(paths.items())}
