"""Measures a compiled model against the float model for the same target: agreement, the user's metric, time, size.

    found = evaluate(gates, candidate, base, samples=..., function=...)
    gates.require(found.outcomes)

Not here: what gates say (gates.py), how the float model is made (gating.py), and timing itself (timing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GateError, GraphoptError
from graphopt.gates import AGREEMENT, Gate, Outcome
from graphopt.quantization import metrics
from graphopt.quantization.metrics import Interval
from graphopt.timing import BenchPlan, BenchReport, bench

if TYPE_CHECKING:
    import numpy as np

    from graphopt.running import Runnable
    from graphopt.target import Runner

    Feeds = Mapping[str, Any]

SAMPLES = 512
"""Samples that agreement is measured on, at most."""
LATENCY = BenchPlan(seconds=2.0)
_PATIENCE = 3  # times longer where the first measurement cannot tell on which side of the limit the ratio lies
_COARSEST = 0.03
"""A measurement coarser than this does not excuse a miss: the machine is too busy to judge by."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, as `report.json` shows it, and the outcome of each gate."""

    outcomes: tuple[Outcome, ...]
    details: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return _finite({"gates": [outcome.as_json() for outcome in self.outcomes], **self.details})


@dataclass(frozen=True)
class Samples:
    """Where agreement is measured: feeds in batches, each time the same, and what they are called."""

    origin: str
    batches: Callable[[], Iterable[Feeds]]


@dataclass(frozen=True)
class Compiled:
    """A compiled model: how to open it, and the size of its files in bytes."""

    runnable: Runnable
    bytes: int


def evaluate(
    gates: Sequence[Gate],
    candidate: Compiled,
    base: Compiled,
    *,
    samples: Samples | None = None,
    feeds: Feeds | None = None,
    function: Callable[[Runner], Any] | None = None,
    name: str = "",
) -> Evaluation:
    """Measure what the gates ask for, and the user's metric whenever there is one.

    Args:
        gates: what is asked.
        candidate, base: the model to judge, and the float model for the same target; the same object when nothing lossy
            was done, and then relative figures are 1 by definition.
        samples: for gates on agreement.
        feeds: of one run, for latency; None takes the first sample.
        function: the user's metric: a number, or one score per sample.
        name: what to call it.

    Raises:
        GateError: a gate cannot be judged here, since the target does not run on this machine.
        GraphoptError: samples or a metric are missing, or the function fails.
    """
    check_complete(gates, samples is not None, function is not None)
    asked = {gate.name for gate in gates}
    missing = candidate.runnable.target.available()
    if missing is not None and (function is not None or asked - {"size"}):
        first = next((str(gate) for gate in gates if gate.name != "size"), "--eval")
        raise GateError(f"{first} cannot be judged here: {missing}")
    details: dict[str, Any] = {}
    judge: dict[str, Callable[[Gate], Outcome]] = {"size": lambda gate: _size(gate, candidate, base)}
    if function is not None:
        metric = user_metric(function, name, candidate.runnable, base.runnable)
        details["metric"] = metric.as_json()
        judge["metric"] = metric.outcome
    if asked & AGREEMENT:
        assert samples is not None
        agreement = measure_agreement(candidate.runnable, base.runnable, samples)
        details["agreement"] = agreement.as_json()
        judge |= dict.fromkeys(AGREEMENT, agreement.outcome)
    if "latency" in asked:
        latency = Latency([candidate], base, feeds if feeds is not None else _first(samples))
        judge["latency"] = latency.outcome
    outcomes = tuple(judge[gate.name](gate) for gate in gates)
    if "latency" in asked:
        details["latency"] = latency.as_json()
    if "size" in asked:
        details["size"] = {"float": base.bytes, "compiled": candidate.bytes}
    return Evaluation(outcomes, details)


def check_complete(gates: Sequence[Gate], has_samples: bool, has_metric: bool) -> None:
    """Raise when a gate needs samples or a metric that are not given.

    Raises:
        GraphoptError: names the gate and the flag.
    """
    for gate in gates:
        if gate.name in AGREEMENT and not has_samples:
            raise GraphoptError(f"gate {gate} needs samples to compare outputs on: give --data or --calibration-data")
        if gate.name == "metric" and not has_metric:
            raise GraphoptError(
                f"gate {gate} needs a metric: give --eval module:function or file.py:function, which takes a runner "
                "and returns a number; without labels use top1>=, cosine>= or sqnr>="
            )


