"""A reference model with its feeds, outputs and noise floor, against which any number of results are judged.

Everything is computed on first need and kept, so that bisection and checks after each pass pay for it once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.codes import FloatFacing, float_facing
from graphopt.errors import GraphoptError, RuntimeDied
from graphopt.numerics import (
    TOLERANCES,
    Case,
    NumericsReport,
    OutputError,
    RunnerFactory,
    RunSetting,
    ToleranceClass,
    comparable,
    distance,
    judge,
    magnitude,
    rounding,
)
from graphopt.randomness import random_outputs

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.target import Runner

    Results = list[dict[str, Any]]

_PLAIN = RunSetting("off", threads=1)  # `exact` is defined by this one
_SPECIALS = (("nan", "NaN"), ("inf", "infinities"))


class Reference:
    """See the module. Open with `Reference.open`; a context manager.

    Attributes:
        cases: the feeds in use; empty when the reference ran on none.
        unchecked: why nothing can be checked, else "".
        refusal: what the runtime said when it did not load the reference, else "".
        notes: lines for the user (refused variants, ill-conditioned feeds).
    """

    def __init__(self, path: Path, model: ir.Model, factory: RunnerFactory) -> None:
        self.path = path
        self.cases: list[Case] = []
        self.unchecked = ""
        self.refusal = ""
        self.notes: list[str] = []
        self._factory = factory
        self._random = random_outputs(model)
        self._floats = _float_ends(model)
        self._empty = _empty_outputs(model)
        self._plain: Results = []
        self._others: list[Results] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        model: ir.Model,
        factory: RunnerFactory,
        *,
        seed: int = 0,
        data: Sequence[Case] = (),
        specials: bool = True,
    ) -> Reference:
        """Choose feeds and run the reference on them.

        Args:
            path: the reference model's file.
            model: the same model; feeds are made from its graph.
            factory: opens a model for running.
            seed: of made feeds.
            data: feeds of the user; none are made then, except those with NaN and infinities.
            specials: add two cases with NaN and with infinities in the floating inputs.

        A reference that refuses all feeds is no error: `unchecked` says why and every verdict is `not-checked`.

        Raises:
            RuntimeDied: the runtime crashes or hangs on the reference before any feeds went through.
        """
        self = cls(path, model, factory)
        try:
            with self._load() as runner:
                cases = list(data) or _made_cases(model, runner, seed, self.notes)
                if specials and cases:
                    cases += _special_cases(cases[0], seed)
                for case in cases:
                    self._try(runner, case, required=any(case is given for given in data))
        except RuntimeDied as error:
            raise RuntimeDied(f"{error}; give --data with inputs that it takes, or --numerics off") from None
        except GraphoptError as error:
            self.unchecked = str(error)
            self.cases, self._plain = [], []
        if not self.cases and not self.unchecked:
            self.unchecked = self.notes[0] if self.notes else "the reference ran on no feeds; give --data"
        return self

    def _load(self) -> Runner:
        try:
            return self._factory(self.path, _PLAIN)
        except GraphoptError as error:
            self.refusal = str(error)
            raise

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *exc: object) -> None:
        self._plain, self._others = [], None

    def judge(
        self,
        candidate: Path,
        tolerance: ToleranceClass,
        factory: RunnerFactory | None = None,
        *,
        noisy: bool = False,
        lacks: Callable[[GraphoptError], str | None] | None = None,
    ) -> NumericsReport:
        """Run `candidate` on the reference's feeds and judge every output by the tolerance class.

        Inputs and outputs that are float32 in the reference and codes or half precision in the candidate are converted
        outside it, and a note says so.

        Args:
            candidate: file of the result.
            tolerance: a key of `TOLERANCES`.
            factory: opens the candidate, e.g. on another device; None opens it as the reference was.
            noisy: that device may compute with fewer bits than the model has (TF32): what it changes on the reference
                itself is part of the noise floor. Where it loses a NaN or infinity on the reference it may in any case.
            lacks: what an error says of a kernel that is missing where the reference is at home; the candidate is for
                somewhere else, so that this is no fault of it.
        """
        labels = tuple(case.label for case in self.cases)
        if self.unchecked:
            return NumericsReport("not-checked", tolerance, self.unchecked)
        results: Results = []
        try:
            opened = (factory or self._factory)(candidate, _PLAIN)
            with float_facing(candidate, opened, self._floats) as runner:
                converted = runner.converted if isinstance(runner, FloatFacing) else ()
                for case in self.cases:
                    results.append(runner.run(case.feeds))
        except GraphoptError as error:
            lacking = lacks(error) if lacks is not None and factory is None and not results else None
            if lacking is not None:
                return NumericsReport("not-checked", tolerance, f"it cannot run here: {lacking}", cases=labels)
            label = self.cases[len(results)].label if len(results) < len(self.cases) else labels[-1]
            return NumericsReport("failed", tolerance, f"the result does not run on {label}: {error}", cases=labels)
        missing = [name for name in self._plain[0] if name not in results[0]]
        if missing:
            return NumericsReport("failed", tolerance, f"the result has no output {missing[0]!r}", cases=labels)
        if list(results[0]) != list(self._plain[0]):
            reason = f"the result's outputs are {list(results[0])}, the reference's {list(self._plain[0])}"
            return NumericsReport("failed", tolerance, reason, cases=labels)
        report = self._verdict(results, tolerance, labels, [], [])
        if report.status == "failed" and factory is not None and tolerance == "reassociates":
            # What the device changes on the reference itself can only allow more, and may take long to find out.
            moved = self._moved(factory)
            report = self._verdict(results, tolerance, labels, moved if noisy else [], moved)
        if not converted:
            return report
        told = f"compared as float32, which the result does not have there: {', '.join(converted)}"
        return replace(report, notes=(*report.notes, told))

    def _moved(self, factory: RunnerFactory | None) -> list[Results]:
        """The reference's results where `factory` runs it; nothing when it is at home or does not run there."""
        if factory is None:
            return []
        try:
            with factory(self.path, _PLAIN) as runner:
                return [[runner.run(case.feeds) for case in self.cases]]
        except GraphoptError as error:
            reason = textwrap.shorten(str(error), 160)
            self.notes.append(f"the reference does not run on the target, so its noise there is not known: {reason}")
            return []

    def floor(self, name: str, case: int, moved: Sequence[Results] = ()) -> float:
        """Absolute noise floor of one output on one case: what the reference itself changes, at least 16 eps."""
        plain = self._plain[case][name]
        # One number for all of a sequence: its members come out of one graph.
        return max(
            _eps_floor(plain),
            *(_gap(plain, other[case].get(name)) for other in (*self._noise(), *moved)),
        )

    def _verdict(
        self,
        results: Results,
        tolerance: ToleranceClass,
        labels: tuple[str, ...],
        moved: list[Results],
        elsewhere: list[Results],
    ) -> NumericsReport:
        judged = tolerance != "lossy"
        worst: dict[str, OutputError] = {}
        notes: list[str] = []
        told: set[str] = set()  # outputs that some feeds are a fair test of
        seen: set[str] = set(self._empty)  # outputs of which some element was compared
        for index, case in enumerate(self.cases):
            for name, expected in self._plain[index].items():
                if name in self._random or (case.special and not judged):
                    continue
                floor = self.floor(name, index, moved) if tolerance == "reassociates" else 0.0
                excused = self._excused(name, index, elsewhere) if tolerance == "reassociates" else None
                error = judge(name, expected, results[index][name], tolerance, floor, case=case.label, excused=excused)
                if name not in worst or _badness(error) > _badness(worst[name]):
                    worst[name] = error
                if not case.special and comparable(expected, excused):
                    seen.add(name)
                if case.special or tolerance != "reassociates":
                    continue
                ill = _ill_conditioned(name, expected, floor, case.label)
                notes += ill
                if not ill:
                    told.add(name)
        errors = tuple(worst.values())
        notes[:0] = self.notes  # known only now: finding the noise floor may add to them
        if self._random:
            notes.append(f"not compared, since they depend on random ops: {', '.join(sorted(self._random))}")
        if not errors:
            reason = "every output depends on a random op"
            return NumericsReport("not-checked", tolerance, reason, (), labels, tuple(notes))
        if not judged:
            largest = max(errors, key=lambda error: error.max_rel)
            reason = (
                "lossy passes are measured, not judged: the largest difference is "
                f"{largest.max_rel:.2g} of the largest value of {largest.name!r}"
            )
            return NumericsReport("not-checked", tolerance, reason, errors, labels, tuple(notes))
        failed = [error for error in errors if not error.within]
        unseen = sorted(name for name in worst if name not in seen)
        if not failed and unseen:
            return NumericsReport("not-checked", tolerance, _unseen(unseen), errors, labels, tuple(notes))
        blind = sorted(name for name in worst if name not in told) if tolerance == "reassociates" else []
        if not failed and blind:
            reason = (
                f"output {blind[0]!r} is ill-conditioned on all feeds: its noise floor would hide real errors; "
                "give --data with real inputs"
            )
            return NumericsReport("not-checked", tolerance, reason, errors, labels, tuple(notes))
        if not failed:
            return NumericsReport("passed", tolerance, "", errors, labels, tuple(notes))
        first = max(failed, key=_badness)
        reason = (
            f"output {first.name!r} differs by {first.max_abs:.3g} at {list(first.index)} (expected {first.expected}, "
            f"got {first.got}; allowed {first.limit:.3g}) on {first.case}"
        )
        return NumericsReport("failed", tolerance, reason, errors, labels, tuple(notes))

    def _try(self, runner: Runner, case: Case, *, required: bool) -> None:
        try:
            outputs = runner.run(case.feeds)
        except GraphoptError as error:
            if required or (isinstance(error, RuntimeDied) and not self.cases):
                raise
            self.notes.append(f"the reference refuses {case.label}: {textwrap.shorten(str(error), 160)}")
            return
        self.cases.append(case)
        self._plain.append(outputs)

    def _noise(self) -> list[Results]:
        """The reference run in other ways: other optimization levels, and inputs moved by one ulp."""
        if self._others is None:
            self._others = []
            for setting in (RunSetting("basic"), RunSetting("all")):
                try:
                    with self._factory(self.path, setting) as runner:
                        self._others.append([runner.run(case.feeds) for case in self.cases])
                except GraphoptError as error:  # a fault of the runtime's optimizers says nothing about the result
                    reason = textwrap.shorten(str(error), 160)
                    self.notes.append(f"the reference fails with optimizations {setting.optimizations!r}: {reason}")
            with self._factory(self.path, _PLAIN) as runner:
                for sign in (1, -1):
                    try:
                        self._others.append([runner.run(_nudged(case.feeds, sign)) for case in self.cases])
                    except GraphoptError as error:  # a size that is computed from floats may jump
                        reason = textwrap.shorten(str(error), 160)
                        self.notes.append(f"the reference refuses its inputs moved by one ulp: {reason}")
        return self._others

    def _excused(self, name: str, case: int, moved: Sequence[Results]) -> np.ndarray | None:
        """Elements where the reference is finite in one way of running it and not in another."""
        import numpy as np

        plain = self._plain[case][name]
        if not isinstance(plain, np.ndarray) or plain.dtype.kind in "OUSTbiu":
            return None
        finite = np.isfinite(plain.astype(np.complex128))
        out = np.zeros(plain.shape, dtype=bool)
        for other in (*self._noise(), *moved):
            value = other[case].get(name)
            if isinstance(value, np.ndarray) and value.shape == plain.shape:
                out |= np.isfinite(value.astype(np.complex128)) != finite
        return out


