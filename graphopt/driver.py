"""compile() and optimize(): the one place where passes and targets meet.

Lives here: the order of capture, pipeline, lowering, numerics and publishing. Not here: how any of them works.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import artifact as artifacts
from graphopt.artifact import Artifact
from graphopt.calibrationflags import open_calibration
from graphopt.checks import Check, Numbers, data_files, runs_elsewhere
from graphopt.environment import machine, versions
from graphopt.errors import GateError, GraphoptError, PassError, VerificationError
from graphopt.frontends.capture import Source, capture
from graphopt.frontends.onnx import file_hash, load
from graphopt.ir import sites
from graphopt.ir.constants import model_bytes
from graphopt.ir.places import beside, check_together, file_place
from graphopt.ir.writer import ExternalData, write
from graphopt.lowering import check_tuning, checked_file, lower, measured, take_tuned, write_plans
from graphopt.manager import pipeline as pipelines
from graphopt.manager.context import Context
from graphopt.manager.instruments import Instruments, When
from graphopt.manager.pipeline import Pipeline
from graphopt.manager.plan import Plan, read_plans
from graphopt.manager.registry import get, make_target
from graphopt.manager.runner import RunResult, run
from graphopt.precision import TIMED, with_precision
from graphopt.repro import write_repro
from graphopt.sitetimer import SiteTimer

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.target import Target
    from graphopt.tuning import Remote


@dataclass(frozen=True)
class Options:
    """What a run may be asked besides model and target; the CLI's flags of the same names.

    Attributes:
        level: named pipeline O0..O3, unless `passes` or `recipe` says what to run.
        precision: what to compute in: `int8`, `int8-dynamic`, `int8-weights`, `int4`, `fp16`, `bf16`; the passes join
            the level (graphopt/precision.py).
        passes: pipeline text.
        recipe: TOML file that says the same.
        disable: passes to leave out.
        opset: standard opset of the output; None for the working opset.
        input_shapes, dims: specialise inputs by name, or symbolic dims by name.
        data: feeds for the numerics check: .npz, .npy or a folder; None makes legal ones.
        numerics, verify: check after each changing pass, at the end, or not at all.
        require_numerics, require_effect: turn "not checked" and "did nothing" into errors.
        bisect_limit: apply only the first N rewrites.
        external_data: where large weights go.
        max_growth: passes may grow the weights by at most this factor.
        repro: folder for the reproducer of a failing pass.
        plan: file of plans (`--plan-only` prints it) that passes carry out instead of making their own.
        calibration_data: samples of real inputs for passes that need them: a path, `module:function`, "random", or an
            iterable such as a DataLoader (graphopt/samples.py).
        calibration_samples: use this many of them.
        calibration: file of statistics that `save_calibration` wrote, used instead of gathering them.
        save_calibration: file to write the statistics to.
        max_memory: bytes that the values looked at while calibrating may take at a time.
        progress: show how far calibration is, where stderr is a terminal.
        gates: compile only: what must be reached for anything to be written, e.g. "metric>=0.99x" (graphopt/gates.py).
        evaluate: compile only: the user's metric, a function of a runner or its name `module:function`.
        keep_slow: compile only: False times a quantized model here and leaves out what is slower than in float, all of
            it if need be; True ships it as it is; None: False with precision `int8` or `int8-dynamic`, else True.
        tune: compile only: seconds in which the target may choose by measuring; None measures nothing.
        remote: where `tune` measures: machines behind an RPC tracker; None for this one.
        frozen: compile only: the artifact that is there already must come out again, from the same inputs.
    """

    level: int = 2
    precision: str | None = None
    passes: str | None = None
    recipe: Path | None = None
    disable: tuple[str, ...] = ()
    opset: int | None = None
    input_shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    data: Path | None = None
    numerics: When = "end"
    verify: When = "each"
    require_numerics: bool = False
    require_effect: bool = False
    bisect_limit: int | None = None
    external_data: ExternalData = "auto"
    max_growth: float = 1.1
    print_after: tuple[str, ...] = ()
    dump_dir: Path | None = None
    dump_changed_only: bool = False
    repro: Path | None = Path("repro")
    plan: Path | None = None
    calibration_data: Any = None
    calibration_samples: int | None = None
    calibration: Path | None = None
    save_calibration: Path | None = None
    max_memory: int | None = None
    progress: bool = False
    gates: tuple[str, ...] = ()
    evaluate: Any = None
    keep_slow: bool | None = None
    tune: float | None = None
    remote: Remote | None = None
    frozen: bool = False


@dataclass(frozen=True)
class Optimized:
    """The result of optimize(): the model, what ran, and the verdict on its numbers."""

    model: ir.Model
    pipeline: Pipeline
    run: RunResult
    numerics: Numbers
    summary: dict[str, Any]


def plan_pipeline(options: Options, target: Target | None) -> Pipeline:
    """The pipeline that these options ask for.

    Raises:
        GraphoptError: unknown pass, option or level, or both `passes` and `recipe`.
    """
    if options.passes is not None and options.recipe is not None:
        raise GraphoptError("give passes or a recipe, not both")
    if options.precision is not None and (options.passes is not None or options.recipe is not None):
        raise GraphoptError(f"--precision {options.precision} adds passes to a level; give it or a pipeline, not both")
    if options.recipe is not None:
        chosen = pipelines.load_recipe(options.recipe)
    elif options.passes is not None:
        chosen = pipelines.parse(options.passes)
    else:
        if options.level not in range(4):
            raise GraphoptError(f"there is no optimization level {options.level}; levels are 0 to 3")
        if options.precision is not None:
            chosen = with_precision(options.precision, options.level, target)
        else:
            chosen = pipelines.parse(target.pipeline(options.level) if target is not None else f"O{options.level}")
    if options.opset is not None:
        kept = tuple(item for item in chosen.items if getattr(item, "name", "") != "convert-opset")
        chosen = Pipeline((*pipelines.parse(f"convert-opset{{to={options.opset}}}").items, *kept))
    return chosen.without(options.disable) if options.disable else chosen


def optimize(
    source: Source, target: str | Target | None = None, options: Options | None = None, output: str | Path | None = None
) -> Optimized:
    """Run passes over a model: ONNX (or torch) in, IR out, and an ONNX file when `output` is given.

    Args:
        source: path of an ONNX file, or an IR model (which is changed in place).
        target: whose ops may be emitted, e.g. "cpu"; None for standard ONNX ops only.
        options: see Options.
        output: `.onnx` file to write, atomically, after the numerics check.

    Raises:
        GraphoptError: bad input, a broken rule, wrong numbers (VerificationError), or an unmet requirement.
    """
    options = options or Options()
    if options.gates or options.evaluate is not None:
        raise GraphoptError("gates judge what a target runs: compile the model, opt only rewrites it")
    chosen_target = make_target(target) if isinstance(target, str) else target
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        job = _Job(source, chosen_target, options, Path(scratch))
        job.transform()
        if output is not None:
            numbers = _write_checked(job, Path(output))
        elif options.numerics == "off":
            numbers = job.check.skipped("numerics are off")
        else:
            write(job.model, Path(scratch) / "candidate.onnx", options.external_data)
            numbers = job.check.end(Path(scratch) / "candidate.onnx", job.result)
        job.judge(numbers)
    assert job.result is not None
    return Optimized(job.model, job.pipeline, job.result, numbers, job.summary(numbers))


def make_plans(source: Source, target: str | Target | None = None, options: Options | None = None) -> list[Plan]:
    """What the passes of a pipeline decide that plan before they act; nothing is written or checked.

    Args:
        source, target, options: as for optimize().

    Returns:
        The plans in the order they were carried out; empty when no pass of the pipeline makes one.
    """
    options = options or Options()
    chosen_target = make_target(target) if isinstance(target, str) else target
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        job = _Job(source, chosen_target, replace(options, numerics="off"), Path(scratch))
        job.transform()
        assert job.result is not None
        return job.result.ctx.plans.made


def _write_checked(job: _Job, output: Path) -> Numbers:
    """Write beside the output, check there, and rename into place only what passed."""
    given, output = output, file_place(output)
    with beside(output) as folder:
        names = write(job.model, folder / output.name, job.options.external_data)
        check_together(given, output, names)
        taken = [path for path in job.data_files if any(_same(path, output.parent / file) for file in names)]
        if taken and job.origin is not None and not _same(job.origin, output):
            raise GraphoptError(
                f"output {output} would replace {taken[0]}, which holds the weights of {job.origin}; "
                "choose another name, or --external-data never"
            )
        if job.options.numerics == "off":
            numbers = job.check.skipped("numerics are off")
        else:
            numbers = job.check.end(folder / output.name, job.result)
        job.judge(numbers)
        places = [(folder / file, file_place(output.parent / file)) for file in names]
        try:
            for file, place in reversed(places):  # weights first: a model never stands without its data
                file.replace(place)
        except OSError as error:
            raise GraphoptError(f"cannot write output {output}: {error.strerror}") from None
    if taken:
        _read_weights_from(job.model, output)
    return numbers


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.samefile(b)


def _read_weights_from(model: ir.Model, output: Path) -> None:
    """Point external weights at a file just written: it took the place of the one that they were mapped from."""
    from graphopt import ir

    for graph, written in zip(model.graphs(), load(output).graphs(), strict=True):
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = written.initializers[name].const_value


def compile(
    source: Source, target: str | Target = "cpu", output: str | Path = "build", options: Options | None = None
) -> Artifact:
    """Capture, optimize, lower, verify and write an artifact folder.

    Args:
        source: path of an ONNX file, or an IR model (which is changed in place).
        target: e.g. "cpu", "cuda", "tvm", "cpu{backend=auto}".
        output: folder to write; an older artifact there is replaced only when everything succeeded.
        options: see Options.

    Returns:
        The artifact as written.

    Raises:
        GraphoptError: bad input, a broken rule, wrong numbers (VerificationError), or an unmet requirement.
    """
    # What `optimize` does without is imported here.
    from graphopt import choosing, paying, steering
    from graphopt.gating import FloatTwin, Gating

    options = options or Options()
    if options.keep_slow is None and options.precision in TIMED:
        options = replace(options, keep_slow=False)
    chosen = make_target(target) if isinstance(target, str) else target
    out = Path(output)
    if chosen.candidates():
        return choosing.compile_fastest(compile, source, chosen, out, options)
    check_tuning(options, chosen)
    gating = Gating(options)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch, artifacts.publish(out) as folder:
        job = _Job(source, chosen, options, Path(scratch))
        job.transform(lowered=True)
        twin = FloatTwin(job, lambda source, changed, place: _Job(source, chosen, changed, place))
        while True:
            start = time.perf_counter()
            files = lower(job, folder)
            job.seconds["lower"] = time.perf_counter() - start
            settled = paying.settle(job, files, folder, twin)
            job, files = settled.job, settled.files
            if options.numerics == "off":
                numbers = job.check.skipped("numerics are off")
            else:
                numbers = job.check.end(folder / checked_file(files, chosen), job.result, chosen, files.settings)
            try:
                numbers = gating.judge(job, files, folder, numbers, twin, settled.hint())
            except GateError:
                if not steering.helps(gating.evaluation, job):
                    raise
                job = steering.again(job, twin.make_job)
                artifacts.empty(folder)
                continue
            break
        job.judge(numbers)
        hashes = {name: file_hash(folder / name) for name in (*files.files, *write_plans(job, folder))}
        unsure = [*files.not_reproducible, *settled.measured(), *measured(files), *(hashes if job.timer.used else ())]
        manifest = {
            "format": artifacts.FORMAT,
            "input": job.check.identity,
            "interface": job.interface(),
            "main": files.main,
            "files": hashes,
            "not_reproducible": list(dict.fromkeys(unsure)),
            "notes": list(files.notes),
            "numerics": numbers.verdict(),
            "pipeline": str(job.pipeline),
            "settings": dict(files.settings),
            "target": str(chosen),
            "versions": versions(chosen.packages),
            **gating.record(),
        }
        if files.model is not None:
            manifest["model"] = files.model
        calibrated = job.calibration.record() if job.calibration is not None else None
        if calibrated is not None:
            manifest["calibration"] = calibrated
        if options.frozen:
            artifacts.check_frozen(out, manifest)
        report = {
            **job.summary(numbers),
            **settled.report(),
            **gating.report(),
            "notes": list(files.notes),
            "machine": machine(),
        }
        if files.details:
            report["lowering"] = dict(files.details)
        (folder / artifacts.MANIFEST).write_text(artifacts.dump(manifest), encoding="utf-8")
        (folder / artifacts.REPORT).write_text(artifacts.dump(report), encoding="utf-8")
    return Artifact(out, manifest, report)


def _check_print_after(names: Sequence[str], pipeline: Pipeline) -> None:
    there = {item.name for item in pipeline.passes()}
    for name in names:
        if name not in ("all", "changed") and get(name).name not in there:
            raise GraphoptError(f"--print-ir-after {name}: the pipeline has no such pass")


class _Job:
    """One run: source, pipeline, what happened, and what it took."""

    def __init__(self, source: Source, target: Target | None, options: Options, scratch: Path) -> None:
        self.options = options
        self.target = target
        self.seconds: dict[str, float] = {}
        self.pipeline = plan_pipeline(options, target)
        _check_print_after(options.print_after, self.pipeline)
        start = time.perf_counter()
        self.model, origin = capture(source, options.input_shapes, options.dims)
        self.seconds["capture"] = time.perf_counter() - start
        self.origin, self.data_files = origin, data_files(self.model)
        self.before = {"nodes": sites.count_nodes(self.model), "bytes": model_bytes(self.model)}
        reload = None if origin is None else lambda: capture(source, options.input_shapes, options.dims)[0]
        self.check = Check(self.model, origin, options.data, scratch, reload, elsewhere=runs_elsewhere(target))
        self.calibration = open_calibration(options, self.model, scratch)
        self.timer = SiteTimer(target, self._feeds, scratch)
        self.scratch = scratch
        self.result: RunResult | None = None
        self.source = source

    def _feeds(self) -> Mapping[str, Any]:
        from graphopt.gating import feeds_of

        return feeds_of(self.options, self.check, self.model)

    def transform(self, *, lowered: bool = False) -> None:
        """Run the pipeline; plans for what is `lowered` then may hold what the target is to choose."""
        options = self.options
        plans = read_plans(options.plan) if options.plan is not None else []
        self.tuned = take_tuned(plans, options) if lowered else None
        instruments = Instruments(
            verify=options.verify,
            print_after=options.print_after,
            dump_dir=options.dump_dir,
            dump_changed_only=options.dump_changed_only,
        )
        instruments = self.check.watch(instruments, options.numerics)
        ctx = Context(
            self.model,
            target=self.target,
            evaluate=self.check.evaluate,
            timer=self.timer,
            limit=options.bisect_limit,
            max_growth=options.max_growth,
            calibration=self.calibration,
            plans=plans,
        )
        start = time.perf_counter()
        try:
            self.result = run(self.model, self.pipeline, ctx, instruments, options.require_effect)
        except (PassError, VerificationError) as error:
            where = write_repro(self.check, ctx, self.pipeline, error, options) if options.repro is not None else None
            hint = f"; a reproducer is in {where}" if where else ""
            raise type(error)(f"{error}{hint}") from error
        self.seconds["passes"] = time.perf_counter() - start
        if not self.result.stopped:
            ctx.plans.check_used()
        if self.calibration is not None:
            for text in self.calibration.notes():
                ctx.remarks.note("calibration", text)
            if options.save_calibration is not None:
                self.calibration.save(options.save_calibration)

    def judge(self, numbers: Numbers) -> None:
        if numbers.status == "failed":
            differ = bool(numbers.details.get("outputs"))  # what could not be run has none
            hint = "; find the rewrite with: graphopt bisect" if differ else ""
            raise VerificationError(f"numerics failed: {numbers.reason}{hint}")
        if numbers.status == "not-checked" and self.options.require_numerics:
            raise VerificationError(f"--require-numerics: the numbers were not checked: {numbers.reason}")

    def interface(self) -> dict[str, Any]:
        from graphopt.inspecting import described

        graph = self.model.graph
        return {"inputs": [*map(described, graph.inputs)], "outputs": [*map(described, graph.outputs)]}

    def summary(self, numbers: Numbers) -> dict[str, Any]:
        assert self.result is not None
        records = self.result.timings.records
        return {
            "before": self.before,
            "after": {"nodes": sites.count_nodes(self.model), "bytes": model_bytes(self.model)},
            "opset": dict(sorted(self.model.opset_imports.items())),
            "pipeline": str(self.pipeline),
            "rewrites": len(self.result.rewrites),
            "effects": self.result.effects(),
            "idle": sorted(name for name, count in self.result.effects().items() if not count),
            "passes": [
                {"pass": r.spec, "seconds": round(r.seconds, 6), "rewrites": r.rewrites, "nodes": r.nodes}
                for r in records
            ],
            "remarks": [remark.as_json() for remark in self.result.ctx.remarks],
            "numerics": numbers.as_json(),
            "seconds": {**self.seconds, "numerics": numbers.seconds},
        }