# ---- the user's metric ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric of both models; intervals are known where the function returns one score per sample."""

    name: str
    float_value: Interval
    value: Interval
    ratio: Interval
    samples: int

    def outcome(self, gate: Gate) -> Outcome:
        """Judge a gate.

        Raises:
            GateError: the gate is relative and the float model's metric is 0 or below.
        """
        if gate.relative and self.float_value.value <= 0:
            raise GateError(
                f"gate {gate} cannot be judged: {self.name} of the float model is {self.float_value.value:g}, "
                "and a factor of that says nothing; give an absolute limit"
            )
        chosen = self.ratio if gate.relative else self.value
        detail = f"({self.name}: float {self.float_value.value:.5g}, compiled {self.value.value:.5g}"
        detail += f", {self.samples} samples)" if self.samples else ")"
        return Outcome(gate, chosen.value, chosen if self.samples else None, detail)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "samples": self.samples,
            "float": asdict(self.float_value),
            "compiled": asdict(self.value),
            "ratio": asdict(self.ratio),
        }


def user_metric(function: Callable[[Runner], Any], name: str, candidate: Runnable, base: Runnable) -> Metric:
    """Call the user's function with a runner of each model.

    Raises:
        GraphoptError: it raises, or returns anything but finite numbers, or not the same samples for both.
    """
    before = _scores(function, name, base)
    after = before if candidate is base else _scores(function, name, candidate)
    if len(before) != len(after):
        raise GraphoptError(
            f"--eval {name} gave {len(before)} scores for the float model and {len(after)} for the other"
        )
    return Metric(
        name,
        metrics.mean_interval(before),
        metrics.mean_interval(after),
        metrics.ratio_interval(after, before),
        len(before) if len(before) > 1 else 0,
    )


def _scores(function: Callable[[Runner], Any], name: str, model: Runnable) -> np.ndarray:
    import numpy as np

    with model.open_float() as runner:
        try:
            result = function(runner)
        except GraphoptError as error:
            raise GraphoptError(f"--eval {name}: {error}") from error
        except Exception as error:  # the user's code may fail in any way
            text = " ".join(str(error).split())[:200]
            raise GraphoptError(f"--eval {name} raised {type(error).__name__}: {text}") from error
    try:
        scores = np.asarray(result, np.float64).reshape(-1)
    except (TypeError, ValueError):
        scores = np.zeros(0)
    if not scores.size or not np.isfinite(scores).all():
        raise GraphoptError(f"--eval {name} must return a finite number, or one per sample; it returned {result!r:.80}")
    return scores


# ---- agreement with the float model ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutputAgreement:
    """One output; `top1` is None when its last axis holds no classes."""

    name: str
    top1: Interval | None
    cosine: Interval
    sqnr: Interval
    max_abs: float


@dataclass(frozen=True)
class Agreement:
    """How far the outputs are from those of the float model. Gates take the worst, top-1 the first with classes."""

    outputs: tuple[OutputAgreement, ...]
    samples: int
    origin: str

    def outcome(self, gate: Gate) -> Outcome:
        """Judge a gate.

        Raises:
            GateError: it is about classes and no output has any.
        """
        where = f"on {self.samples} samples of {self.origin}"
        if gate.name == "max-abs":
            worst = max(self.outputs, key=lambda output: _rank(output.max_abs))
            return Outcome(gate, worst.max_abs, None, f"({worst.name}, {where})")
        if gate.name == "top1":
            found = next((output for output in self.outputs if output.top1 is not None), None)
            if found is None or found.top1 is None:
                raise GateError(f"gate {gate} cannot be judged: no output has classes on its last axis")
            return Outcome(gate, found.top1.value, found.top1, f"({found.name}, {where})")
        worst = min(self.outputs, key=lambda output: -_rank(-getattr(output, gate.name).value))
        interval: Interval = getattr(worst, gate.name)
        return Outcome(gate, interval.value, interval, f"({worst.name}, {where})")

    def as_json(self) -> dict[str, Any]:
        return {
            "data": self.origin,
            "samples": self.samples,
            "outputs": [asdict(output) for output in self.outputs],
        }


def measure_agreement(candidate: Runnable, base: Runnable, samples: Samples) -> Agreement:
    """Run both models on the samples and compare every output of floats, sample by sample.

    Raises:
        GraphoptError: a model refuses the samples, there are none, or no output is of floats.
    """
    scores: dict[str, _OutputScores] = {}
    count = 0
    with base.open_float() as a, candidate.open_float() as b:
        for feeds in samples.batches():
            x, y = a.run(feeds), b.run(feeds)
            size = _batch_of(feeds, x)
            count += size
            for name, value in x.items():
                if getattr(value, "dtype", None) is None or value.dtype.kind not in "fV" or name not in y:
                    continue
                rows = (list(value), list(y[name])) if size > 1 else ([value], [y[name]])
                scores.setdefault(name, _OutputScores()).add(*rows)
    if not scores:
        what = "there are no samples" if not count else "no output is of floats"
        raise GraphoptError(f"outputs cannot be compared on {samples.origin}: {what}")
    return Agreement(tuple(item.result(name) for name, item in scores.items()), count, samples.origin)


