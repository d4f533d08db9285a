"""From the workloads of a model to choices for them, within a budget.

    tuner = Tuner(builders, runners, database, budget)
    tuner.run({"matmul 128x384 384x1536": 6, ...})
    tuner.choices()             # by workload: what was confirmed to be faster than the untuned choice

The best so far is in the database at any time, so an interrupted run goes on where it stopped, and what is known from
earlier runs is chosen whatever the budget. Imports no TVM.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from graphopt.errors import GraphoptError, RanTooLong
from graphopt.targets.tvm.tuning.database import Database, Record
from graphopt.targets.tvm.tuning.lane import Builder, Built, Runner, RunnerLost
from graphopt.targets.tvm.tuning.search import PATIENCE, Task, work

# Seconds of measuring: an untuned choice, a new one, and one that seems to be better.
_OPEN_SECONDS, _TRY_SECONDS, _CONFIRM_SECONDS = 0.15, 0.12, 0.5
# A choice that is so many times slower is dropped after a few runs; one that is not better by so much is not confirmed.
_HOPELESS, _BETTER = 1.15, 0.985
# Choices of one workload that are compiled, then timed.
_BATCH = 4
_MOST_FAILURES = 50

In = TypeVar("In")
Out = TypeVar("Out")
Worker = TypeVar("Worker", Builder, Runner)


@dataclass
class Failure:
    """A choice that could not be compiled or run, and why."""

    workload: str
    choice: list[Any]
    reason: str


@dataclass
class Tuner:
    """One run.

    Attributes:
        builders: compile abreast; nothing is timed meanwhile.
        runners: time abreast, each on a machine of its own.
        deadline: by time.monotonic().
        watch: is told after each step.
        lost: why runners were given up.
        tried: choices so far.
        ran_out: the budget was spent while there was more to try.
    """

    builders: list[Builder]
    runners: list[Runner]
    database: Database
    deadline: float
    watch: Callable[[Tuner], None] = lambda tuner: None
    tasks: list[Task] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    tried: int = 0
    ran_out: bool = False

    def run(self, workloads: Mapping[str, int]) -> None:
        """Tune until the budget is spent or nothing is left to try.

        Raises:
            RunnerLost: no runner is left; `choices` has what was found before.
        """
        self._begin(workloads)
        while waiting := sorted((task for task in self.tasks if task.waits), key=Task.urgency):
            if time.monotonic() >= self.deadline:
                self.ran_out = True
                return
            self._round(waiting[: len(self.runners)])

    def choices(self) -> dict[str, list[Any]]:
        """The confirmed choices."""
        return {task.workload: task.record.kept[0] for task in self.tasks if task.record.kept is not None}

    def _begin(self, workloads: Mapping[str, int]) -> None:
        """Measure every workload once, unless it is known; those that do most come first."""
        order = sorted(workloads, key=lambda text: -workloads[text] * work(text))
        known = {text: self.database.read(text) for text in order}

        self.tasks = [Task(text, workloads[text], None, record) for text, record in known.items() if record is not None]
        there = {task.workload: task for task in self.tasks}

        def prepare(builder: Builder, text: str) -> Task | None:
            record = known[text]
            if time.monotonic() >= self.deadline:
                self.ran_out |= record is None or record.idle < PATIENCE
                return None
            try:
                space = builder.space(text)
                if record is None:
                    return Task(text, workloads[text], space, Record(text, 1.0), builder.base(text, space))
            except GraphoptError as error:
                self._failed(text, [], error)
                return None
            there[text].space = space
            return None

        new = [task for task in self._abreast(self.builders, order, prepare) if task is not None]

        def measure(runner: Runner, task: Task) -> None:
            assert task.space is not None and task.base is not None
            if time.monotonic() >= self.deadline:
                self.ran_out = True
                return
            try:
                task.record.seconds = runner.open(task.space.shapes, task.base, _OPEN_SECONDS)
            except RunnerLost:
                raise
            except GraphoptError as error:
                self._failed(task.workload, task.space.default, error)
                return
            self.tasks.append(task)
            self.database.write(task.record)
            self.watch(self)

        self._abreast(self.runners, new, measure)

    def _round(self, tasks: Sequence[Task]) -> None:
        """Try a few choices of each task."""
        start = time.monotonic()

        def begin(builder: Builder, task: Task) -> None:
            assert task.space is not None
            try:
                task.base = task.base or builder.base(task.workload, task.space)
            except GraphoptError as error:
                self._failed(task.workload, task.space.default, error)
                task.space = None

        def build(builder: Builder, job: tuple[Task, list[Any]]) -> Built | None:
            task, choice = job
            if time.monotonic() >= self.deadline:
                return None
            try:
                return builder.build(task.workload, choice)
            except GraphoptError as error:
                self._refused(task, choice, error)
                return None

        self._abreast(self.builders, tasks, begin)
        jobs = [(task, choice) for task in tasks if task.waits for choice in task.proposals(_BATCH)]
        built = self._abreast(self.builders, jobs, build)
        ready = list(zip(jobs, built, strict=True))

        def measure(runner: Runner, task: Task) -> None:
            mine = [(choice, made) for (owner, choice), made in ready if owner is task and made is not None]
            if task.base is not None and mine:
                self._compare(runner, task, mine)
            self.database.write(task.record)

        self._abreast(self.runners, tasks, measure)
        for made in built:
            if made is not None:
                made.drop()
        for task in tasks:
            task.spent += (time.monotonic() - start) / len(tasks)

    def _compare(self, runner: Runner, task: Task, choices: Iterable[tuple[list[Any], Built]]) -> None:
        assert task.base is not None and task.space is not None
        try:
            runner.open(task.space.shapes, task.base, _OPEN_SECONDS)
        except RunnerLost:
            raise
        except GraphoptError as error:
            self._failed(task.workload, task.space.default, error)
            return
        for choice, built in choices:
            if time.monotonic() >= self.deadline:
                return
            try:
                found = runner.measure(built, _TRY_SECONDS, _HOPELESS)
                task.note(choice, found.ratio)
                if found.ratio < _BETTER * task.best:
                    again, noise = runner.confirm(built, _CONFIRM_SECONDS)
                    if again.high < 1 and again.ratio < task.best * (1 - abs(noise.ratio - 1)):
                        task.keep(choice, again.ratio)
            except RunnerLost:
                raise
            except GraphoptError as error:
                self._refused(task, choice, error)
            self.tried += 1
            self.watch(self)

    def _refused(self, task: Task, choice: list[Any], error: GraphoptError) -> None:
        """A choice failed: for good, unless it was the time that was short, as on a busy machine."""
        self._failed(task.workload, choice, error)
        if isinstance(error, RanTooLong):
            task.leave_out(choice)
        else:
            task.note(choice, None)

    def _failed(self, workload: str, choice: list[Any], error: GraphoptError) -> None:
        if len(self.failures) < _MOST_FAILURES:
            reason = str(error).partition(";")[0]  # what is behind it is advice for users
            self.failures.append(Failure(workload, list(choice), reason))

    def _abreast(self, workers: list[Worker], items: Sequence[In], do: Callable[[Worker, In], Out]) -> list[Out]:
        """`do(worker, item)` for every item, on whichever worker is free; the item of one that is lost goes to another.

        Raises:
            RunnerLost: the last one is lost.
        """
        free: SimpleQueue[Worker | None] = SimpleQueue()
        for worker in workers:
            free.put(worker)

        def one(item: In) -> Out:
            while True:
                worker = free.get()
                if worker is None:
                    free.put(None)  # for those that wait as well
                    raise RunnerLost(self.lost[-1])
                try:
                    done = do(worker, item)
                except RunnerLost as error:
                    self.lost.append(str(error))
                    workers.remove(worker)
                    worker.close()
                    if not workers:
                        free.put(None)
                    continue
                except BaseException:
                    free.put(worker)
                    raise
                free.put(worker)
                return done

        with ThreadPoolExecutor(max(1, len(workers))) as pool:
            try:
                return list(pool.map(one, items))
            except BaseException:  # Ctrl-C: what is running ends after its present choice
                self.deadline = time.monotonic()
                raise
