"""What is kept of one task's measurement: everything that the page and its bars need, without the scores themselves.

Not here: how it is measured, and the bars (quant_accuracy.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.quant.executed import Executed
from benchmarks.quant.intervals import Difference
from benchmarks.quant.quantizers import OWN


@dataclass(frozen=True)
class Latency:
    """Over float's in the same run, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Ran:
    """A tool's model that runs.

    Attributes:
        metrics: mean score by metric. from_float: its paired difference from float's, by metric.
        from_best: of our own rows only, the paired difference from the best peer in the metric that counts.
        bytes: of its files. seconds, peak: wall time and bytes of memory of the quantizer; 0 if an earlier run made it.
    """

    metrics: Mapping[str, float]
    from_float: Mapping[str, Difference]
    from_best: Difference | None
    executed: Executed
    latency: Latency
    bytes: int
    seconds: float
    peak: int


@dataclass(frozen=True)
class Outcome:
    """One task.

    Attributes:
        version: of the task's files. metric: the one that counts. provenance: date, commit and machine.
        metrics: the float model's mean scores. ms: its latency. again: its ratio to itself (A/A). bytes: of its file.
        best_peer: the peer with the highest metric; None when none has a model.
        tools: each tool's model, or in one line why there is none.
    """

    task: str
    version: int
    metric: str
    samples: int
    provenance: str
    metrics: Mapping[str, float]
    ms: float
    again: float
    bytes: int
    best_peer: str | None
    tools: Mapping[str, Ran | str]

    @property
    def ran(self) -> dict[str, Ran]:
        """The tools that have a model."""
        return {name: tool for name, tool in self.tools.items() if isinstance(tool, Ran)}

    @property
    def peers(self) -> dict[str, Ran]:
        """Those of other projects among them."""
        return {name: tool for name, tool in self.ran.items() if name not in OWN}

    def share(self, tool: str) -> float:
        """A tool's metric over float's."""
        return self.ran[tool].metrics[self.metric] / self.metrics[self.metric]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_json`.

        Raises:
            TypeError: a field is missing or unknown.
        """
        tools = {name: tool if isinstance(tool, str) else _ran(tool) for name, tool in values["tools"].items()}
        return Outcome(**{**values, "tools": tools})


def _ran(values: Mapping[str, Any]) -> Ran:
    best = values["from_best"]
    return Ran(
        **{
            **values,
            "from_float": {name: Difference(**change) for name, change in values["from_float"].items()},
            "from_best": None if best is None else Difference(**best),
            "executed": Executed(**values["executed"]),
            "latency": Latency(**values["latency"]),
        }
    )
