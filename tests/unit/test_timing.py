"""The benchmark's method on fake runners with known times; no clock of this machine decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.target import Runner
from graphopt.timing import BenchPlan, bench

PLAN = BenchPlan(seconds=0.0, block_seconds=0.01, min_blocks=25)


class Fake(Runner):
    """Takes a fixed time with noise that all runners share for a while, as a busy machine does."""

    inputs = outputs = ()
    load_seconds = 0.25
    clock = 0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[int] = []
        self.closed = False

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def with_taps(self, values: Sequence[str]) -> Runner:
        raise NotImplementedError

    def time(self, feeds: Mapping[str, Any], n: int) -> list[float]:
        self.asked.append(n)
        out = []
        for _ in range(n):
            Fake.clock += 1
            drift = 1 + 0.5 * (Fake.clock // 2000 % 2)  # the machine gets slower and faster
            out.append(self.seconds * drift * (1 + 0.01 * (Fake.clock * 7919 % 13 - 6) / 6))
        return out

    def memory(self) -> dict[str, int]:
        return {"peak_rss": 5 << 20}

    def close(self) -> None:
        self.closed = True


def test_ratios_and_rows() -> None:
    runners: list[Fake] = []

    def opener(path: Path) -> Fake:
        runners.append(Fake({"a.onnx": 1e-3, "b.onnx": 8e-4}[path.name]))
        return runners[-1]

    report = bench([Path("a.onnx"), Path("b.onnx")], {}, opener, PLAN)
    assert [row.name for row in report.rows] == ["A", "A again", "B"]
    first, again, other = report.rows
    assert first.ratio == 1
    assert again.ratio == pytest.approx(1, abs=0.01)
    assert other.ratio == pytest.approx(0.8, abs=0.01)
    assert other.ratio_low <= other.ratio <= other.ratio_high < 0.85
    assert other.p95_ms >= other.median_ms > 0
    assert (first.load_ms, first.peak_memory) == (250, 5 << 20)
    assert report.rounds == 25 and len(runners) == 3 and all(runner.closed for runner in runners)
    assert all(runner.asked[0] == PLAN.warmup for runner in runners)
    assert json.loads(json.dumps(report.to_json()))["rows"][2]["path"] == "b.onnx"
    assert "A again" in str(report)


def test_runners_are_closed_when_one_fails() -> None:
    runners: list[Fake] = []

    def opener(path: Path) -> Fake:
        if path.name == "broken.onnx":
            raise GraphoptError("ONNX Runtime cannot load broken.onnx")
        runners.append(Fake(1e-3))
        return runners[-1]

    with pytest.raises(GraphoptError, match="cannot load broken"):
        bench([Path("a.onnx"), Path("broken.onnx")], {}, opener, PLAN)
    assert len(runners) == 2 and all(runner.closed for runner in runners)


def test_refusals() -> None:
    with pytest.raises(GraphoptError, match="at least one model"):
        bench([], {}, lambda path: Fake(1), PLAN)
    with pytest.raises(GraphoptError, match="1 sets of feeds are given for 2 models"):
        bench([Path("a"), Path("b")], [{}], lambda path: Fake(1), PLAN)
