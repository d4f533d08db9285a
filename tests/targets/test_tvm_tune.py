"""Tuning in real processes: choices compute the same, `compile --tune` and its replay, candidates that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from graphopt import driver  # noqa: E402
from graphopt.artifact import Artifact  # noqa: E402
from graphopt.driver import Options  # noqa: E402
from graphopt.errors import GraphoptError  # noqa: E402
from graphopt.ir.text import from_text  # noqa: E402
from graphopt.ir.writer import write  # noqa: E402
from graphopt.manager.registry import make_target  # noqa: E402
from graphopt.targets.tvm.machine import host  # noqa: E402
from graphopt.targets.tvm.settings import TvmSettings  # noqa: E402
from graphopt.targets.tvm.tuning import model, search  # noqa: E402
from graphopt.targets.tvm.tuning.lane import Builder, local_runner  # noqa: E402
from graphopt.timing import BenchReport, BenchRow  # noqa: E402
from graphopt.tuning import Tuning, parse_duration, parse_remote  # noqa: E402

NET = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,16,14,14] x) => (float[1,10] y) <float[48,16,3,3] w, float[48] b, float[48,10] v>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w, b) [act] r = Relu(h) [pool] g = GlobalAveragePool(r)
  [flat] f = Flatten(g) [out] m = MatMul(f, v) [prob] y = Softmax(m) }"""
CONV = "conv2d 1x14x14x16 48x16x3x3 1,1,1,1,1,1,1,1,1"
WORKLOADS = (
    CONV,
    "conv2d 2x9x11x24 40x12x3x2 2,1,1,2,1,0,2,1,2",
    "conv2d 1x13x10x37 37x1x3x3 1,2,1,1,1,1,1,1,37",
    "conv2d 1x7x7x64 40x64x1x1 1,1,1,1,0,0,0,0,1",
    "matmul 13x64 64x100",
    "batch_matmul 3x17x9 3x9x29",
)


def spread(items: list[Any], count: int) -> list[Any]:
    """So many, from the first to the last."""
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


