"""Stretches of a run: what lies between lossy passes is judged against the model that it received.

A lossy pass ends a stretch and its result begins the next one. Lives here: keeping the models at these borders and
joining the verdicts. Not here: judging two files (reference.py), the loss itself (checks.py measures it end to end).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.ir.writer import write

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.base import Pass
    from graphopt.numerics import NumericsReport, Status, ToleranceClass

ORDER: tuple[ToleranceClass, ...] = ("exact", "reassociates", "lossy")


@dataclass(frozen=True)
class Stretch:
    """Passes between two lossy ones: the model they received, the one they left, and the loosest class among them.

    Attributes:
        start: file of the model at the beginning; None: the untouched model.
        end: file of the model at the end; None: what is shipped.
        tolerance: loosest class of the passes that changed something in it.
        after: the lossy pass that the stretch follows, "" at the beginning of the run.
    """

    start: Path | None
    end: Path | None
    tolerance: ToleranceClass
    after: str

    def __str__(self) -> str:
        return f"after {self.after!r}" if self.after else "before the first lossy pass"


class Stretches:
    """Watches a run through the hooks `before_pass` and `after_pass` of its instruments.

    Args:
        file: Gives a new path in a scratch folder for a stem.
    """

    def __init__(self, file: Callable[[str], Path]) -> None:
        self._file = file
        self._done: list[Stretch] = []
        self._received: Path | None = None
        self.start: Path | None = None
        self.tolerance: ToleranceClass = "exact"
        self.changed = False
        self.lossy: list[str] = []
        """Names of the lossy passes that changed something, in order."""

    def before_pass(self, model: ir.Model, item: Pass) -> None:
        """Keep the model that a lossy pass receives: where the stretch before it ends."""
        self._received = None
        if item.tolerance == "lossy" and self.changed:
            self._received = self._file("received")
            write(model, self._received)

    def after_pass(self, model: ir.Model, item: Pass) -> None:
        """Take note of a pass that changed the model."""
        if item.tolerance != "lossy":
            self.tolerance = max(self.tolerance, item.tolerance, key=ORDER.index)
            self.changed = True
            return
        if self._received is not None:
            self._done.append(Stretch(self.start, self._received, self.tolerance, self._after))
        self.lossy.append(item.name)
        self.start = self._file("reference")
        write(model, self.start)
        self.tolerance, self.changed = "exact", False

    def all(self) -> Iterator[Stretch]:
        """Every stretch in which something changed, the last one up to what is shipped."""
        yield from self._done
        if self.changed:
            yield Stretch(self.start, None, self.tolerance, self._after)

    @property
    def _after(self) -> str:
        return self.lossy[-1] if self.lossy else ""


def join(parts: Sequence[tuple[Stretch, NumericsReport]], loss: NumericsReport) -> tuple[Status, str, dict[str, Any]]:
    """Status, reason and details of a run with lossy passes.

    Args:
        parts: the verdict on each stretch.
        loss: the shipped model against the untouched one; measured, not judged.

    Returns:
        "failed" when a stretch failed, else "not-checked" with the measured loss: only a gate can judge that.
    """
    details = {key: value for key, value in loss.to_json().items() if key not in ("status", "reason", "tolerance")}
    details["stretches"] = [
        {"where": str(stretch), "status": report.status, "reason": report.reason, "tolerance": report.tolerance}
        for stretch, report in parts
    ]
    if loss.status == "failed":  # it does not run, or its interface is another one
        return "failed", loss.reason, details
    for stretch, report in parts:
        if report.status == "failed":
            return "failed", f"{stretch}: {report.reason}", details
    open_ = [f"{stretch}: {report.reason}" for stretch, report in parts if report.status == "not-checked"]
    return "not-checked", "; ".join([loss.reason, *open_]), details
