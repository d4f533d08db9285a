"""Gates of one compile run: makes the float model to compare with, has both measured, and lets a gate judge the loss.

    gating = Gating(options)                      # reads gates and the metric's name before any work is done
    numbers = gating.judge(run, files, folder, numbers, FloatTwin(run, make_job))

Not here: measuring (evaluation.py), what a gate's text says (gates.py).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graphopt.errors import GraphoptError
from graphopt.evaluation import SAMPLES, Compiled, Evaluation, Samples, check_complete, evaluate
from graphopt.gates import ACCURACY, parse_gates, require
from graphopt.running import Runnable
from graphopt.samplefiles import function_named
from graphopt.samples import inputs_of, open_samples

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.calibrating import Calibrating
    from graphopt.checks import Check, Numbers
    from graphopt.driver import Options, _Job
    from graphopt.manager.pipeline import Pipeline
    from graphopt.target import CompiledFiles, Runner, Target

    MakeJob = Callable[[Any, Options, Path], _Job]


class Gating:
    """What `--gate` and `--eval` ask of a run.

    Attributes:
        evaluation: what was measured; None before `judge`, or when nothing was asked.

    Raises:
        GraphoptError: a gate that cannot be read, or that needs samples or a metric which are not given.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.gates = parse_gates((options.gates,) if isinstance(options.gates, str) else options.gates)
        self.name, self._function = _metric(options.evaluate)
        self.evaluation: Evaluation | None = None
        has_samples = options.data is not None or options.calibration_data is not None
        check_complete(self.gates, has_samples, self._function is not None)

    @property
    def asked(self) -> bool:
        return bool(self.gates) or self._function is not None

    def judge(
        self, job: _Job, files: CompiledFiles, folder: Path, numbers: Numbers, twin: FloatTwin, hint: str = ""
    ) -> Numbers:
        """Measure, and refuse a model that misses a gate.

        Args:
            job: the run whose result lies in `folder`.
            files: what the target wrote there.
            numbers: the verdict without gates.
            twin: makes the float model, if it is needed.
            hint: ends the message about a gate that is not met.

        Returns:
            The verdict; a loss that only a gate can judge is passed when gates on accuracy are met.

        Raises:
            GateError: a gate is not met, or cannot be judged on this machine.
        """
        if not self.asked or numbers.status == "failed":
            return numbers
        start = time.perf_counter()
        assert job.target is not None
        candidate = base = compiled(job.target, files, folder)
        float_job = job
        if lossy_passes(job):
            float_job, float_files, float_folder = twin.make()
            base = compiled(job.target, float_files, float_folder)
        times_it = any(gate.name == "latency" for gate in self.gates)
        self.evaluation = evaluate(
            self.gates,
            candidate,
            base,
            samples=self._samples(float_job, twin.calibration),
            feeds=feeds_of(job.options, job.check, float_job.model) if times_it else None,
            function=self._function,
            name=self.name,
        )
        job.seconds["gates"] = time.perf_counter() - start
        require(self.evaluation.outcomes, hint)
        return numbers.judged_by([str(gate) for gate in self.gates if gate.name in ACCURACY])

    def _samples(self, float_job: _Job, calibration: Calibrating | None) -> Samples | None:
        options = self.options
        if options.data is not None:
            found = open_samples(options.data, inputs_of(float_job.model))
            return Samples(found.origin, lambda: found.batches(SAMPLES))
        if options.calibration_data is None or calibration is None:
            return None
        return Samples(calibration.origin, lambda: calibration.batches(SAMPLES))

    def record(self) -> dict[str, Any]:
        """What the manifest says: the gates that were met."""
        return {"gates": [str(gate) for gate in self.gates]} if self.gates else {}

    def report(self) -> dict[str, Any]:
        """What the report says."""
        return {"evaluation": self.evaluation.as_json()} if self.evaluation is not None else {}


