"""Figure 4: the official ONNX node cases through `-O3` for the CPU, in four forms.

    python -m benchmarks.conformance [--every N] [--cases NAME ...] [--form FORM ...] [--level L] [--failures FILE]

A case counts when ONNX Runtime alone passes it in that form. Each remaining failure is listed with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from benchmarks.figure import ROOT, Figure, Table, arguments, say

# The bar: of the cases that ONNX Runtime passes, this part passes in each form, and none crashes.
MIN_PASSED = 0.99
FORMS = ("plain", "initializers", "if", "loop")
TITLES = {
    "plain": "as it is",
    "initializers": "all inputs initializers",
    "if": "in an If branch",
    "loop": "in a Loop body",
}
COMMAND = (sys.executable, "-W", "ignore", "-m", "benchmarks.conformance_worker")
_SEED = 20260101
_HANG_SECONDS, _START_SECONDS = 60.0, 600.0
"""A child that is silent for so long hangs: at one case, or while it makes all of them."""
_LOOK_SECONDS = 5.0
"""Silence is counted in looks, so that a run which is paused as a whole has no hanging child."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case in one form; `blamed` is the pass without whose rewrite it passes."""

    case: str
    form: str
    status: str
    kind: str = ""
    reason: str = ""
    blamed: str = ""
    site: str = ""
    text: str = ""

    @property
    def counts(self) -> bool:
        return self.status in ("passed", "failed", "crashed")


class Worker:
    """A child that runs cases; it is started anew after a crash or a hang."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.pending = b""
        self.names: list[str] = []

    def start(self) -> None:
        """Start the child and wait until it has made the cases."""
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        self.pending = b""
        first = self._read(_START_SECONDS)
        if first is None:
            raise SystemExit(f"the worker made no cases: it {self.stop()}")
        self.names = first["cases"]

    def measure(self, index: int, form: str, level: int) -> Outcome:
        """One case; a dead or silent child becomes the outcome of the case it had."""
        if self.process is None:
            self.start()
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps({"case": index, "form": form, "level": level}).encode() + b"\n")
        self.process.stdin.flush()
        phase, name = "", self.names[index]
        while (answer := self._read()) is not None:
            if "phase" not in answer:
                where = {
                    "blamed": answer.get("pass", ""),
                    "site": answer.get("site", ""),
                    "text": answer.get("text", ""),
                }
                return Outcome(name, form, answer["status"], answer.get("kind", ""), answer["reason"], **where)
            phase = answer["phase"]
        how = self.stop()
        if phase == "runtime":
            return Outcome(name, form, "runtime-fails", reason=f"ONNX Runtime itself {how}")
        return Outcome(name, form, "crashed", "crash", f"the process {how} in phase {phase}")

    def stop(self) -> str:
        """End the child; return how it had ended or that it was silent."""
        if self.process is None:
            return ""
        try:
            code = self.process.wait(timeout=2)
            how = f"ended with status {code}"
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            how = "gave no answer in time"
        self.process = None
        return how

    def close(self) -> None:
        """End the child in order."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.stop()

    def _read(self, seconds: float = _HANG_SECONDS) -> dict[str, Any] | None:
        assert self.process is not None and self.process.stdout is not None
        # Read from the descriptor: a buffered reader may hold the line that select() waits for.
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self.pending:
            looks = (select.select([descriptor], [], [], _LOOK_SECONDS)[0] for _ in range(int(seconds / _LOOK_SECONDS)))
            piece = os.read(descriptor, 1 << 16) if any(looks) else b""
            if not piece:
                return None
            self.pending += piece
        line, _, self.pending = self.pending.partition(b"\n")
        return json.loads(line)


def run(jobs: Sequence[tuple[int, str]], level: int, workers: int) -> Iterator[Outcome]:
    """All jobs, spread over workers; outcomes as they come."""
    todo: Queue[tuple[int, str]] = Queue()
    done: Queue[Outcome | None] = Queue()
    for job in jobs:
        todo.put(job)

    def serve() -> None:
        worker = Worker()
        try:
            while True:
                index, form = todo.get_nowait()
                done.put(worker.measure(index, form, level))
        except Empty:
            worker.close()
        finally:
            done.put(None)

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(serve) for _ in range(workers)]
        left = workers
        while left:
            outcome = done.get()
            if outcome is None:
                left -= 1
            else:
                yield outcome
        for item in running:
            item.result()


def choose(names: Sequence[str], every: int, wanted: Sequence[str] | None) -> list[int]:
    """Indices of the cases to run: the wanted ones, or each `every`-th of a seeded shuffle."""
    if wanted:
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise SystemExit(f"no such case: {', '.join(unknown)}")
        return [names.index(name) for name in wanted]
    order = list(range(len(names)))
    random.Random(_SEED).shuffle(order)
    return sorted(order[::every])


