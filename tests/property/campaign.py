"""One seed through everything: each pass that its graph concerns, pairs of passes, and the pipelines of the CPU target.

Not here: how graphs are made (generator.py) and what counts as wrong (harness.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from property import splice
from property.generator import Plan, generate
from property.harness import Failure, Refused, Subject
from property.shrink import shrink

from graphopt.manager import registry
from graphopt.manager.pipeline import Pipeline, parse

SPELLED = {"bind-dims": "bind-dims{dims=[N=2]}"}
"""How passes are written here that need options; others as their golden file does."""

LEVELS = ("O1", "O2", "O3")
PAIRS = 2
"""Pairs of passes, in random order, per graph."""

TARGETED = frozenset({"fuse-target"})
"""Stages whose passes do nothing unless a target says what it supports."""


@dataclass(frozen=True)
class Problem:
    """A failure with what it takes to see it again."""

    pipeline: str
    kind: str
    detail: str
    plan: str
    text: str


@dataclass
class Record:
    """What one seed gave: per pass the tried graphs, applied rewrites and near misses; and what is wrong."""

    seed: int
    theme: str
    refused: str = ""
    tried: list[str] = field(default_factory=list)
    applied: dict[str, int] = field(default_factory=dict)
    near: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@functools.cache
def cpu() -> Any:
    return registry.make_target("cpu")


@functools.cache
def pipelines() -> dict[str, Pipeline]:
    """Each registered pass that loses nothing and asks for no data, alone."""
    passes = registry.passes()
    names = [name for name, cls in passes.items() if cls.tolerance != "lossy" and not cls.calibrated]
    return {name: parse(SPELLED.get(name, splice.spelled().get(name, name))) for name in names}


@functools.cache
def level(name: str) -> Pipeline:
    return parse(cpu().pipeline(int(name[1:])))


def concerned(subject: Subject) -> list[str]:
    """Passes whose anchors the graph has; those that look at whole graphs always."""
    names = []
    for name, pipeline in pipelines().items():
        item = next(pipeline.passes())
        anchors = item.anchors() if hasattr(item, "anchors") else None
        if name == "bind-dims" and "N" not in subject.symbols:
            continue
        if anchors is None or subject.ops.intersection(anchors):
            names.append(name)
    return names


def target_of(pipeline: Pipeline) -> Any:
    """The CPU where a pass asks for a target, none elsewhere: without one, passes do the most."""
    return cpu() if any(item.stage in TARGETED for item in pipeline.passes()) else None


def examine(
    seed: int, theme: str | None = None, small: bool = True, ready: Callable[[], None] = lambda: None
) -> Record:
    """Run one seed through everything.

    Args:
        seed: makes the graph and the choice of pairs.
        theme: the pass to aim at; the seed's choice when not given.
        small: shrink what fails.
        ready: called when the runtime has run the untouched graph; what dies before that is no pass's fault.
    """
    proto, plan = generate(seed, theme)
    record = Record(seed, plan.theme)
    try:
        subject = Subject.of(proto)
    except Refused as reason:
        record.refused = str(reason)
        return record
    ready()
    for name in concerned(subject):
        outcome = subject.check(pipelines()[name], target_of(pipelines()[name]))
        record.tried.append(name)
        if outcome.applied.get(name):
            record.applied[name] = outcome.applied[name]
        if outcome.near.get(name):
            record.near[name] = outcome.near[name]
        _note(record, outcome.failure, name, proto, plan, small)
    alone = {problem.pipeline for problem in record.problems}
    for text in [*_pairs(seed, record), *LEVELS]:
        if not alone.intersection(text.split(",")):
            chosen = level(text) if text in LEVELS else parse(text)
            outcome = subject.check(chosen, cpu() if text in LEVELS else target_of(chosen))
            _note(record, outcome.failure, text, proto, plan, small and not alone)
    return record


def _pairs(seed: int, record: Record) -> list[str]:
    """Two passes of which the first does something here; the second need not alone, but may after it."""
    random = np.random.default_rng([seed, 1])
    active = [name for name in record.applied if name != "dce"]
    tried = [name for name in record.tried if name != "bind-dims"]
    if not active or not tried:
        return []
    spelled = [(str(random.choice(active)), str(random.choice(tried))) for _ in range(PAIRS)]
    return [f"{pipelines()[first]},{pipelines()[second]}" for first, second in spelled if first != second]


def _note(record: Record, failure: Failure | None, text: str, proto: ModelProto, plan: Plan, small: bool) -> None:
    if failure is None:
        return
    chosen = level(text) if text in LEVELS else pipelines().get(text) or parse(text)
    target = cpu() if text in LEVELS else target_of(chosen)
    last = failure

    def still_fails(candidate: ModelProto) -> bool:
        nonlocal last
        try:
            now = Subject.of(candidate).check(chosen, target).failure
        except Refused:
            return False
        if now is None or now.kind != failure.kind:
            return False
        last = now
        return True

    if small:
        proto = shrink(proto, still_fails)
    record.problems.append(Problem(text, failure.kind, last.detail, str(plan), onnx.printer.to_text(proto)))


def as_dict(record: Record) -> dict[str, Any]:
    """For a pipe between processes."""
    return dataclasses.asdict(record)
