"""Which choice of which workload is tried next.

Of one workload: turn by turn the best estimate that is left, and what lies nearest to the best so far. Among workloads:
the one on which least time was spent for its share of the model. Not here: compiling and timing. Imports no TVM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graphopt.targets.tvm.tuning.database import Record
from graphopt.targets.tvm.tuning.lane import Built, Space

PATIENCE = 32
"""Choices that are tried after the last improvement before a workload counts as tuned."""
_FAR = 100.0


@dataclass(eq=False)
class Task:
    """A workload of a model while it is tuned.

    Attributes:
        count: how often the model has it.
        space: its choices; None where there is no time to list them, or nothing more is tried in this run.
        record: what is known of it.
        base: the untuned choice, compiled; None before it is needed.
        spent: seconds of this run.
    """

    workload: str
    count: int
    space: Space | None
    record: Record
    base: Built | None = None
    spent: float = 0.0
    _turn: int = field(default=0, init=False)
    _left_out: set[str] = field(default_factory=set, init=False)

    @property
    def best(self) -> float:
        """Ratio of the best confirmed choice to the untuned one."""
        return 1.0 if self.record.kept is None else self.record.kept[1]

    @property
    def seconds(self) -> float:
        """What the untuned choice costs the model in one run."""
        return self.count * self.record.seconds

    @property
    def finished(self) -> bool:
        return self.record.idle >= PATIENCE or (self.space is not None and not self._left())

    @property
    def waits(self) -> bool:
        """Whether something can be tried."""
        return self.space is not None and not self.finished

    def urgency(self) -> float:
        """Seconds spent per second of the model: the lowest is next."""
        return self.spent / self.seconds

    def proposals(self, most: int) -> list[list[Any]]:
        """The next choices to try."""
        assert self.space is not None
        left = self._left()
        found: list[list[Any]] = []
        best = self.space.default if self.record.kept is None else self.record.kept[0]
        while left and len(found) < most:
            near = self._turn % 2 == 1
            self._turn += 1
            found.append(min(left, key=lambda choice: distance(choice, best)) if near else left[0])
            left.remove(found[-1])
        return found

    def note(self, choice: Sequence[Any], ratio: float | None) -> None:
        """A choice was tried: its ratio, or None where it could not be run."""
        self.record.tried[json.dumps(choice)] = ratio
        self.record.idle += 1

    def leave_out(self, choice: Sequence[Any]) -> None:
        """Try a choice no more in this run; nothing is known of it."""
        self._left_out.add(json.dumps(choice))

    def keep(self, choice: Sequence[Any], ratio: float) -> None:
        """A choice is confirmed to be faster than the best so far."""
        self.record.kept = list(choice), ratio
        self.record.idle = 0

    def _left(self) -> list[list[Any]]:
        known = self.record.tried.keys() | self._left_out
        choices = self.space.choices if self.space is not None else ()
        return [choice for choice in choices if json.dumps(choice) not in known]


def distance(left: Sequence[Any], right: Sequence[Any]) -> float:
    """How unlike two choices are: octaves between their sizes."""
    (algorithm, *sizes, staged, m), (other, *others, its_staged, its_m) = left, right
    octaves = sum(abs(math.log2(a / b)) for a, b in zip(sizes, others, strict=True))
    return octaves + (staged != its_staged) + _FAR * ((algorithm, m) != (other, its_m))


def work(workload: str) -> float:
    """A guess of a workload's multiply-adds: what is measured first when there is not time for all."""
    _, inputs, weights, *_ = workload.split(" ")
    shapes = [[int(dim) for dim in text.split("x")] for text in (inputs, weights)]
    return float(math.prod(shapes[0]) * math.prod(shapes[1]) / max(1, shapes[0][-1]))