def _eps_floor(plain: Any) -> float:
    """The least noise floor of an output: so many eps of its type times its largest magnitude."""
    import numpy as np

    if isinstance(plain, list):
        return max((_eps_floor(item) for item in plain), default=0.0)
    if not isinstance(plain, np.ndarray) or plain.dtype.kind in "OUST" or not plain.size:
        return 0.0
    return TOLERANCES["reassociates"].eps * rounding(plain.dtype) * magnitude(plain)


def _gap(plain: Any, other: Any) -> float:
    """The largest finite difference of two results of one shape; of sequences, over their members."""
    import numpy as np

    if isinstance(plain, list) and isinstance(other, list) and len(plain) == len(other):
        return max((_gap(a, b) for a, b in zip(plain, other, strict=True)), default=0.0)
    if not isinstance(plain, np.ndarray) or plain.dtype.kind in "OUST" or not plain.size:
        return 0.0
    if not isinstance(other, np.ndarray) or other.shape != plain.shape:
        return 0.0
    gaps = distance(plain, other, strict=False)
    return float(np.max(gaps, where=np.isfinite(gaps), initial=0.0))


def _float_ends(model: ir.Model) -> frozenset[str]:
    """Names of the inputs and outputs that are tensors of float32."""
    from graphopt import ir

    ends = (*model.graph.inputs, *model.graph.outputs)
    return frozenset(str(value.name) for value in ends if value.type == ir.TensorType(ir.DataType.FLOAT))