@pytest.mark.parametrize("text", WORKLOADS)
def test_all_choices_of_a_workload_compute_the_same(text: str, tmp_path: Path) -> None:
    """Built and run as the workers do, which refuse another result than the untuned one's."""
    from graphopt.targets.tvm.cpu.choices import Choice, Workload
    from graphopt.targets.tvm.tuning.kernel import build, shapes
    from graphopt.targets.tvm.tuning.space import space
    from graphopt.targets.tvm.tuning.worker_measure import Function, Values, check

    workload, machine = Workload.parse(text), host(2)
    assert machine is not None and str(workload) == text
    default, choices = space(workload, machine)
    kinds = {(item.algorithm, item.m): item for item in choices}
    values = Values.of(shapes(workload))
    expected = None
    for number, choice in enumerate([None, default, *kinds.values(), *spread(choices, 5)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        build(workload, choice if choice is None else Choice.from_json(choice.to_json()), machine, folder)
        result = Function(folder, values).result()
        assert np.isfinite(result).all()
        expected = result if expected is None else expected
        check(result, expected)
    if text == CONV:
        assert {("direct", 0), ("winograd", 2), ("winograd", 4)} <= kinds.keys()


def test_a_choice_of_another_kind_is_refused() -> None:
    from graphopt.targets.tvm.cpu.choices import Choice, Workload
    from graphopt.targets.tvm.tuning.kernel import kernel

    machine = host(2)
    assert machine is not None
    winograd = Choice.from_json(["winograd", 7, 1, 2, 1, 1, 0, 4])
    for text in WORKLOADS[1:]:
        with pytest.raises(ValueError, match="winograd|Winograd"):
            kernel(Workload.parse(text), winograd, machine)
    for text in ("conv2d 1x2 3x4", "matmul 1x2", "pool 1x2 2x3", "matmul 0x2 2x3", "conv2d 1x2x3x4 5x4x3x3 1,1"):
        with pytest.raises(ValueError):
            Workload.parse(text)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("tuned")
    write(from_text(NET), folder / "net.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHOPT_CACHE", str(folder / "cache"))
        patch.setattr(search, "PATIENCE", 3)
        patch.setattr(model, "_BENCH_SECONDS", 0.3)
        options = Options(tune=90.0)
        return folder, driver.compile(folder / "net.onnx", "tvm{threads=1}", folder / "build", options)


def test_a_tuned_artifact_is_verified_and_tells_what_was_tried(tuned: tuple[Path, Artifact]) -> None:
    folder, artifact = tuned
    assert artifact.manifest["numerics"]["status"] == "passed"
    told = artifact.report["lowering"]["tuning"]
    assert told["tried"] > 0 and told["failures"] == []
    assert {layer["workload"] for layer in told["layers"]} == {CONV, "matmul 1x48 48x10"}
    plans = json.loads((folder / "build" / "plans.json").read_text())["plans"]
    assert [plan["pass"] for plan in plans] == ["tune"]
    assert bool(plans[0]["decisions"]["choices"]) == (told["shipped"] == "tuned")
    assert {"model.so", "plans.json"} <= set(artifact.manifest["not_reproducible"])
    assert any("untuned" in note for note in artifact.manifest["notes"])
    assert len(list((folder / "cache" / "tvm" / "tuned").glob("*.json"))) == 2


def test_a_saved_plan_is_carried_out_without_measuring(tuned: tuple[Path, Artifact], tmp_path: Path) -> None:
    folder, _ = tuned
    data = json.loads((folder / "build" / "plans.json").read_text())
    data["plans"][0]["decisions"]["choices"] = {CONV: ["direct", 2, 14, 1, 3, 1, 1, 0]}
    plan = tmp_path / "plans.json"
    plan.write_text(json.dumps(data))
    artifact = driver.compile(folder / "net.onnx", "tvm{threads=1}", tmp_path / "build", Options(plan=plan))
    assert artifact.manifest["numerics"]["status"] == "passed"
    assert artifact.report["lowering"]["tuning"] == {"replayed": 1}
    assert json.loads((tmp_path / "build" / "plans.json").read_text()) == data
    packed = 48 * 16 * 9 * 4
    assert (tmp_path / "build" / "model.so").stat().st_size > packed
    driver.compile(folder / "net.onnx", "tvm{threads=1}", tmp_path / "build", Options(plan=plan, frozen=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"decisions": {"machine": {"isa": "neon", "threads": 1}, "choices": {}}},
            "made for .*neon.* this compilation",
        ),
        ({"decisions": {"choices": {"matmul": []}}}, "damaged"),
        ({"decisions": {"choices": {CONV: ["direct", 99, 99, 9, 1, 1, 0, 0]}}}, "damaged"),
        ({"model": "0" * 64}, "another model"),
    ],
)
def test_a_plan_of_something_else_is_refused(
    tuned: tuple[Path, Artifact], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder, _ = tuned
    data = json.loads((folder / "build" / "plans.json").read_text())
    decisions = {**data["plans"][0]["decisions"], **change.pop("decisions", {})}
    data["plans"][0] |= {**change, "decisions": decisions}
    plan = tmp_path / "plans.json"
    plan.write_text(json.dumps(data))
    with pytest.raises(GraphoptError, match=message):
        driver.compile(folder / "net.onnx", "tvm{threads=1}", tmp_path / "build", Options(plan=plan))


def test_candidates_that_crash_or_hang_the_compiler_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    machine = host(1)
    assert machine is not None
    builder = Builder(machine, tmp_path, 1.0, "tvm_planted_builder")
    crashing, hanging = (["direct", 1, 1, vectors, 1, 1, 0, 0] for vectors in (7, 8))
    workload = "matmul 8x64 64x128"
    try:
        with pytest.raises(GraphoptError, match="was killed by SIGSEGV while compiling the candidate"):
            builder.build(workload, crashing)
        with pytest.raises(GraphoptError, match="compiling the candidate took over 1 s and was stopped"):
            builder.build(workload, hanging)
        assert list(tmp_path.iterdir()) == []
        assert (builder.base(workload, builder.space(workload)).folder / "candidate.so").is_file(), "it goes on"
    finally:
        builder.close()


def test_functions_that_fail_or_compute_something_else_are_left_out(tmp_path: Path) -> None:
    machine = host(1)
    assert machine is not None
    workload = "matmul 8x64 64x16"
    builder = Builder(machine, tmp_path, 30.0)
    runner = local_runner(TvmSettings(threads=1).environment(), 30.0)
    try:
        space = builder.space(workload)
        base, wrong, broken, good = (builder.base(workload, space) for _ in range(4))
        with pytest.raises(GraphoptError, match="no workload is open"):
            runner.measure(good, 0.01, 9.0)
        assert runner.open(space.shapes, base, 0.01) > 0
        np.save(wrong.folder / "weights.npy", np.load(base.folder / "weights.npy") + 1)
        with pytest.raises(GraphoptError, match="of the largest value away from that of the untuned function"):
            runner.measure(wrong, 0.01, 9.0)
        (broken.folder / "candidate.so").write_bytes(b"\x7fELF broken")
        with pytest.raises(GraphoptError, match="cannot load"):
            runner.measure(broken, 0.01, 9.0)
        assert runner._warm._child is not None
        runner._warm._child.process.kill()
        runner._warm._child.process.wait()
        assert 0.1 < runner.measure(good, 0.05, 9.0).ratio < 10, "another process goes on with what was open"
    finally:
        builder.close()
        runner.close()


def test_ctrl_c_leaves_what_was_found_and_the_next_run_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    write(from_text(NET), tmp_path / "net.onnx")
    command = [sys.executable, "-m", "graphopt", "compile", "net.onnx", "--target", "tvm{threads=1}", "--tune", "10m"]
    # A shell in the background ignores the signal, and its children would inherit that.
    command = ["env", "--default-signal=INT", *command, "-o", "build"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 180
    while not any(record["tried"] for record in records(tmp_path)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=90)
    assert process.returncode == 130 and b"Traceback" not in told
    with pytest.raises(ProcessLookupError):  # nor are its workers left
        os.killpg(process.pid, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "net.onnx"]

    left = {record["workload"]: record for record in records(tmp_path)}
    monkeypatch.setattr(search, "PATIENCE", 0)  # nothing more is tried
    monkeypatch.setattr(model, "_BENCH_SECONDS", 0.3)
    artifact = driver.compile(tmp_path / "net.onnx", "tvm{threads=1}", tmp_path / "build", Options(tune=60.0))
    assert artifact.manifest["numerics"]["status"] == "passed"
    told = artifact.report["lowering"]["tuning"]
    assert told["tried"] == 0
    for layer in told["layers"]:
        record = left[layer["workload"]]
        assert layer["tried"] == len(record["tried"]) and layer["seconds"] == record["seconds"]
        assert layer["choice"] == (None if record["kept"] is None else record["kept"][0])


def records(folder: Path) -> list[dict[str, Any]]:
    """What the tuning cache of a test holds."""
    found = (folder / "cache" / "tvm" / "tuned").glob("*.json")
    return [json.loads(path.read_text())["record"] for path in found]


def test_only_what_is_faster_than_noise_is_shipped() -> None:
    from graphopt.targets.tvm.tuning.model import _is_faster

    def row(name: str, ratio: float, high: float) -> BenchRow:
        return BenchRow(name, name, 1.0, 1.0, 9, ratio, 2 * ratio - high, high, 0.0, 0)

    def report(again: float, tuned: float, high: float) -> BenchReport:
        return BenchReport((row("A", 1.0, 1.0), row("A again", again, again), row("B", tuned, high)), 9, 2, 0.0)

    assert _is_faster(report(1.0, 0.95, 0.97))
    assert not _is_faster(report(1.0, 0.98, 1.01))
    assert not _is_faster(report(1.06, 0.95, 0.97))


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("10m", 600), ("1h", 3600), ("1.5 min", 90), ("45", 45)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "10x", "m", "-5s", "1h30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(GraphoptError, match="90s, 10m or 1h"):
        parse_duration(text)


@pytest.mark.parametrize(
    "remote, key, message",
    [
        (None, "board", "give --remote host:port"),
        ("host", "board", "wants host:port"),
        ("host:99999", "board", "wants host:port"),
        (":9190", "board", "wants host:port"),
        ("host:9190", None, "give --key"),
    ],
)
def test_half_a_remote_is_refused(remote: str | None, key: str | None, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        parse_remote(remote, key)


@pytest.mark.parametrize(
    "text, message",
    [
        ("tvm{device=aarch64 emulator=qemu threads=1}", "emulator=qemu tells no times; tune on another with --remote"),
        ("tvm{device=cuda emulator=cpu}", "products of CPU code, and device=cuda has none: leave --tune out"),
        ("tvm{device=cuda}", "products of CPU code, and device=cuda has none: leave --tune out"),
    ],
)
def test_what_tells_no_times_is_not_tuned(text: str, message: str) -> None:
    target: Any = make_target(text)
    with pytest.raises(GraphoptError, match=message):
        model._places(target, Tuning(1.0))


def test_targets_without_a_tuner_say_so(tmp_path: Path) -> None:
    write(from_text(NET), tmp_path / "net.onnx")
    with pytest.raises(GraphoptError, match=r"--tune: target onnxruntime has nothing to tune; .* --target tvm"):
        driver.compile(tmp_path / "net.onnx", "onnxruntime", tmp_path / "build", Options(tune=1.0))
    with pytest.raises(GraphoptError, match="give --tune as well"):
        remote = parse_remote("127.0.0.1:9190", "board")
        driver.compile(tmp_path / "net.onnx", "tvm", tmp_path / "build", Options(remote=remote))
    with pytest.raises(GraphoptError, match="cannot be run here"):
        target = "tvm{device=aarch64}" if host(1).triple.startswith("x86") else "tvm{isa=avx2}"  # type: ignore[union-attr]
        driver.compile(tmp_path / "net.onnx", target, tmp_path / "build", Options(tune=1.0))
