"""Finds what broke a model: the pass and the single rewrite by bisection, then the runtime's own optimizers.

The oracle is the IR verifier, the numerics check, or a user's command that gets the model's path and exits non-zero
when it is bad.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.calibrationflags import open_calibration
from graphopt.checks import Check, Numbers, loosest, runs_elsewhere
from graphopt.driver import Options, plan_pipeline
from graphopt.errors import GraphoptError, VerificationError
from graphopt.frontends.capture import Source, capture
from graphopt.gating import feeds_of
from graphopt.ir.rewrite_log import Rewrite
from graphopt.ir.writer import write
from graphopt.manager.bisect import first_bad
from graphopt.manager.context import Context
from graphopt.manager.instruments import Instruments, Timings
from graphopt.manager.pipeline import Pipeline
from graphopt.manager.registry import make_target
from graphopt.manager.runner import RunResult, run
from graphopt.sitetimer import SiteTimer
from graphopt.target import RUN_BYTES, RUN_SECONDS

if TYPE_CHECKING:
    from graphopt.numerics import NumericsReport, ToleranceClass
    from graphopt.target import Target

_COMMAND_SECONDS = 600


@dataclass(frozen=True)
class Blame:
    """Who is to blame: a rewrite of ours, the model itself, an optimizer of the runtime, or nobody.

    Attributes:
        culprit: "rewrite", "input", "runtime-optimizer" or "none".
        rewrite: the first bad rewrite, with its pass and site.
        optimizer: name of the runtime's optimizer.
        rewrites: rewrites applied by the whole pipeline.
        evaluations: how often a model was judged.
        reason: what the oracle said about the bad model.
    """

    culprit: str
    rewrite: Rewrite | None
    optimizer: str | None
    rewrites: int
    evaluations: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        spent = f"({self.rewrites} rewrites, {self.evaluations} evaluations)"
        if self.rewrite is not None:
            r = self.rewrite
            where = f"pass {r.pass_name!r} at {r.site} ({r.op})"
            return f"rewrite {r.number} is the first bad one: {where} {spent}: {self.reason}"
        if self.culprit == "input":
            return f"the untouched model is bad already {spent}: {self.reason}"
        if self.optimizer is not None:
            return (
                f"the pipeline is good; ONNX Runtime's optimizer {self.optimizer!r} is to blame {spent}: {self.reason}"
            )
        return f"nothing is bad {spent}"


def bisect(
    source: Source,
    target: str | Target | None = None,
    options: Options | None = None,
    command: str | None = None,
    runtime: bool = True,
) -> Blame:
    """Find the first bad rewrite of a pipeline on a model.

    Args:
        source: As for driver.optimize.
        target: Whose ops may be emitted.
        options: What to run; `data` are the feeds of the numerics oracle.
        command: Shell command with `{}` for the model's path; non-zero exit means bad. None: verifier and numerics.
        runtime: When our rewrites are good, search ONNX Runtime's own optimizers too.

    Raises:
        GraphoptError: the source or the options are wrong, or the command cannot be run.
    """
    options = options or Options()
    chosen = make_target(target) if isinstance(target, str) else target
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        return _Bisection(source, chosen, options, command, Path(scratch)).search(runtime)


class _Bisection:
    def __init__(
        self, source: Source, target: Target | None, options: Options, command: str | None, scratch: Path
    ) -> None:
        self.target, self.options, self.command, self.scratch = target, options, command, scratch
        self.pipeline: Pipeline = plan_pipeline(options, target)
        model, origin = capture(source, options.input_shapes, options.dims)
        reload = None if origin is None else lambda: capture(source, options.input_shapes, options.dims)[0]
        self.check = Check(model, origin, options.data, scratch, reload, elsewhere=runs_elsewhere(target))
        self.calibration = open_calibration(options, model, scratch)
        self.timer = SiteTimer(target, lambda: feeds_of(options, self.check, model), scratch)
        self.reasons: dict[int, str] = {}
        self.tolerance: ToleranceClass = "exact"

    def search(self, runtime: bool) -> Blame:
        reason, result = self.judge(None)
        if self.tolerance == "lossy" and self.command is None and not any(self.check.stretches.all()):
            raise GraphoptError("bisect cannot judge lossy passes, and nothing else changed the model; give --oracle")
        total = len(result.rewrites)
        self.reasons[total] = reason
        found = first_bad(total, lambda n: bool(reason) if n == total else self.is_bad(n))
        bad = found.first_bad
        if bad:
            return Blame("rewrite", result.rewrites[bad - 1], None, total, found.evaluations, self.reasons[bad])
        if bad == 0:
            return Blame("input", None, None, total, found.evaluations, self.reasons[0])
        if runtime and self.command is None:
            return self.runtime(total, found.evaluations)
        return Blame("none", None, None, total, found.evaluations, "")

    def is_bad(self, limit: int) -> bool:
        self.reasons[limit] = self.judge(limit)[0]
        return bool(self.reasons[limit])

    def judge(self, limit: int | None) -> tuple[str, RunResult]:
        """Run the first `limit` rewrites; return why the model is bad ('' when it is good) and the run."""
        model = self.check.fresh()
        ctx = Context(
            model,
            target=self.target,
            evaluate=self.check.evaluate,
            timer=self.timer,
            limit=limit,
            max_growth=self.options.max_growth,
            calibration=self.calibration,
        )
        try:
            watched = self.check.watch(Instruments(verify="end"), "off" if self.command is not None else "end")
            result = run(model, self.pipeline, ctx, watched)
        except VerificationError as failure:
            return str(failure), self._whole(limit, RunResult(Timings(), ctx.rewriter.rewrites, ctx, False))
        self._whole(limit, result)
        path = self.scratch / "bisect.onnx"
        write(model, path)
        return (self._ask_command(path) if self.command is not None else self._ask_numerics(path, result)), result

    def _whole(self, limit: int | None, result: RunResult) -> RunResult:
        """Every prefix is judged by the class of the whole run: an exact rewrite is not blamed for one ulp."""
        if limit is None:
            self.tolerance = loosest(result)
        return result

    def _ask_command(self, path: Path) -> str:
        assert self.command is not None
        command = self.command.replace("{}", str(path)) if "{}" in self.command else f"{self.command} {path}"
        try:
            done = subprocess.run(
                command, shell=True, capture_output=True, timeout=_COMMAND_SECONDS, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return f"the command ran longer than {_COMMAND_SECONDS} s"
        if done.returncode in (126, 127):
            raise GraphoptError(f"--oracle {self.command!r} cannot be run: {done.stderr.strip()}")
        lines = (done.stderr or done.stdout).strip().splitlines()
        return f"the command exited {done.returncode}{': ' + lines[-1] if lines else ''}" if done.returncode else ""

    def _ask_numerics(self, path: Path, result: RunResult) -> str:
        report: NumericsReport | Numbers
        if self.tolerance == "lossy":  # what lies between lossy passes can be judged, they themselves cannot
            report = self.check.end(path, result)
            judged = all(part["status"] == "passed" for part in report.details.get("stretches", ()))
        else:
            report = self.check.compare(path, self.tolerance)
            judged = report.status == "passed"
        if report.status != "failed" and not judged:
            reason = report.reason.removesuffix("; give --data")
            raise GraphoptError(f"bisect cannot judge this model: {reason}; give --data or --oracle")
        return report.reason if report.status == "failed" else ""

    def runtime(self, total: int, evaluations: int) -> Blame:
        """Search ONNX Runtime's optimizers: enable the first k of its list; see when the result leaves the plain."""
        from graphopt.targets.onnxruntime.optimizers import RUNTIME_OPTIMIZERS as NAMES

        path = self.scratch / "bisect.onnx"
        plain = self._outputs(path, NAMES, "disable_all")
        reasons: dict[int, str] = {}

        def is_bad(count: int) -> bool:
            reasons[count] = _far(plain, self._outputs(path, NAMES[count:], "all"))
            return bool(reasons[count])

        found = first_bad(len(NAMES), is_bad)
        spent = evaluations + found.evaluations
        if found.first_bad is None:
            return Blame("none", None, None, total, spent, "")
        name = NAMES[found.first_bad - 1] if found.first_bad else "one that is not in the list of known optimizers"
        return Blame("runtime-optimizer", None, name, total, spent, reasons[found.first_bad])

    def _outputs(self, path: Path, disabled: tuple[str, ...], level: Any) -> list[dict[str, Any]]:
        from graphopt.targets.onnxruntime.runner import open_runner
        from graphopt.targets.onnxruntime.settings import SessionSettings

        settings = SessionSettings().reference().replace(optimization_level=level, disabled_optimizers=disabled)
        with open_runner(path, settings, time_limit=RUN_SECONDS, memory_limit=RUN_BYTES) as runner:
            return [runner.run(case.feeds) for case in self.check.cases() if not case.special]


def _far(plain: list[dict[str, Any]], optimized: list[dict[str, Any]]) -> str:
    """Why two runs of one model are too far apart to be rounding, '' when they are not."""
    import numpy as np

    from graphopt.numerics import TOLERANCES, distance, magnitude

    for first, second in zip(plain, optimized, strict=True):
        for name, value in first.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind in "OUST" or not value.size:
                continue
            error, largest = float(np.max(distance(value, second[name], strict=False))), magnitude(value)
            if error > TOLERANCES["reassociates"].ill_conditioned * max(largest, float(np.finfo(np.float32).tiny)):
                return f"output {name!r} moves by {error:.3g}, its largest value is {largest:.3g}"
    return ""
