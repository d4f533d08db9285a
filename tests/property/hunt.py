"""Tries the mutants of a rule on graphs aimed at it: each is caught, known to change no number, or has survived.

A mutant disturbs what the rule makes (mutants.py) or drops one of its guards (guards.py). Guards are tried on the
golden graphs too: each of those that a rule must not change is there for one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto
from property import bend, splice
from property.campaign import concerned, pipelines, target_of
from property.equivalents import reason_for
from property.generator import generate
from property.guards import watched
from property.harness import Refused, Subject, declare_outputs
from property.mutants import DISTURB, Disturb, plant

from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse

GRAPHS = 24
"""So many random graphs are tried for each mutant of a rule."""
MORE = 48
"""So many more for one that survives them."""
UNGUARDED = "without "

Check = Callable[[Subject], bool | None]
"""True when the mutant is caught, False when it acted and is not, None when it did not act."""


@dataclass
class Hunt:
    """What became of the mutants of one rule that acted somewhere."""

    rule: str
    caught: list[str] = field(default_factory=list)
    equivalent: list[str] = field(default_factory=list)
    """Those that survived for a reason that equivalents.py gives."""
    survived: list[str] = field(default_factory=list)

    def settle(self, mutant: str, caught: bool) -> None:
        known = reason_for(self.rule, mutant)
        (self.caught if caught else self.equivalent if known else self.survived).append(mutant)

    def counts(self, guards: bool) -> tuple[int, int, int]:
        """How many are caught, equivalent, survived: of the dropped guards, or of the others."""
        groups = (self.caught, self.equivalent, self.survived)
        caught, equivalent, survived = (sum(name.startswith(UNGUARDED) == guards for name in group) for group in groups)
        return caught, equivalent, survived


# -- graphs ------------------------------------------------------------------------------------------------------------


@dataclass
class Trials:
    """Graphs that are tried one after the other; `say` hears the number of each before the runtime sees it."""

    say: Callable[[int], None] = lambda number: None
    deadly: frozenset[int] = frozenset()
    """Numbers of those that the runtime dies of."""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def handled(self, rule: str, make: Callable[[], ModelProto]) -> Subject | None:
        """The graph, when it runs and the untouched rule does it no harm."""
        number = next(self.numbers)
        if number in self.deadly:
            return None
        self.say(number)
        try:
            subject = Subject.of(make())
        except Refused:
            return None
        pipeline = pipelines()[rule]
        if rule not in concerned(subject) or subject.check(pipeline, target_of(pipeline)).failure is not None:
            return None
        return subject


def aimed(rule: str, count: int = GRAPHS, seed: int = 0, trials: Trials | None = None) -> Iterator[Subject]:
    """Random graphs aimed at a rule."""
    trials, found = trials or Trials(), 0
    for number in range(4 * count):
        if found == count:
            return
        subject = trials.handled(rule, lambda: generate(7_000_000 + 1000 * seed + number, rule)[0])  # noqa: B023
        if subject is not None:
            found += 1
            yield subject


def golden(rule: str, trials: Trials | None = None) -> Iterator[Subject]:
    """The golden graphs of a rule, those that it must not change first.

    Each also in forms of which the rewriter knows less, so that its own checks do not stand in for the guard.
    """
    trials = trials or Trials()
    for item in sorted(splice.seeds().get(rule, ()), key=lambda item: item.positive):
        for draft in bend.blinded(splice.draft_of(item)):
            subject = trials.handled(rule, lambda: _declared(draft.model()))  # noqa: B023
            if subject is not None:
                yield subject


def _declared(proto: ModelProto) -> ModelProto:
    declare_outputs(proto)
    return proto


# -- the hunt ----------------------------------------------------------------------------------------------------------


def hunt(rule: str, seed: int = 0, count: int = GRAPHS) -> Hunt:
    """Try every mutant of a rule, in a process of its own: begun again without a graph that the runtime dies of.

    Raises:
        RuntimeError: it failed; the reason was printed.
    """
    deadly: set[int] = set()
    while True:
        said = _apart(lambda say: json.dumps(dataclasses.asdict(_hunt(rule, seed, count, frozenset(deadly), say))))
        last = said[-1] if said else ""
        if last.startswith("{"):
            return Hunt(**json.loads(last))
        if not last.isdigit() or int(last) in deadly:
            raise RuntimeError(f"the hunt for mutants of {rule} failed at graph {last or 'none'}")
        deadly.add(int(last))


def _hunt(rule: str, seed: int, count: int, deadly: frozenset[int], say: Callable[[str], None]) -> Hunt:
    pipeline = pipelines()[rule]
    target = target_of(pipeline)
    result, trials = Hunt(rule), Trials(lambda number: say(str(number)), deadly)
    random = list(aimed(rule, count, seed, trials))
    subjects = [*golden(rule, trials), *random]
    more = functools.cache(lambda: list(aimed(rule, MORE, seed + 1, trials)))
    mutants: dict[str, Check] = {
        name: functools.partial(_disturbed, pipeline, target, disturb) for name, disturb in DISTURB.items()
    }
    if "=" in str(pipeline):
        wrong = parse(re.sub(r"=(\d)", lambda found: f"={int(found[1]) + 1}", str(pipeline)))
        mutants["option"] = functools.partial(_optioned, pipeline, target, wrong)
    for guard in _guards(subjects, pipeline, target):
        mutants[UNGUARDED + guard] = functools.partial(_unguarded, pipeline, target, guard)
    for name, check in mutants.items():
        verdict = _verdict(subjects if name.startswith(UNGUARDED) else random, check)
        if not verdict and not reason_for(rule, name):
            found = _verdict(more(), check)
            verdict = verdict if found is None else found
        if verdict is not None:
            result.settle(name, verdict)
    return result


def _guards(subjects: Iterable[Subject], pipeline: Any, target: Any) -> list[str]:
    """The guards that stop the rule somewhere."""
    seen: set[str] = set()
    with watched(seen):
        for subject in subjects:
            subject.check(pipeline, target, prepare=_nothing)
    return sorted(seen)


def _nothing(ctx: Context) -> None:
    """A run of its own: the remarks of an earlier one must not hide a guard."""


def _disturbed(pipeline: Any, target: Any, disturb: Disturb, subject: Subject) -> bool | None:
    """Caught too is one that the rewriter's own rules keep from being applied where the right rule is."""
    counters: list[Callable[[], tuple[int, int]]] = []
    outcome = subject.check(pipeline, target, prepare=lambda ctx: counters.append(plant(ctx, disturb)))
    acted, stopped = counters[0]()
    if outcome.failure is not None or not acted:
        return True if acted else None
    applied = sum(outcome.applied.values())
    if stopped and (
        stopped == acted or applied < sum(subject.check(pipeline, target, prepare=_nothing).applied.values())
    ):
        return True
    return False if applied else None