def _empty_outputs(model: ir.Model) -> frozenset[str]:
    """Names of the graph outputs that have no elements by their declared shape."""
    return frozenset(str(value.name) for value in model.graph.outputs if value.shape is not None and 0 in value.shape)


def _unseen(names: Sequence[str]) -> str:
    quoted = ", ".join(repr(name) for name in names)
    return (
        f"no finite element of output{'s' if len(names) > 1 else ''} {quoted} was compared: "
        "all feeds leave nothing there but NaN and infinities, or no element; give --data with other inputs"
    )


def _made_cases(model: ir.Model, runner: Runner, seed: int, notes: list[str]) -> list[Case]:
    from graphopt.feeds import bindings_of, make_feeds, variant_count

    bindings, refused = bindings_of(model, runner, seed)
    if not bindings:
        notes.append(f"the reference does not run on made feeds: {refused[0]}; give --data")
    if len(bindings) == 1 and bindings[0]:
        notes.append(f"checked at one binding only, no other was accepted: {bindings[0]}")
    cases = []
    for binding in bindings:
        sizes = " ".join(f"{name}={size}" for name, size in binding.items()) or "static shapes"
        for variant in range(variant_count(model)):
            label = f"seed {seed}, {sizes}" + (f", variant {variant}" if variant else "")
            cases.append(Case(label, make_feeds(model, seed, binding, variant)))
    return cases


