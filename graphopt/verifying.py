"""`verify`: file hashes, IR rules, and numbers: of one model against itself optimized, or of two against each other."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from graphopt import artifact as artifacts
from graphopt.checks import Check
from graphopt.errors import GraphoptError, VerificationError
from graphopt.frontends.capture import capture, model_file
from graphopt.numerics import ToleranceClass
from graphopt.running import Runnable, runnable

Row = dict[str, Any]


def verify_files(
    a: str | Path, b: str | Path | None = None, data: Path | None = None, tolerance: ToleranceClass = "reassociates"
) -> list[Row]:
    """Check a model or artifact, or that B computes what A computes.

    Args:
        a: ONNX file or artifact; the reference when B is given.
        b: what is compared with A.
        data: feeds; None makes legal ones.
        tolerance: class of allowed difference (graphopt/numerics.py).

    Returns:
        One row per check: `check`, `subject`, `status` (passed, failed, not-checked), `reason`, `details`.

    Raises:
        GraphoptError: a source cannot be read at all.
    """
    rows: list[Row] = []
    for source in (a, b) if b is not None else (a,):
        rows += _static(source)
    subject = f"{a} and {b}" if b is not None else f"{a} twice"
    if any(row["status"] == "failed" for row in rows):
        return [*rows, _row("numerics", subject, "not-checked", "an earlier check failed")]
    if b is None or _has_library(a):  # the reference is the model in A: the library beside it must compute the same
        rows.append(_numbers(f"{a} twice", a, runnable(a), data, "exact"))
    if b is not None:
        rows.append(_numbers(subject, a, runnable(b), data, tolerance))
    return rows


def _has_library(source: str | Path) -> bool:
    return Path(source).is_dir() and runnable(source).model not in (None, runnable(source).path)


def _numbers(subject: str, a: str | Path, last: Runnable, data: Path | None, tolerance: ToleranceClass) -> Row:
    """The row of one comparison with the model in A. Code that does not run here stands aside for its model."""
    first = model_file(a)
    model, origin = capture(first)
    path = last.path if last.target.available() is None else last.graph
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        check = Check(model, origin, data, Path(scratch), lambda: capture(first)[0])
        report = check.compare(path, tolerance, last.target, last.settings)
    return _row("numerics", subject, report.status, report.reason, report.to_json())


def _static(source: str | Path) -> list[Row]:
    rows = []
    if Path(source).is_dir():
        try:
            artifacts.load(source).check_files()
            rows.append(_row("file hashes", str(source), "passed"))
        except VerificationError as error:
            rows.append(_row("file hashes", str(source), "failed", str(error)))
    try:
        capture(model_file(source))
        rows.append(_row("IR rules", str(source), "passed"))
    except GraphoptError as error:
        if not rows:
            raise
        rows.append(_row("IR rules", str(source), "failed", str(error)))
    return rows


def _row(
    check: str, subject: str, status: Literal["passed", "failed", "not-checked"], reason: str = "", details: Any = None
) -> Row:
    return {"check": check, "subject": subject, "status": status, "reason": reason, "details": details or {}}
