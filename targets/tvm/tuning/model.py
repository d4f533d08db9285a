"""A model compiled with tuned choices: untuned first, then tuned within a budget, then the faster of the two.

    made, result = compile_tuned(make, folder, target, tuning)

`made` lies in the folder. Nothing is shipped that is not faster than the untuned code by more than timing tells apart.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.environment import versions
from graphopt.errors import GraphoptError
from graphopt.models.cache import cache_root
from graphopt.progress import Progress
from graphopt.targets.tvm.compiling import Choices, Compiled
from graphopt.targets.tvm.cpu.choices import Choice, Workload
from graphopt.targets.tvm.machine import Machine, cores, cpu_name
from graphopt.targets.tvm.plan import MODEL, PLAN
from graphopt.targets.tvm.remote import machines
from graphopt.targets.tvm.settings import TvmSettings
from graphopt.targets.tvm.tuning.database import Database, schedules_version
from graphopt.targets.tvm.tuning.lane import Builder, Runner, RunnerLost, local_runner, remote_runner
from graphopt.targets.tvm.tuning.tuner import Tuner
from graphopt.timing import BenchPlan, BenchReport, bench

if TYPE_CHECKING:
    from graphopt.target import Place
    from graphopt.targets.tvm.target import Tvm
    from graphopt.tuning import Tuning

Make = Callable[[Path, Choices], Compiled]
"""make(folder, choices): compile the model into an existing folder."""
_MOST_BUILDERS, _MOST_RUNNERS = 4, 16
# Most of the budget that stays for compiling the tuned model and timing it, and that timing's seconds per row.
_RESERVE, _BENCH_SECONDS = 0.4, 4.0
# Seconds that a choice may take to compile or to time, at most and at least.
_CANDIDATE_SECONDS = (5.0, 20.0)


@dataclass(frozen=True)
class Result:
    """What tuning chose (for plans.json), what the report tells, and what the user is told."""

    decisions: dict[str, Any]
    details: dict[str, Any]
    notes: tuple[str, ...]


def compile_tuned(make: Make, folder: Path, target: Tvm, tuning: Tuning) -> tuple[Compiled, Result]:
    """Compile into `folder`, with the choices that were found, or those of an earlier run.

    Raises:
        GraphoptError: this machine cannot run the code, no machine waits at the tracker, or decisions that are damaged
            or were made for another kind of machine.
    """
    machine = target.machine()
    if tuning.decisions is not None:
        choices = _replayed(tuning.decisions, machine)
        return make(folder, choices), Result(dict(tuning.decisions), {"replayed": len(choices)}, ())
    start = time.monotonic()
    count = _places(target, tuning)
    untuned = make(folder, {})
    compiled = time.monotonic() - start
    end = start + tuning.seconds - min(_RESERVE * tuning.seconds, compiled + 3 * _bench_seconds(tuning))
    tuner = _tune(untuned.workloads, machine, tuning, count, start, end)
    choices, shipped, report, notes = tuner.choices(), untuned, None, _notes(tuner, tuning)
    with tempfile.TemporaryDirectory(prefix="graphopt-tune-") as scratch:
        try:
            if choices:
                made = make(Path(scratch), choices)
                report = _compare(folder, untuned, Path(scratch), made, target, tuning)
        except GraphoptError as error:
            notes.append(f"the tuned code could not be timed ({error}); the untuned code is shipped")
        if report is not None and _is_faster(report):
            shipped = made
            for name in (*made.files, PLAN):
                shutil.move(Path(scratch) / name, folder / name)
    if not choices:
        notes.append(f"tuning found nothing faster among {tuner.tried} candidates; the untuned code is shipped")
    decisions = _decisions(machine, choices if shipped is not untuned else {})
    details = _details(tuner, report, time.monotonic() - start)
    return shipped, Result(decisions, details, (*notes, *_verdict(report)))


def _tune(
    workloads: Mapping[str, int], machine: Machine, tuning: Tuning, places: int, start: float, end: float
) -> Tuner:
    """A tuner that has run on so many machines till `end`, or till the last of them was lost."""
    limit = min(max(tuning.seconds / 20, _CANDIDATE_SECONDS[0]), _CANDIDATE_SECONDS[1])
    database = Database(cache_root() / "tvm" / "tuned", _key(machine, tuning))
    with tempfile.TemporaryDirectory(prefix="graphopt-tune-") as scratch, ExitStack() as stack:
        builders = [Builder(machine, Path(scratch), limit) for _ in range(min(cores(), _MOST_BUILDERS))]
        runners = [_runner(machine, tuning, limit) for _ in range(places)]
        for close in [*(builder.close for builder in builders), *(runner.close for runner in runners)]:
            stack.callback(close)
        progress = stack.enter_context(Progress("tuning", round(tuning.seconds), shown=tuning.progress))
        tuner = Tuner(builders, runners, database, end, _watch(progress, start))
        with suppress(RunnerLost):  # `lost` tells; what was found before is there
            tuner.run(workloads)
    return tuner


def _replayed(decisions: Mapping[str, Any], machine: Machine) -> dict[str, list[Any]]:
    """The choices of an earlier run, checked."""
    made_for = {"isa": machine.isa, "threads": machine.threads}
    if decisions.get("machine") != made_for:
        raise GraphoptError(
            f"the tuned choices were made for {decisions.get('machine')}, and this compilation is for {made_for}; "
            "name both in the target, or tune again"
        )
    try:
        found = [(Workload.parse(text), Choice.from_json(choice)) for text, choice in decisions["choices"].items()]
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise GraphoptError(f"the tuned choices are damaged ({error}); tune again") from None
    return {str(workload): choice.to_json() for workload, choice in found}


def _places(target: Tvm, tuning: Tuning) -> int:
    """On how many machines choices are timed.

    Raises:
        GraphoptError: on none, or there is nothing to time.
    """
    if target.device == "cuda":
        raise GraphoptError(
            "tuning tries convolutions and products of CPU code, and device=cuda has none: leave --tune out"
        )
    if tuning.remote is not None:
        return min(machines(tuning.remote), _MOST_RUNNERS)
    reason = target.available() if target.emulator == "none" else f"emulator={target.emulator} tells no times"
    if reason is not None:
        raise GraphoptError(f"tuning times code, and that cannot be run here: {reason}; tune on another with --remote")
    return 1


def _runner(machine: Machine, tuning: Tuning, limit: float) -> Runner:
    if tuning.remote is not None:
        return remote_runner(tuning.remote, machine.threads, limit)
    return local_runner(TvmSettings(threads=machine.threads).environment(), limit)


def _key(machine: Machine, tuning: Tuning) -> dict[str, Any]:
    """What a measurement depends on."""
    made = versions(("apache-tvm",)).get("apache-tvm", "")
    return {
        "machine": {**machine.to_json(), "cpu": str(tuning.remote or cpu_name())},
        "versions": {"apache-tvm": made, "schedules": schedules_version()},
    }


def _decisions(machine: Machine, choices: Mapping[str, list[Any]]) -> dict[str, Any]:
    return {"machine": {"isa": machine.isa, "threads": machine.threads}, "choices": dict(sorted(choices.items()))}


def _watch(progress: Progress, start: float) -> Callable[[Tuner], None]:
    def show(tuner: Tuner) -> None:
        total = sum(task.seconds for task in tuner.tasks) * 1e3
        best = sum(task.seconds * task.best for task in tuner.tasks) * 1e3
        progress.title = f"tuning {len(tuner.tasks)} layers, {total:.2f} ms, best {best:.2f} ms, {tuner.tried} tried"
        progress.step(max(0, int(time.monotonic() - start) - progress.done))

    return show


def _compare(folder: Path, untuned: Compiled, other: Path, tuned: Compiled, target: Tvm, tuning: Tuning) -> BenchReport:
    """The two models in turns: here each in a process of its own, or both on one remote machine."""
    from graphopt.frontends.capture import capture
    from graphopt.running import feeds_for

    settings = {**target.settings(), "force_spinning_stop": True}
    first, second = folder / untuned.main, other / tuned.main
    with ExitStack() as stack:
        place: Tvm | Place = target
        if tuning.remote is not None:
            place = stack.enter_context(target.remote(tuning.remote))
        with place.load(first, settings) as runner:
            feeds = feeds_for(capture(folder / MODEL)[0], runner, None)
        return bench(
            [first, second], feeds, lambda path: place.load(path, settings), BenchPlan(seconds=_bench_seconds(tuning))
        )


def _bench_seconds(tuning: Tuning) -> float:
    return min(_BENCH_SECONDS, tuning.seconds / 20)


def _is_faster(report: BenchReport) -> bool:
    """Whether the tuned model is faster by more than the untuned one differs from itself."""
    _, again, tuned = report.rows
    return tuned.ratio_high < 1 and tuned.ratio < 1 - abs(again.ratio - 1)


def _details(tuner: Tuner, report: BenchReport | None, seconds: float) -> dict[str, Any]:
    layers = [
        {
            "workload": task.workload,
            "count": task.count,
            "seconds": task.record.seconds,
            "ratio": task.best,
            "choice": None if task.record.kept is None else task.record.kept[0],
            "tried": len(task.record.tried),
            "finished": task.finished,
        }
        for task in sorted(tuner.tasks, key=lambda task: -task.seconds)
    ]
    out: dict[str, Any] = {
        "seconds": seconds,
        "tried": tuner.tried,
        "layers": layers,
        "failures": [asdict(item) for item in tuner.failures],
        "shipped": "tuned" if report is not None and _is_faster(report) else "untuned",
    }
    return out if report is None else {**out, "timing": report.to_json()}


def _notes(tuner: Tuner, tuning: Tuning) -> list[str]:
    """What the user is told of the search."""
    notes = [*tuner.database.notes, *tuner.lost]
    if not tuner.runners:
        notes.append("tuning ended there: no machine is left")
    elif tuner.ran_out and not tuner.tried:
        notes.append(f"the {tuning.seconds:g} s of --tune were spent before anything was tried: give it more")
    if tuner.failures:
        first = tuner.failures[0]
        notes.append(
            f"{len(tuner.failures)} candidates failed and were left out, first of {first.workload}: {first.reason}"
        )
    return notes


def _verdict(report: BenchReport | None) -> tuple[str, ...]:
    if report is None:
        return ()
    row, again = report.rows[2], report.rows[1]
    measured = f"the tuned code takes {row.ratio:.3f} of the untuned (A/A {again.ratio:.3f})"
    return (measured if _is_faster(report) else f"{measured}: the untuned code is shipped",)