def _optioned(right: Any, target: Any, wrong: Any, subject: Subject) -> bool | None:
    """The pass with another number among its options."""
    if str(right) == str(wrong):
        return None
    outcome = subject.check(wrong, target, prepare=_nothing)
    return outcome.failure is not None if sum(outcome.applied.values()) else None


def _unguarded(pipeline: Any, target: Any, guard: str, subject: Subject) -> bool | None:
    with watched(set(), dropped=guard) as count:
        outcome = subject.check(pipeline, target, prepare=_nothing)
    return outcome.failure is not None if count[0] else None


def _verdict(subjects: list[Subject], check: Check) -> bool | None:
    """The verdict over all subjects; what the runtime dies of is caught too."""

    def verdict(say: Callable[[str], None]) -> str:
        verdicts = set()
        for subject in subjects:
            verdicts.add(check(subject))
            if True in verdicts:
                return "caught"
        return "survived" if False in verdicts else "idle"

    said = _apart(verdict)
    if said == ["failed"]:
        raise RuntimeError("a mutant could not be tried")
    return {"caught": True, "survived": False, "idle": None}[said[0]] if said else True


def _apart(work: Callable[[Callable[[str], None]], str]) -> list[str]:
    """What `work` says and at last returns, line by line, in a process of its own that may die of it."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            last = work(lambda line: _send(send, line))
        except BaseException:
            traceback.print_exc()
            last = "failed"
        _send(send, last)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    return lines


def _send(pipe: int, line: str) -> None:
    data = f"{line}\n".encode()
    while data:
        data = data[os.write(pipe, data) :]


def as_dict(result: Hunt) -> dict[str, Any]:
    """For a pipe between processes: the names of mutants, and how many of each kind became what."""
    return {**dataclasses.asdict(result), "wrong": result.counts(guards=False), "unguarded": result.counts(guards=True)}