def _special_cases(case: Case, seed: int) -> list[Case]:
    """Copies of a case with a few NaN, and with a few infinities, in every floating input; none without such inputs."""
    import numpy as np

    cases = []
    for kind, text in _SPECIALS:
        rng = np.random.default_rng([seed, len(kind)])
        feeds = dict(case.feeds)
        for name, value in feeds.items():
            if not isinstance(value, np.ndarray) or not rounding(value.dtype) or not value.size:
                continue
            planted = value.copy()
            count = min(value.size, max(2, min(4, value.size // 64)))  # two at least: both infinities
            places = rng.choice(value.size, size=count, replace=False)
            planted.reshape(-1)[places] = np.resize([np.nan] if kind == "nan" else [np.inf, -np.inf], count)
            feeds[name] = planted
        if any(feeds[name] is not case.feeds[name] for name in feeds):
            cases.append(replace(case, label=f"{case.label}, {text} in the inputs", feeds=feeds, special=True))
    return cases


def _nudged(feeds: Any, sign: int) -> dict[str, Any]:
    """Feeds whose floating values are larger (sign 1) or smaller in magnitude by about one ulp; zeros stay."""
    import numpy as np

    out = {}
    for name, value in feeds.items():
        eps = rounding(value.dtype) if isinstance(value, np.ndarray) else 0.0
        if eps:
            wide = np.complex128 if value.dtype.kind == "c" else np.float64
            with np.errstate(invalid="ignore", over="ignore"):
                value = (value.astype(wide) * (1 + sign * eps)).astype(value.dtype)
        out[name] = value
    return out


def _ill_conditioned(name: str, expected: Any, floor: float, label: str) -> list[str]:
    scale = _scale(expected)
    if not scale or floor / scale <= TOLERANCES["reassociates"].ill_conditioned:
        return []
    return [
        f"ill-conditioned feeds: the reference itself changes output {name!r} by {floor / scale:.2g} of its maximum on "
        f"{label}; give --data with real inputs"
    ]


def _scale(expected: Any) -> float:
    import numpy as np

    if isinstance(expected, list):
        return max((_scale(item) for item in expected), default=0.0)
    return magnitude(expected) if isinstance(expected, np.ndarray) else 0.0


def _badness(error: OutputError) -> float:
    if error.max_abs == 0:
        return 0.0
    return error.max_abs / error.limit if error.limit else float("inf")
