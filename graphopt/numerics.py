"""Does a result compute what the reference computes? Tolerance classes, noise floor, verdict.

    reference = Reference.open(path, model, factory)           # feeds, outputs and noise floor, computed once
    report = reference.judge(candidate, "reassociates")        # NumericsReport: passed | failed | not-checked
    compare(reference_path, candidate_path, model, factory, "exact")      # both in one call

`factory(path, RunSetting)` gives a Runner; for ONNX Runtime it is targets.onnxruntime.runner.runner_factory().
`TOLERANCES` is the only place where tolerances stand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.target import Runner

ToleranceClass = Literal["exact", "reassociates", "lossy"]
Status = Literal["passed", "failed", "not-checked"]


@dataclass(frozen=True)
class RunSetting:
    """How a model is to be run: the runtime's own optimizations, and threads (0: as many as the runtime likes)."""

    optimizations: Literal["off", "basic", "all"] = "off"
    threads: int = 0


RunnerFactory = Callable[[Path, RunSetting], "Runner"]


@dataclass(frozen=True)
class Tolerance:
    """What one class of numerical change may do.

    Attributes:
        floors: the error may be this many noise floors; None judges nothing, 0 wants equality.
        eps: the noise floor is at least this many eps of the output's type times its largest magnitude.
        quantum: allowed difference of 8-bit integer outputs, which round what the floats before them did.
        ill_conditioned: a noise floor above this part of the largest magnitude says that the feeds are no test.
    """

    floors: float | None
    eps: float = 16.0
    quantum: int = 0
    ill_conditioned: float = 1e-3


# exact: bit-identical with the runtime's optimizations off, one thread; NaN equals NaN and 0 equals -0.
# reassociates: at most 8 times what the reference changes by itself. lossy: measured and reported, not judged.
TOLERANCES: Mapping[str, Tolerance] = {
    "exact": Tolerance(floors=0.0),
    "reassociates": Tolerance(floors=8.0, quantum=1),
    "lossy": Tolerance(floors=None),
}


@dataclass(frozen=True)
class Case:
    """One set of feeds, what it was made from, and whether NaN or infinities were put into it."""

    label: str
    feeds: Mapping[str, Any] = field(repr=False)
    special: bool = False


@dataclass(frozen=True)
class OutputError:
    """The largest difference in one output, over all cases.

    Attributes:
        max_abs: largest absolute difference; inf when values are not comparable (text, NaN against a number).
        max_rel: `max_abs` over the reference output's largest finite magnitude.
        floor: noise floor in absolute units; `limit` is what was allowed.
        index: where the worst element is; `expected` and `got` are its values.
        case: label of the feeds.
    """

    name: str
    max_abs: float
    max_rel: float
    floor: float
    limit: float
    index: tuple[int, ...] = ()
    expected: str = ""
    got: str = ""
    case: str = ""

    @property
    def within(self) -> bool:
        return self.max_abs <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON values; infinities become text, as JSON has none."""
        values = dataclasses.asdict(self)
        return {key: str(value) if value in (float("inf"), float("-inf")) else value for key, value in values.items()}


@dataclass(frozen=True)
class NumericsReport:
    """The verdict, its reason in one line, and the worst difference of each output."""

    status: Status
    tolerance: ToleranceClass
    reason: str = ""
    outputs: tuple[OutputError, ...] = ()
    cases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        worst = max(self.outputs, key=lambda error: error.max_rel, default=None)
        size = f", largest relative difference {worst.max_rel:.2g} in {worst.name!r}" if worst else ""
        why = f"({self.reason})" if self.reason else ""
        return f"numerics {self.status}{why}: {self.tolerance}, {len(self.cases)} feeds{size}"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, for manifests and reports."""
        return {
            "status": self.status,
            "tolerance": self.tolerance,
            "reason": self.reason,
            "outputs": [error.to_json() for error in self.outputs],
            "cases": list(self.cases),
            "notes": list(self.notes),
        }


def judge(
    name: str,
    expected: Any,
    got: Any,
    tolerance: ToleranceClass,
    floor: float = 0.0,
    *,
    case: str = "",
    excused: np.ndarray | None = None,
) -> OutputError:
    """Compare one output of the reference with the result's.

    Args:
        name: the output's name, for the report.
        expected, got: arrays, lists of arrays (sequences) or None (absent optionals).
        tolerance: a key of `TOLERANCES`.
        floor: absolute noise floor of this output on these feeds.
        case: label of the feeds.
        excused: elements where the reference itself is NaN or infinite in one run and not in another; not compared.

    Returns:
        The largest difference with its limit; `within` is the verdict for this output.
    """
    import numpy as np

    if isinstance(expected, list) or isinstance(got, list) or expected is None or got is None:
        return _judge_nested(name, expected, got, tolerance, floor, case)
    if isinstance(expected, dict):
        return _differs(name, case, str(expected), str(got)) if expected != got else _same(name, case)
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.dtype != got.dtype or expected.shape != got.shape:
        there, here = f"{expected.dtype}{list(expected.shape)}", f"{got.dtype}{list(got.shape)}"
        return _differs(name, case, there, here)
    if expected.dtype.kind in "OUST" or expected.size == 0:
        unequal = np.argwhere(expected != got)
        if not len(unequal):
            return _same(name, case)
        index = tuple(int(item) for item in unequal[0])
        return _differs(name, case, _short(expected[index]), _short(got[index]), index)
    difference = distance(expected, got, strict=TOLERANCES[tolerance].floors == 0)
    if excused is not None:
        difference = np.where(excused, 0.0, difference)
    worst = tuple(int(item) for item in np.unravel_index(int(np.argmax(difference)), difference.shape))
    max_abs = float(difference[worst])
    scale = magnitude(expected)
    return OutputError(
        name=name,
        max_abs=max_abs,
        max_rel=max_abs / scale if scale else (0.0 if max_abs == 0 else float("inf")),
        floor=floor,
        limit=limit(expected.dtype, tolerance, floor),
        index=worst,
        expected=str(expected[worst]),
        got=str(got[worst]),
        case=case,
    )


