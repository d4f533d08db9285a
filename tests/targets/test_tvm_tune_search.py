"""The tuner on made-up builders and runners: what it tries, keeps and remembers, and what it does when one is lost."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import GraphoptError, RanTooLong
from graphopt.manager.registry import make_target
from graphopt.targets.tvm.tuning.database import Database, Record
from graphopt.targets.tvm.tuning.lane import Built, Measured, RunnerLost, Space
from graphopt.targets.tvm.tuning.search import PATIENCE, Task, distance
from graphopt.targets.tvm.tuning.tuner import Tuner
from graphopt.tuning import Remote, Tuning

BIG, SMALL = "matmul 128x384 384x1536", "matmul 16x64 64x64"
KEY = {"machine": {"isa": "avx2"}, "versions": {"apache-tvm": "1", "schedules": "a"}}


def choice(rows: int, row_blocks: int = 1) -> list[Any]:
    return ["direct", rows, 1, 2, row_blocks, 1, 0, 0]


CHOICES = [choice(rows, blocks) for blocks in (1, 2, 4) for rows in range(1, 13)]


@dataclass
class FakeBuilder:
    """Builds folders that are named after the choice."""

    folder: Path
    bad: tuple[list[Any], ...] = ()
    error: GraphoptError = field(default_factory=lambda: GraphoptError("TVM refused it; raise the limit"))
    built: list[list[Any]] = field(default_factory=list)

    def space(self, workload: str) -> Space:
        return Space(choice(5), [item for item in CHOICES if item != choice(5)], [[1], [1], [1]])

    def base(self, workload: str, space: Space) -> Built:
        return Built(self.folder / json.dumps(space.default))

    def build(self, workload: str, chosen: list[Any]) -> Built:
        self.built.append(chosen)
        if chosen in self.bad:
            raise self.error
        return Built(self.folder / json.dumps(chosen))

    def close(self) -> None: ...


@dataclass
class FakeRunner:
    """Its time is least at eight rows and two blocks; `noise` is what the untuned choice differs from itself."""

    noise: float = 0.0
    left: int = 10**9
    opened: int = 0
    closed: bool = False

    def ratio(self, built: Built) -> float:
        _, rows, *_ = given = json.loads(built.folder.name)
        return 0.6 + 0.15 * distance(given, choice(8, 2)) if rows != 1 else 5.0

    def open(self, shapes: Any, base: Built, seconds: float) -> float:
        self._use()
        self.opened += 1
        return 1e-3

    def measure(self, built: Built, seconds: float, hopeless: float) -> Measured:
        self._use()
        ratio = self.ratio(built)
        return Measured(ratio, ratio - 0.01, ratio + 0.01, ratio * 1e-3)

    def confirm(self, built: Built, seconds: float) -> tuple[Measured, Measured]:
        ratio = self.ratio(built)
        again = 1 + self.noise
        return Measured(ratio, ratio - 0.01, ratio + 0.01, ratio * 1e-3), Measured(again, again, again, 1e-3)

    def close(self) -> None:
        self.closed = True

    def _use(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise RunnerLost("no machine is left")


def tuner(tmp_path: Path, builder: Any = None, runners: Any = None, seconds: float = 60.0, **changes: Any) -> Tuner:
    database = Database(tmp_path / "cache", KEY)
    made = builder or FakeBuilder(tmp_path)
    return Tuner([made], runners or [FakeRunner()], database, time.monotonic() + seconds, **changes)


def test_the_fastest_choice_is_found_and_remembered(tmp_path: Path) -> None:
    first = tuner(tmp_path)
    first.run({BIG: 3, SMALL: 1})
    assert first.choices() == {BIG: choice(8, 2), SMALL: choice(8, 2)}
    again = tuner(tmp_path)
    again.run({BIG: 1})
    assert again.choices() == {BIG: choice(8, 2)}
    assert again.tried == 0, "another model that has the workload tries nothing that is known"


def test_noise_as_large_as_the_gain_keeps_nothing(tmp_path: Path) -> None:
    noisy = tuner(tmp_path, runners=[FakeRunner(noise=0.5)])
    noisy.run({BIG: 1})
    assert noisy.tried > PATIENCE / 2 and noisy.choices() == {}


def test_candidates_that_fail_are_logged_and_not_tried_again(tmp_path: Path) -> None:
    bad = (choice(8, 2), choice(7, 2))
    builder = FakeBuilder(tmp_path, bad)
    first = tuner(tmp_path, builder)
    first.run({BIG: 1})
    assert [item.choice for item in first.failures if item.choice in bad] and first.choices()[BIG] not in bad
    assert first.failures[0].reason == "TVM refused it"
    second = FakeBuilder(tmp_path, bad)
    tuner(tmp_path, second).run({BIG: 1})
    assert not [item for item in second.built if item in builder.built]


def test_what_ran_into_the_time_limit_is_tried_again_in_the_next_run(tmp_path: Path) -> None:
    busy = FakeBuilder(tmp_path, (choice(8, 2),), RanTooLong("compiling the candidate took over 5 s and was stopped"))
    first = tuner(tmp_path, busy)
    first.run({BIG: 1})
    assert busy.built.count(choice(8, 2)) == 1 and [item.choice for item in first.failures] == [choice(8, 2)]
    known = first.database.read(BIG)
    assert known is not None and json.dumps(choice(8, 2)) not in known.tried
    known.idle = 0
    first.database.write(known)
    again = tuner(tmp_path)
    again.run({BIG: 1})
    assert again.choices() == {BIG: choice(8, 2)}


def test_a_base_that_cannot_be_built_ends_its_workload_only(tmp_path: Path) -> None:
    class Broken(FakeBuilder):
        def base(self, workload: str, space: Space) -> Built:
            if workload == SMALL:
                raise RanTooLong("compiling the candidate took over 65 s and was stopped")
            return super().base(workload, space)

    Database(tmp_path / "cache", KEY).write(Record(SMALL, 1e-3, {}, (choice(7), 0.9), 1))
    run = tuner(tmp_path, Broken(tmp_path))
    run.run({BIG: 1, SMALL: 1})
    assert run.choices() == {BIG: choice(8, 2), SMALL: choice(7)} and not run.ran_out


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def stop(running: Tuner) -> None:
        if running.tried == 9:
            raise KeyboardInterrupt

    builder = FakeBuilder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tuner(tmp_path, builder, watch=stop).run({BIG: 1})
    known = Database(tmp_path / "cache", KEY).read(BIG)
    assert known is not None and len(known.tried) >= 8
    resumed = FakeBuilder(tmp_path)
    again = tuner(tmp_path, resumed)
    again.run({BIG: 1})
    assert not [item for item in resumed.built if json.dumps(item) in known.tried]
    assert again.choices() == {BIG: choice(8, 2)}


def test_what_takes_most_of_the_model_gets_most_of_the_time(tmp_path: Path) -> None:
    order: list[str] = []

    class Slow(FakeBuilder):
        def build(self, workload: str, chosen: list[Any]) -> Built:
            order.append(workload)
            time.sleep(0.002)
            return super().build(workload, chosen)

    run = tuner(tmp_path, Slow(tmp_path))
    run.run({BIG: 12, SMALL: 1})
    assert order[:24].count(BIG) > 2 * order[:24].count(SMALL)


def test_the_work_of_a_runner_that_is_lost_goes_to_another(tmp_path: Path) -> None:
    dying, living = FakeRunner(left=3), FakeRunner()
    run = tuner(tmp_path, runners=[dying, living])
    run.run({BIG: 1, SMALL: 1})
    assert dying.closed and run.lost == ["no machine is left"]
    assert run.choices() == {BIG: choice(8, 2), SMALL: choice(8, 2)}


def test_the_last_runner_that_is_lost_is_an_error(tmp_path: Path) -> None:
    run = tuner(tmp_path, runners=[FakeRunner(left=4), FakeRunner(left=1)])
    with pytest.raises(RunnerLost, match="no machine is left"):
        run.run({BIG: 1, SMALL: 1})
    assert run.runners == []


def test_what_was_found_before_the_last_runner_was_lost_counts(tmp_path: Path) -> None:
    Database(tmp_path / "cache", KEY).write(Record(SMALL, 1e-3, {}, (choice(7), 0.9), PATIENCE))
    run = tuner(tmp_path, runners=[FakeRunner(left=30)])
    with pytest.raises(RunnerLost):
        run.run({BIG: 1, SMALL: 1})
    assert run.choices().keys() == {BIG, SMALL}
    none = tuner(tmp_path / "other", runners=[FakeRunner(left=0)])
    none.database.write(Record(SMALL, 1e-3, {}, (choice(7), 0.9), PATIENCE))
    with pytest.raises(RunnerLost):
        none.run({BIG: 1, SMALL: 1})
    assert none.choices() == {SMALL: choice(7)}


def test_the_budget_ends_a_run(tmp_path: Path) -> None:
    run = tuner(tmp_path, seconds=0.0)
    run.run({BIG: 1})
    assert run.tasks == [] and run.choices() == {} and run.ran_out


def test_what_is_known_is_chosen_when_the_budget_is_spent(tmp_path: Path) -> None:
    Database(tmp_path / "cache", KEY).write(Record(BIG, 1e-3, {}, (choice(8), 0.9), 3))
    builder = FakeBuilder(tmp_path)
    run = tuner(tmp_path, builder, seconds=0.0)
    run.run({BIG: 1, SMALL: 1})
    assert run.choices() == {BIG: choice(8)}
    assert run.ran_out and run.tried == 0 and builder.built == []
    assert [(task.workload, task.finished) for task in run.tasks] == [(BIG, False)]


@dataclass
class Made:
    """What compile_tuned is told of a compilation."""

    workloads: dict[str, int]
    files: tuple[str, ...] = ()


def compile_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, runner: FakeRunner, tuning: Tuning
) -> tuple[list[dict[str, Any]], Any]:
    """What was compiled (choices), and the result of tuning with made-up processes."""
    pytest.importorskip("tvm")
    from graphopt.targets.tvm.tuning import model

    monkeypatch.setenv("GRAPHOPT_CACHE", str(folder / "cache"))
    monkeypatch.setattr(model, "machines", lambda remote: 1)
    monkeypatch.setattr(model, "Builder", lambda machine, scratch, limit: FakeBuilder(scratch))
    monkeypatch.setattr(model, "_runner", lambda machine, tuning, limit: runner)
    made: list[dict[str, Any]] = []

    def make(where: Path, choices: Any) -> Any:
        made.append(dict(choices))
        return Made({BIG: 1})

    def compare(*arguments: Any) -> Any:
        raise GraphoptError("no machine has registered with this key")

    monkeypatch.setattr(model, "_compare", compare)
    target: Any = make_target("tvm{isa=avx2 threads=1}")
    shipped, result = model.compile_tuned(make, folder, target, tuning)
    assert shipped.files == () and result.decisions["choices"] == {} and result.details["shipped"] == "untuned"
    return made, result


REMOTE = Remote("127.0.0.1", 1, "board")


def test_the_untuned_code_is_shipped_when_the_last_machine_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, result = compile_with(monkeypatch, tmp_path, FakeRunner(left=2), Tuning(60.0, remote=REMOTE))
    assert made == [{}]
    assert "no machine is left" in result.notes and "tuning ended there: no machine is left" in result.notes
    assert result.notes[-1].endswith("the untuned code is shipped")


def test_what_cannot_be_timed_as_a_whole_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, result = compile_with(monkeypatch, tmp_path, FakeRunner(left=30), Tuning(60.0, remote=REMOTE))
    assert made[0] == {} and made[1].keys() == {BIG}
    assert result.notes[-1].startswith("the tuned code could not be timed (no machine has registered with this key)")


def test_a_budget_that_is_spent_at_once_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, result = compile_with(monkeypatch, tmp_path, FakeRunner(), Tuning(1e-9, remote=REMOTE))
    assert made == [{}] and result.details["tried"] == 0
    assert "the 1e-09 s of --tune were spent before anything was tried: give it more" in result.notes


def test_records_that_do_not_count_are_left_out_with_a_note(tmp_path: Path) -> None:
    record = Record(BIG, 1e-3, {json.dumps(choice(8)): 0.9}, (choice(8), 0.9), 3)
    Database(tmp_path, KEY).write(record)
    path = Database(tmp_path, KEY).path(BIG)
    assert Database(tmp_path, KEY).read(BIG) == record
    whole = json.loads(path.read_text())

    def told(data: Any) -> str:
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        database = Database(tmp_path, KEY)
        assert database.read(BIG) is None
        return database.notes[0]

    assert "other versions" in told({**whole, "key": {**KEY, "versions": {"apache-tvm": "2", "schedules": "a"}}})
    assert "another machine" in told({**whole, "key": {**KEY, "machine": {"isa": "neon"}}})
    for key, value in (
        ("kept", [["direct", 1, 1, 1, 1, 1], 0.5]),
        ("kept", [["direct", 1 << 30, 1, 1, 1, 1, 0, 0], 0.5]),
        ("seconds", -1.0),
        ("tried", {"[]": 0.5}),
        ("tried", {json.dumps(choice(8)): "fast"}),
    ):
        assert "damaged" in told({**whole, "record": {**whole["record"], key: value}}), (key, value)
    assert "damaged" in told("{") and "damaged" in told("[]") and "damaged" in told({"format": 0})


def test_a_cache_that_cannot_be_written_is_one_note(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    run = tuner(tmp_path)
    run.run({BIG: 1, SMALL: 1})
    assert run.choices() == {BIG: choice(8, 2), SMALL: choice(8, 2)}
    assert len(run.database.notes) == 1 and "is not remembered" in run.database.notes[0]
    assert "GRAPHOPT_CACHE" in run.database.notes[0]


def test_distance_is_octaves_and_other_algorithms_are_far() -> None:
    assert distance(choice(4), choice(8)) == 1 and distance(choice(4, 2), choice(4, 8)) == 2
    assert distance(choice(4), ["winograd", 4, 1, 2, 1, 1, 0, 4]) > 50


def test_a_task_is_finished_when_nothing_is_left() -> None:
    task = Task(BIG, 1, Space(choice(5), [choice(6), choice(7)], []), Record(BIG, 1e-3))
    assert task.proposals(9) == [choice(6), choice(7)] or task.proposals(9) == [choice(7), choice(6)]
    for item in (choice(6), choice(7)):
        task.note(item, 1.1)
    assert task.finished
