"""Provable value ranges: an interval that holds every element of a tensor, on every run.

Computed on demand from producers and remembered; made anew after the model changed. Not here: per-op rules
(`range_rules`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes

# Larger constants are not read: one unknown range costs less than a page-in of the weights.
MAX_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Interval:
    """Every element that is not NaN lies in [low, high] (bools as 0 and 1); `nan` says whether NaN is possible."""

    low: float = -math.inf
    high: float = math.inf
    nan: bool = True

    def join(self, other: Interval) -> Interval:
        """The smallest interval around both."""
        return Interval(min(self.low, other.low), max(self.high, other.high), self.nan or other.nan)

    def within(self, low: float, high: float) -> bool:
        """Whether every element, NaN excluded as a possibility, lies in [low, high]."""
        return not self.nan and low <= self.low and self.high <= high

    def always(self, number: float) -> bool:
        """Whether every element is this number."""
        return self.within(number, number)


class Ranges:
    """Value ranges of one model as it is now."""

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self.model = model
        self.shapes = shapes
        self._known: dict[ir.Value, Interval] = {}

    def of(self, value: ir.Value | None) -> Interval:
        """The interval of a value; the whole range of its element type when nothing is known."""
        from graphopt.analysis.range_rules import sources

        if value is None:
            return Interval()
        stack = [value]
        entered: set[ir.Value] = set()
        while stack:
            current = stack[-1]
            entered.add(current)
            # A value met again below itself is on a cycle, which no valid model has; its type's range holds.
            waiting = [source for source in sources(current) if source not in self._known and source not in entered]
            if waiting and current not in self._known:
                stack.extend(waiting)
                continue
            if current not in self._known:
                self._known[current] = self._compute(current)
            stack.pop()
        return self._known[value]

    def _compute(self, value: ir.Value) -> Interval:
        from graphopt.analysis.range_rules import interval_of

        whole = of_type(value.dtype)
        found = interval_of(self, value)
        if found is None:
            return whole
        if found.low < whole.low or found.high > whole.high:
            # Integers wrap around, so a bound outside the type says nothing.
            return whole
        return Interval(found.low, found.high, found.nan and whole.nan)

    def known(self, value: ir.Value | None) -> Interval:
        """For the rules: the interval of a source, which is computed already."""
        return self._known.get(value, Interval()) if value is not None else Interval()


def of_type(dtype: ir.DataType | None) -> Interval:
    """The range of an element type."""
    from graphopt import ir

    if dtype is None or dtype == ir.DataType.STRING:
        return Interval()
    if dtype == ir.DataType.BOOL:
        return Interval(0, 1, nan=False)
    if not dtype.is_integer():
        return Interval()
    bits = dtype.bitwidth
    return (
        Interval(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, nan=False)
        if dtype.is_signed()
        else Interval(0, 2**bits - 1, nan=False)
    )
