"""Gates: what a compiled model must reach to be written, e.g. `metric>=0.99x`, `latency<=1.0x`, `cosine>=0.999`.

Lives here: their text, and whether a measured value meets one. Not here: measuring (graphopt/evaluation.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graphopt.errors import GateError, GraphoptError, did_you_mean
from graphopt.quantization.metrics import Interval

Relation = Literal[">=", "<="]

# name -> units it may be given in, with what they are worth; "x" is relative to the float model
_UNITS: dict[str, dict[str, float]] = {
    "metric": {"x": 1.0, "": 1.0, "%": 0.01},
    "latency": {"x": 1.0, "ms": 1.0},
    "size": {"x": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "top1": {"": 1.0, "%": 0.01},
    "cosine": {"": 1.0},
    "sqnr": {"": 1.0, "dB": 1.0},
    "max-abs": {"": 1.0},
}
_EXAMPLES = {
    "metric": "metric>=0.99x",
    "latency": "latency<=1.0x or latency<=5ms",
    "size": "size<=0.3x or size<=4MB",
    "top1": "top1>=0.98",
    "cosine": "cosine>=0.999",
    "sqnr": "sqnr>=20",
    "max-abs": "max-abs<=0.1",
}
AGREEMENT = frozenset({"top1", "cosine", "sqnr", "max-abs"})
"""Gates on how far the outputs are from those of the float model; no labels are needed."""
ACCURACY = AGREEMENT | {"metric"}
"""Gates that judge what a lossy pass lost."""
_HIGHER = frozenset({"top1", "cosine", "sqnr"})
_RANGES = {"top1": (0, 1), "cosine": (-1, 1), "latency": (0, math.inf), "size": (0, math.inf), "max-abs": (0, math.inf)}
"""What can be measured at all; a limit outside is a slip, such as 98 for 98 %."""
_TEXT = re.compile(
    r"\s*([A-Za-z][\w-]*)\s*(>=|<=)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(x|ms|dB|%|[kMG]?B)?\s*"
)


@dataclass(frozen=True)
class Gate:
    """One requirement.

    Attributes:
        name: metric, latency, size, top1, cosine, sqnr or max-abs.
        relation: which side of the limit is good.
        limit: in ms, bytes, dB, or as it is; of the float model's value when `relative`.
        relative: the limit is a factor.
    """

    name: str
    relation: Relation
    limit: float
    relative: bool

    def __str__(self) -> str:
        unit = {"latency": "ms", "size": "B"}.get(self.name, "")
        return f"{self.name}{self.relation}{self.limit:.12g}{'x' if self.relative else unit}"

    def met(self, value: float) -> bool:
        """Whether a value is on the good side; NaN never is."""
        return value >= self.limit if self.relation == ">=" else value <= self.limit


@dataclass(frozen=True)
class Outcome:
    """What was measured for one gate.

    Attributes:
        value: in the unit of the gate's limit.
        interval: 95 % interval of the value, where samples or rounds give one.
        detail: on what it was measured, in words.
        resolution: smallest difference that the measurement can tell, as a part of the value.
    """

    gate: Gate
    value: float
    interval: Interval | None = None
    detail: str = ""
    resolution: float = 0.0

    @property
    def met(self) -> bool:
        """Whether the value meets the gate, or misses it by less than the measurement can tell."""
        return self.gate.met(self.value) or (self.resolution > 0 and self.gate.met(self.value * (1 - self.resolution)))

    def __str__(self) -> str:
        unit = "x" if self.gate.relative else {"latency": " ms", "size": " B", "sqnr": " dB"}.get(self.gate.name, "")
        digits = 9 if self.gate.name in ("cosine", "top1") else 5  # what is missing to 1 counts
        text = f"{self.gate.name} {self.value:.{digits}g}{unit}"
        if self.interval is not None and self.interval.low != self.interval.high:
            text += f" [{self.interval.low:.{digits}g}, {self.interval.high:.{digits}g}]"
        return text + (f" {self.detail}" if self.detail else "")

    def as_json(self) -> dict[str, Any]:
        return {
            "gate": str(self.gate),
            "met": self.met,
            "value": self.value,
            "low": self.interval.low if self.interval is not None else None,
            "high": self.interval.high if self.interval is not None else None,
            "detail": self.detail,
            "resolution": self.resolution,
        }


def parse_gate(text: str) -> Gate:
    """Read one gate.

    Raises:
        GraphoptError: not `name>=limit` or `name<=limit`, an unknown name, a unit or direction that the name lacks, or
            a limit that nothing can reach.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise GraphoptError(f"gate {text!r} is not name>=limit or name<=limit; for example {_EXAMPLES['metric']}")
    name, relation, number, unit = (
        found.group(1).lower().replace("_", "-"),
        found.group(2),
        found.group(3),
        found.group(4),
    )
    name = "top1" if name == "top-1" else name
    if name not in _UNITS:
        raise GraphoptError(f"gate {text!r}: there is nothing to judge called {name!r}{did_you_mean(name, _UNITS)}")
    unit = unit or ""
    if unit not in _UNITS[name]:
        hint = f"write for example {_EXAMPLES[name]}"
        if unit == "x":
            hint = f"{name} compares with the float model already; {hint}"
        raise GraphoptError(f"gate {text!r}: {name} cannot be given in {unit or 'a bare number'!r}; {hint}")
    limit = float(number) * _UNITS[name][unit]
    if (name in _HIGHER and relation == "<=") or (name in ("latency", "size", "max-abs") and relation == ">="):
        good = "more" if name in _HIGHER else "less"
        raise GraphoptError(f"gate {text!r}: {good} is better for {name}; write for example {_EXAMPLES[name]}")
    least, most = _RANGES.get(name, (-math.inf, math.inf))
    if not least <= limit <= most:
        there = f"between {least} and {most}" if most < math.inf else f"at least {least}"
        raise GraphoptError(f"gate {text!r}: {name} is {there}; write for example {_EXAMPLES[name]}")
    return Gate(name, ">=" if relation == ">=" else "<=", limit, unit == "x")


def parse_gates(texts: Iterable[str]) -> tuple[Gate, ...]:
    """Read gates; each text may hold several, separated by commas.

    Raises:
        GraphoptError: as for `parse_gate`, or two gates on one name.
    """
    gates: dict[tuple[str, bool, str], Gate] = {}
    for text in texts:
        for part in text.split(","):
            gate = parse_gate(part)
            key = (gate.name, gate.relative, gate.relation)
            if key in gates:
                raise GraphoptError(f"gates {gates[key]} and {gate} are about the same; give one")
            gates[key] = gate
    return tuple(gates.values())


def require(outcomes: Sequence[Outcome], hint: str = "") -> None:
    """Raise when a gate is not met; `hint` says what may help.

    Raises:
        GateError: names each gate that is not met with the value that was reached, and what the others reached.
    """
    missed = [outcome for outcome in outcomes if not outcome.met]
    if not missed:
        return
    text = "; ".join(f"{outcome.gate} is not met: nearest is {outcome}" for outcome in missed)
    rest = [f"{outcome.gate} with {outcome}" for outcome in outcomes if outcome.met]
    raise GateError(f"gate {text}" + (f"; met: {', '.join(rest)}" if rest else "") + f"; nothing was written{hint}")
