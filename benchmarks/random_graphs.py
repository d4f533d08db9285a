"""Figure 5: random graphs through all passes: no broken rule, no wrong number, no pass untested.

    python -m benchmarks.random_graphs [--graphs N] [--seed S] [--jobs J] [--failures FILE] [--no-mutants]

A graph is made from one integer (tests/property). A mutant is a rule made wrong on purpose: the checks must notice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.figure import ROOT, Figure, Table, arguments, say

GRAPHS = 5000
# Below so many applied rewrites a pass counts as untested.
MIN_APPLIED = 50
_HANG_SECONDS = {"seeds": 120.0, "mutants": 900.0}
"""A worker that says nothing for so long hangs: at one graph, or at all mutants of a rule."""
_LOOK_SECONDS = 5.0
"""So often the workers are looked at. What lies between two looks counts for twice as much at most: when the run is
paused as a whole, no worker hangs."""
KINDS = ("wrong", "unguarded")
"""Mutants of a rule: disturbed results, and guards left out."""


def _work(pipe: Connection, job: str) -> None:
    """A worker: takes a seed or a rule's name, sends back what it gave."""
    sys.path.insert(0, str(ROOT / "tests"))
    import faulthandler

    faulthandler.disable()
    if job == "seeds":
        from property.campaign import as_dict, examine

        run: Callable[[Any], Any] = lambda item: as_dict(examine(*item, ready=lambda: pipe.send(None)))  # noqa: E731
    else:
        from property.hunt import as_dict as mutant_dict
        from property.hunt import hunt

        run = lambda item: mutant_dict(hunt(*item))  # noqa: E731
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((item, run(item), ""))
        except Exception as error:  # a mistake of the generator or the harness: reported as the seed's problem
            import traceback

            pipe.send((item, None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


class Worker:
    """A process that is started again when it dies."""

    def __init__(self, job: str) -> None:
        self.job, self.limit = job, _HANG_SECONDS[job]
        self.busy: Any = None
        self.waited, self.ready = 0.0, False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_work, args=(there, self.job), daemon=True)
        self.process.start()
        there.close()

    def give(self, item: Any) -> None:
        self.busy, self.waited, self.ready = item, 0.0, False
        self.pipe.send(item)

    def hear(self) -> tuple[Any, Any, str] | None:
        """What it sent: a result, or None when it only said that the graph runs. One that died is replaced."""
        try:
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            return self._give_up(f"the process died with status {self.process.exitcode}")
        if result is None:
            self.ready = True
        else:
            self.busy = None
        return result

    def wait(self, seconds: float) -> tuple[Any, Any, str] | None:
        """Count more seconds of silence; one that was silent for too long gives what it was at, and is replaced."""
        self.waited += seconds
        return self._give_up(f"no answer in {self.limit:.0f} s") if self.waited > self.limit else None

    def _give_up(self, reason: str) -> tuple[Any, Any, str]:
        item, self.busy = self.busy, None
        self.process.kill()
        self._start()
        if self.job == "seeds" and not self.ready:  # the runtime dies of the graph as it was made
            return item, {"refused": reason, "problems": ()}, ""
        return item, None, reason


def spread(items: Iterable[Any], job: str, jobs: int) -> Iterator[tuple[Any, Any, str]]:
    """Results of all items from `jobs` processes, as they come."""
    workers, waiting = [Worker(job) for _ in range(max(1, jobs))], iter(items)
    for worker in workers:
        item = next(waiting, None)
        if item is not None:
            worker.give(item)
    looked = time.monotonic()
    while active := [worker for worker in workers if worker.busy is not None]:
        heard = wait([worker.pipe for worker in active], timeout=_LOOK_SECONDS)
        before, looked = looked, time.monotonic()
        for worker in active:
            silence = min(looked - before, 2 * _LOOK_SECONDS)
            result = worker.hear() if worker.pipe in heard else worker.wait(silence)
            if result is None:
                continue
            yield result
            item = next(waiting, None)
            if item is not None:
                worker.give(item)
    for worker in workers:
        worker.pipe.close()
        worker.process.join(10)


class Tally:
    """Sums over all seeds."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.graphs: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.applied: Counter[str] = Counter()
        self.near: Counter[str] = Counter()
        self.problems: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        self.scheduled: Counter[str] = Counter()
        self.ran = 0

    def add(self, seed: int, record: dict[str, Any] | None, error: str) -> None:
        if record is None:
            self.problems["(the run itself)", "crash"].append(
                (seed, {"detail": error, "plan": f"seed {seed}", "text": ""})
            )
            return
        if record["refused"]:
            self.refused[record["refused"][:70]] += 1
            return
        self.ran += 1
        self.graphs.update(record["tried"])
        self.changed.update(record["applied"].keys())
        self.applied.update(record["applied"])
        self.near.update(record["near"])
        for problem in record["problems"]:
            self.problems[problem["pipeline"], problem["kind"]].append((seed, problem))


def report(tally: Tally) -> str:
    """Failures by pass, each with its smallest graph: for those who write the passes."""
    parts = []
    for (name, kind), found in sorted(tally.problems.items(), key=lambda item: (-len(item[1]), item[0])):
        smallest = min((problem for _, problem in found), key=lambda problem: len(problem["text"]))
        seeds = ", ".join(str(seed) for seed, _ in found[:12])
        parts.append(
            f"## {name}: {kind}, {len(found)} graphs\n\nseeds: {seeds}\n\n{smallest['plan']}\n\n{smallest['detail']}\n"
            f"\n```\n{smallest['text'].strip()}\n```\n"
        )
    return "\n".join(parts) or "nothing fails\n"


def figure(tally: Tally, names: Sequence[str], mutants: dict[str, dict[str, Any]] | None) -> Figure:
    page = Figure(
        "random-graphs",
        "Random graphs through all passes",
        f"{tally.ran} graphs that run in ONNX Runtime as they are made; {sum(tally.refused.values())} more did not and "
        "are no test of a pass. Each goes through every pass that its ops concern, two pairs of passes and `-O1` to "
        "`-O3` for the CPU, and is compared with the untouched graph on two bindings of its symbols; exact passes also "
        "on NaN, infinities, zeros and denormals. The last columns are about mutants of the rule, those that disturb "
        "what it hands to the rewriter and those that leave out one guard: how many were caught / are equivalent, for "
        "a reason listed below / survived.",
        (
            "no verifier error, no crash, no wrong number",
            f"each pass is applied at least {MIN_APPLIED} times",
            "of each rule at least one mutant is caught, and none survives without a reason",
        ),
    )
    table = Table(("pass", "graphs", "changed", "applied", "near misses", "wrong results", "dropped guards"))
    for name in names:
        found = (mutants or {}).get(name)
        cells = ("-", "-") if found is None else tuple(" / ".join(map(str, found[kind])) for kind in KINDS)
        table.add(name, tally.graphs[name], tally.changed[name], tally.applied[name], tally.near[name], *cells)
        page.require(tally.applied[name] >= MIN_APPLIED, f"{name}: applied {tally.applied[name]} times only")
        if mutants is not None:
            page.require(bool(found and found["caught"]), f"{name}: no mutant is caught")
            for mutant in found["survived"] if found else ():
                page.require(False, f"{name}: a mutant survives: {mutant}")
    page.tables.append(table)
    if mutants is not None:
        page.tables.append(equivalents(mutants))
    if tally.problems:
        listed = Table(("pipeline", "kind", "graphs", "first seed", "what"), "What fails", words=2)
        for (name, kind), problems in sorted(tally.problems.items()):
            listed.add(name, kind, len(problems), problems[0][0], problems[0][1]["detail"].splitlines()[0][:160])
        page.tables.append(listed)
    page.require(not tally.problems, f"{sum(map(len, tally.problems.values()))} failures")
    return page


def equivalents(mutants: dict[str, dict[str, Any]]) -> Table:
    """Why some mutants are no other rule, and how many for each reason."""
    from property.equivalents import reason_for

    reasons = Counter(reason_for(name, mutant) for name, found in mutants.items() for mutant in found["equivalent"])
    table = Table(("reason", "mutants"), "Mutants that change no number")
    for reason, count in reasons.most_common():
        table.add(reason, count)
    return table


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--graphs",
        type=int,
        default=GRAPHS,
        help=f"how many that run (default {GRAPHS}; another number writes no page)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--failures", type=Path, help="write failures by pass, with the smallest graph of each")
    parser.add_argument("--no-mutants", action="store_true", help="leave the mutants out (writes no page)")
    options = parser.parse_args()
    start, tally = time.monotonic(), Tally()
    for count, ((seed, _), record, error) in enumerate(spread(schedule(options, tally), "seeds", options.jobs), 1):
        tally.add(seed, record, error)
        for problem in record["problems"] if record else ():
            say(f"{problem['plan']}: {problem['pipeline']}: {problem['kind']}: {problem['detail'].splitlines()[0]}")
        if count % 500 == 0:
            failures = sum(map(len, tally.problems.values()))
            say(f"{tally.ran} of {options.graphs} after {time.monotonic() - start:.0f} s, {failures} failures")
    if options.failures:
        options.failures.write_text(report(tally), encoding="utf-8")
    mutants = None if options.no_mutants else hunt_mutants(options.jobs, tally)
    sys.path.insert(0, str(ROOT / "tests"))
    from property.campaign import pipelines

    page = figure(tally, sorted(pipelines()), mutants)
    say(f"{tally.ran} graphs ran, {sum(tally.refused.values())} were refused: {tally.refused.most_common(5)}")
    say(f"{time.monotonic() - start:.0f} s")
    return page.finish(write=not (options.no_write or options.no_mutants or options.graphs != GRAPHS or options.seed))


def schedule(options: argparse.Namespace, tally: Tally) -> Iterator[tuple[int, str | None]]:
    """Seeds with what they aim at: all themes in turn; in the last two fifths the passes that were applied least."""
    sys.path.insert(0, str(ROOT / "tests"))
    from property.generator import themes

    number = 0
    while tally.ran < options.graphs:
        theme = None
        if tally.ran >= options.graphs * 3 // 5:
            theme = min(themes(), key=lambda name: (tally.applied[name] + tally.scheduled[name] / 5, name))
            tally.scheduled[theme] += 1
        yield options.seed + number, theme
        number += 1


def hunt_mutants(jobs: int, tally: Tally) -> dict[str, dict[str, Any]]:
    """For each pass, its mutants and how many are caught."""
    sys.path.insert(0, str(ROOT / "tests"))
    from property.campaign import pipelines

    found: dict[str, dict[str, Any]] = {}
    for attempt in range(3):  # a graph that the runtime dies of ends a hunt; others may not
        left = [(name, attempt) for name in sorted(pipelines()) if name not in found]
        for (name, _), result, error in spread(left, "mutants", jobs):
            if result is not None:
                found[name] = result
            elif attempt == 2:
                tally.problems["(mutants)", name].append((0, {"detail": error, "plan": name, "text": ""}))
    return found


if __name__ == "__main__":
    sys.exit(main())