class FloatTwin:
    """The same source through the same pipeline without its lossy passes, compiled for the same target; made once.

    Args:
        job: the run with the lossy passes.
        make_job: makes another run, from a source, options and a scratch folder: the driver's.
    """

    def __init__(self, job: _Job, make_job: MakeJob) -> None:
        self._job, self.make_job = job, make_job
        self.calibration = job.calibration
        self._made: tuple[_Job, CompiledFiles, Path] | None = None

    def make(self) -> tuple[_Job, CompiledFiles, Path]:
        """The run, what the target wrote, and the folder that it lies in."""
        if self._made is None:
            job = self._job
            assert job.target is not None
            folder = job.scratch / "float-compiled"
            folder.mkdir()
            twin = rerun(job, float_options(job.options, str(job.pipeline.without(lossy_passes(job)))), self.make_job)
            files = job.target.compile(twin.model, folder, job.options.external_data)
            self._made = twin, files, folder
        return self._made


def rerun(job: _Job, options: Options, make_job: MakeJob) -> _Job:
    """Another run from the source of a run."""
    scratch = Path(tempfile.mkdtemp(prefix="rerun-", dir=job.scratch))
    source = job.source
    if job.origin is None:  # the model was changed in place, and its inputs are specialised
        source, options = job.check.fresh(), replace(options, input_shapes={}, dims={})
    again = make_job(source, options, scratch)
    again.transform()
    return again


def rerun_as(job: _Job, pipeline: Pipeline, make_job: MakeJob) -> _Job:
    """Another run from the source of a run, through another pipeline, with the statistics and times of that run."""
    options = replace(
        job.options,
        passes=str(pipeline),
        precision=None,
        recipe=None,
        disable=(),
        opset=None,
        require_effect=False,
        dump_dir=None,
    )

    def sharing(source: Any, changed: Options, scratch: Path) -> _Job:
        made = make_job(source, changed, scratch)
        made.calibration, made.timer = job.calibration, job.timer
        return made

    return rerun(job, options, sharing)


def feeds_of(options: Options, check: Check, model: ir.Model) -> Mapping[str, Any]:
    """One sample to time a model of floats on; made inputs where there are none.

    Raises:
        GraphoptError: no made inputs were accepted.
    """
    data = options.data if options.data is not None else options.calibration_data
    if data is not None and str(data) != "random":
        return open_samples(data, inputs_of(model), batch=1).peek()
    cases = [case for case in check.cases() if not case.special]
    if not cases:
        raise GraphoptError("there is nothing to time the models on, no made inputs were accepted: give --data")
    return cases[0].feeds


def lossy_passes(job: _Job) -> tuple[str, ...]:
    """Names of the passes that lose something, with those that prepare for them; empty when nothing was lost."""
    assert job.result is not None
    effects = job.result.effects()
    lossy = [item for item in job.pipeline.passes() if item.tolerance == "lossy" or item.stage == "quantize"]
    lost = any(effects.get(item.name) for item in lossy if item.tolerance == "lossy")
    return tuple(dict.fromkeys(item.name for item in lossy)) if lost else ()


def float_options(options: Options, pipeline: str) -> Options:
    """Options of the run that makes the float model: the pipeline given, nothing checked, printed or written."""
    return replace(
        options,
        passes=pipeline or "O0",
        precision=None,
        recipe=None,
        disable=(),
        opset=None,
        numerics="off",
        require_numerics=False,
        require_effect=False,
        bisect_limit=None,
        print_after=(),
        dump_dir=None,
        repro=None,
        plan=None,
        calibration_data=None,
        calibration_samples=None,
        calibration=None,
        save_calibration=None,
        gates=(),
        evaluate=None,
        keep_slow=None,
    )


def compiled(target: Target, files: CompiledFiles, folder: Path) -> Compiled:
    """What a target wrote into a folder, ready to be opened."""
    size = sum((folder / name).stat().st_size for name in files.files)
    return Compiled(Runnable(folder / files.main, target, dict(files.settings)), size)


def _metric(evaluate: Any) -> tuple[str, Callable[[Runner], Any] | None]:
    """Name and function of `--eval`."""
    if evaluate is None:
        return "", None
    if callable(evaluate):
        return getattr(evaluate, "__name__", "metric"), evaluate
    try:
        return str(evaluate), cast("Callable[[Runner], Any]", function_named(str(evaluate)))
    except GraphoptError as error:
        raise GraphoptError(f"--eval: {error}") from None