def comparable(expected: Any, excused: np.ndarray | None = None) -> int:
    """How many elements of an output can tell a right result from a wrong one.

    NaN and infinities cannot: they swallow what is computed from them. Text, codes, maps and absent optionals can.

    Args:
        expected: the reference's output, as for `judge`.
        excused: elements that are not compared, as for `judge`.
    """
    import numpy as np

    if expected is None:
        return 1
    if isinstance(expected, list):
        return sum(comparable(item) for item in expected)
    if isinstance(expected, dict):
        return len(expected)
    array = np.asarray(expected)
    if array.dtype.kind in "OUSTbiu":
        return array.size
    finite = np.isfinite(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))
    return int(np.count_nonzero(finite if excused is None else finite & ~excused))


def limit(dtype: np.dtype, tolerance: ToleranceClass, floor: float) -> float:
    """The largest absolute difference that a tolerance class allows for a noise floor."""
    rule = TOLERANCES[tolerance]
    if rule.floors is None:
        return float("inf")
    allowed = rule.floors * floor
    return max(allowed, rule.quantum) if dtype.kind in "iu" and dtype.itemsize == 1 else allowed


def distance(expected: np.ndarray, got: np.ndarray, *, strict: bool) -> np.ndarray:
    """Absolute difference per element in double precision.

    NaN equals NaN and an infinity equals itself. A number against NaN or an infinity is infinitely far. NaN against
    an infinity, or one infinity against the other, is so only when `strict`: reassociation turns inf - inf around.
    """
    import numpy as np

    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    if expected.dtype.kind in "iu" and expected.dtype.itemsize == 8:
        return np.where(expected == got, 0.0, np.maximum(1.0, np.abs(expected.astype(wide) - got.astype(wide))))
    a, b = expected.astype(wide), got.astype(wide)
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    with np.errstate(invalid="ignore", over="ignore"):
        plain = np.abs(a - b)
    same_special = (np.isnan(a) & np.isnan(b)) | (a == b)
    if not strict:
        same_special |= ~finite_a & ~finite_b
    return np.where(finite_a & finite_b, plain, np.where(same_special, 0.0, np.inf))


def magnitude(array: np.ndarray) -> float:
    """The largest finite magnitude of a numeric array; 0.0 when it has none."""
    import numpy as np

    if array.dtype.kind in "OUST" or not array.size:
        return 0.0
    values = np.abs(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))
    return float(np.max(values, where=np.isfinite(values), initial=0.0))


def rounding(dtype: np.dtype) -> float:
    """eps of a floating type (also ml_dtypes'), 0.0 for integers, booleans and text."""
    import numpy as np

    if dtype.kind in "fc":
        return float(np.finfo(dtype).eps)
    if dtype.kind == "V" or dtype.name.startswith(("bfloat", "float")):
        import ml_dtypes

        return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    return 0.0


def compare(
    reference: Path,
    candidate: Path,
    model: ir.Model,
    factory: RunnerFactory,
    tolerance: ToleranceClass,
    *,
    seed: int = 0,
    data: Sequence[Case] = (),
    specials: bool = True,
) -> NumericsReport:
    """Run two model files on the same feeds and judge the second; see `graphopt.reference.Reference`."""
    from graphopt.reference import Reference

    with Reference.open(reference, model, factory, seed=seed, data=data, specials=specials) as opened:
        return opened.judge(candidate, tolerance)


def _judge_nested(
    name: str, expected: Any, got: Any, tolerance: ToleranceClass, floor: float, case: str
) -> OutputError:
    if expected is None or got is None:
        return _same(name, case) if expected is got else _differs(name, case, str(expected), str(got))
    if not isinstance(expected, list) or not isinstance(got, list) or len(expected) != len(got):
        return _differs(name, case, f"a sequence of {len(expected)}", f"one of {len(got)}")
    parts = [judge(name, a, b, tolerance, floor, case=case) for a, b in zip(expected, got, strict=True)]
    return max(parts, key=lambda part: part.max_abs - part.limit if part.max_abs else 0.0, default=_same(name, case))


def _same(name: str, case: str) -> OutputError:
    return OutputError(name, 0.0, 0.0, 0.0, 0.0, case=case)


def _short(text: Any) -> str:
    whole = str(text)
    return whole if len(whole) <= 80 else f"{whole[:77]}..."


def _differs(name: str, case: str, expected: str, got: str, index: tuple[int, ...] = ()) -> OutputError:
    return OutputError(name, float("inf"), float("inf"), 0.0, 0.0, index, expected, got, case)


def __getattr__(name: str) -> Any:
    if name == "Reference":  # lives in a file of its own and imports this one
        from graphopt.reference import Reference

        return Reference
    raise AttributeError(f"module 'graphopt.numerics' has no attribute {name!r}")