def figure(outcomes: Sequence[Outcome], level: int, forms: Sequence[str]) -> Figure:
    """The page: one row per form, then what failed."""
    page = Figure(
        "conformance",
        f"Official ONNX node cases through -O{level}",
        "Each case of onnx's own loader is run in ONNX Runtime alone and through capture, the pipeline for the CPU and "
        "ONNX Runtime, and judged by the rules of onnx's own suite. Cases that the runtime alone fails do not count.",
        (
            f"at least {MIN_PASSED:.0%} of the cases that count pass in each form",
            "none crashes",
            "each failure has a reason",
        ),
    )
    table = Table(
        ("form", "cases", "not in this form", "runtime alone fails", "count", "pass", "fail", "crash", "part")
    )
    for form in forms:
        rows = [outcome for outcome in outcomes if outcome.form == form]
        found = Counter(outcome.status for outcome in rows)
        total = sum(outcome.counts for outcome in rows)
        part = found["passed"] / total if total else 0.0
        cells = (
            found["not-applicable"],
            found["runtime-fails"],
            total,
            found["passed"],
            found["failed"],
            found["crashed"],
        )
        table.add(TITLES[form], len(rows), *cells, f"{part:.2%}")
        page.require(total > 0, f"{TITLES[form]}: no case counts")
        page.require(part >= MIN_PASSED, f"{TITLES[form]}: {found['passed']} of {total} pass ({part:.2%})")
        page.require(not found["crashed"], f"{TITLES[form]}: {found['crashed']} cases crash the process")
    page.tables.append(table)
    failures = [outcome for outcome in outcomes if outcome.status in ("failed", "crashed")]
    if failures:
        listed = Table(("case", "form", "kind", "pass", "reason"), "What fails", words=5)
        for outcome in sorted(failures, key=lambda item: (item.blamed, item.case, item.form)):
            listed.add(outcome.case, outcome.form, outcome.kind, outcome.blamed or "-", outcome.reason)
        page.tables.append(listed)
    page.require(all(outcome.reason for outcome in failures), "a failure has no reason")
    return page


def report(outcomes: Sequence[Outcome]) -> str:
    """Failures by the pass to blame, each with its smallest case: for those who write the passes."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status in ("failed", "crashed"):
            groups[outcome.blamed or "(no pass)", outcome.kind].append(outcome)
    parts = []
    for (blamed, kind), found in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]))):
        smallest = min(found, key=lambda item: (FORMS.index(item.form), len(item.text)))
        names = ", ".join(sorted({f"{item.case}[{item.form}]" for item in found})[:12])
        parts.append(
            f"## {blamed}: {kind}, {len(found)} failures\n\ncases: {names}{' ...' if len(found) > 12 else ''}\n\n"
            f"smallest: `{smallest.case}` as `{smallest.form}`, {smallest.site}: {smallest.reason}\n\n"
            f"```\n{smallest.text.strip()}\n```\n"
        )
    return "\n".join(parts) or "nothing fails\n"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--every", type=int, default=1, help="run each N-th case of a seeded shuffle (writes no page)")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="only these cases (writes no page)")
    parser.add_argument(
        "--form", nargs="+", choices=FORMS, default=list(FORMS), help="only these forms (writes no page)"
    )
    parser.add_argument("--level", type=int, default=3, choices=range(4), help="optimization level (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="processes that run cases")
    parser.add_argument("--failures", type=Path, help="write failures by pass, with the smallest case of each")
    options = parser.parse_args()
    outcomes = measure(options)
    if options.failures:
        options.failures.write_text(report(outcomes), encoding="utf-8")
    partial = options.every > 1 or options.cases or set(options.form) != set(FORMS) or options.level != 3
    return figure(outcomes, options.level, options.form).finish(write=not (options.no_write or partial))


def measure(options: argparse.Namespace) -> list[Outcome]:
    """Run what the options ask for."""
    first = Worker()
    first.start()
    chosen = choose(first.names, options.every, options.cases)
    first.close()
    jobs = [(index, form) for index in chosen for form in options.form]
    say(f"{len(chosen)} cases in {len(options.form)} forms")
    start, outcomes = time.monotonic(), []
    for outcome in run(jobs, options.level, max(1, options.workers)):
        outcomes.append(outcome)
        if outcome.status in ("failed", "crashed"):
            say(f"{outcome.case} [{outcome.form}] {outcome.kind} {outcome.blamed}: {outcome.reason}")
        if len(outcomes) % 500 == 0:
            say(f"{len(outcomes)} of {len(jobs)} after {time.monotonic() - start:.0f} s")
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
