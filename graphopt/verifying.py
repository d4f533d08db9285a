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
from graphopt.running import runnable

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
    first = model_file(a)
    model, origin = capture(first)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        check = Check(model, origin, data, Path(scratch), lambda: capture(first)[0])
        last = runnable(a if b is None else b)
        report = check.compare(last.path, tolerance if b is not None else "exact", last.target, last.settings)
    rows.append(_row("numerics", subject, report.status, report.reason, report.to_json()))
    return rows


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