class _OutputScores:
    """Per-sample scores of one output."""

    def __init__(self) -> None:
        self.columns: dict[str, list[float]] = {}
        self.has_classes = True

    def add(self, x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> None:
        signal, noise = metrics.power(x, y)
        found = {"cosine": metrics.cosine(x, y), "signal": signal, "noise": noise, "max_abs": metrics.max_abs(x, y)}
        self.has_classes = self.has_classes and all(item.ndim > 0 and item.shape[-1] > 1 for item in x)
        if self.has_classes:
            found["top1"] = metrics.top1(x, y)
        for key, values in found.items():
            self.columns.setdefault(key, []).extend(values.tolist())

    def result(self, name: str) -> OutputAgreement:
        columns = self.columns
        return OutputAgreement(
            name=name,
            top1=metrics.mean_interval(columns["top1"]) if self.has_classes else None,
            cosine=metrics.mean_interval(columns["cosine"]),
            sqnr=metrics.ratio_interval(columns["signal"], columns["noise"]).map(metrics.decibels),
            max_abs=max(columns["max_abs"], key=_rank),
        )


def _rank(value: float) -> float:
    """The value, with NaN above all others: it is the worst."""
    return float("inf") if value != value else value


def _batch_of(feeds: Feeds, outputs: Mapping[str, Any]) -> int:
    """Samples in a batch: the common first size of feeds and outputs, else one."""
    sizes = {value.shape[0] if getattr(value, "ndim", 0) else 1 for value in (*feeds.values(), *outputs.values())}
    return sizes.pop() if len(sizes) == 1 else 1


# ---- time and size --------------------------------------------------------------------------------------------------


class Latency:
    """Timings of models in turns with the float model, repeated for longer where a limit lies within an interval.

    Args:
        candidates: models to judge.
        base: the float model; it is timed twice (A/A).
        feeds: of one run, for all of them.
    """

    def __init__(self, candidates: Sequence[Compiled], base: Compiled, feeds: Feeds) -> None:
        self._candidates, self._base, self._feeds = candidates, base, feeds
        self._plan = LATENCY
        self.report = self._measure()

    @property
    def error(self) -> float:
        """What the float model differs from itself, as a part; 0 when that is more than a busy machine may excuse."""
        error = self._spread()
        return error if error <= _COARSEST else 0.0

    def ratio(self, index: int = 0) -> Interval:
        """Time of a candidate over that of the float model."""
        row = self.report.rows[2 + index]
        return Interval(row.ratio, row.ratio_low, row.ratio_high)

    def make_sure(self, limit: float) -> None:
        """Measure again, for longer, when an interval holds the limit."""
        ratios = [self.ratio(index) for index in range(len(self._candidates))]
        if self._plan is LATENCY and any(ratio.low <= limit <= ratio.high for ratio in ratios):
            self._plan = replace(LATENCY, seconds=LATENCY.seconds * _PATIENCE)
            self.report = self._measure()

    def outcome(self, gate: Gate) -> Outcome:
        """Judge the first candidate by a gate."""
        if gate.relative and self._candidates[0] is self._base:
            return Outcome(gate, 1.0, None, "(nothing lossy was done: it is the float model)")
        found = self._outcome(gate)
        if gate.relative and not found.met:
            self.make_sure(gate.limit)
            found = self._outcome(gate)
        return found

    def as_json(self) -> dict[str, Any]:
        """The timings; the files lay in scratch folders, so rows have roles in place of paths."""
        rows = zip(self.report.rows, ("float", "float", *["compiled"] * len(self._candidates)), strict=True)
        return {**self.report.to_json(), "rows": [{**asdict(row), "path": role} for row, role in rows]}

    def _outcome(self, gate: Gate) -> Outcome:
        before, after = self.report.rows[0].median_ms, self.report.rows[2].median_ms
        detail = f"({before:.4g} ms float, {after:.4g} ms compiled, A/A within {self._spread():.2%})"
        if not gate.relative:
            return Outcome(gate, after, None, detail)
        return Outcome(gate, self.ratio().value, self.ratio(), detail, self.error)

    def _spread(self) -> float:
        again = self.report.rows[1]
        return max(abs(again.ratio_low - 1), abs(again.ratio_high - 1))

    def _measure(self) -> BenchReport:
        models = [self._base.runnable, *(item.runnable for item in self._candidates)]
        by_path = {item.path: item for item in models}

        def opener(path: Path) -> Runner:
            return by_path[path].open_float(force_spinning_stop=True)

        return bench([item.path for item in models], self._feeds, opener, self._plan)


def _size(gate: Gate, candidate: Compiled, base: Compiled) -> Outcome:
    detail = f"({base.bytes} bytes float, {candidate.bytes} compiled)"
    return Outcome(gate, candidate.bytes / base.bytes if gate.relative else float(candidate.bytes), None, detail)


def _first(samples: Samples | None) -> Feeds:
    if samples is None:
        raise GraphoptError("there is nothing to time the models on: give --data or --calibration-data")
    return next(iter(samples.batches()))


def _finite(data: Any) -> Any:
    """JSON has no NaN and no infinities: they become text."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and data - data != 0 else data
