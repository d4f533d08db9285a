"""Tuning and timing on RPC servers of this machine behind TVM's tracker; one dies half way. What is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
for package in ("tornado", "cloudpickle", "psutil"):
    pytest.importorskip(package, reason="TVM's tracker and servers need it: pip install 'apache-tvm[rpc]'")
pytestmark = pytest.mark.tvm

from graphopt import driver  # noqa: E402
from graphopt.cli import main  # noqa: E402
from graphopt.driver import Options  # noqa: E402
from graphopt.errors import GraphoptError  # noqa: E402
from graphopt.ir.text import from_text  # noqa: E402
from graphopt.ir.writer import write  # noqa: E402
from graphopt.running import runnable  # noqa: E402
from graphopt.targets.tvm.remote import RemoteMachine, machines  # noqa: E402
from graphopt.targets.tvm.tuning import lane, model, search  # noqa: E402
from graphopt.targets.tvm.tuning.tuner import Tuner  # noqa: E402
from graphopt.tuning import Remote  # noqa: E402

NET = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,16,14,14] x) => (float[1,24] y) <float[24,16,3,3] w>
{ [conv] h = Conv<pads=[1,1,1,1]>(x, w) [act] r = Relu(h) [pool] g = GlobalAveragePool(r) [flat] y = Flatten(g) }"""
KEY = "board"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Farm:
    """A tracker and its servers."""

    port: int
    tracker: subprocess.Popen[bytes]
    servers: list[subprocess.Popen[bytes]]

    def remote(self, key: str = KEY) -> Remote:
        return Remote("127.0.0.1", self.port, key)

    def kill(self, number: int) -> None:
        """A server, with the process of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.servers[number].pid, signal.SIGKILL)
        self.servers[number].wait()


def start(*command: object) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    # As `python -m`, without torch, which TVM imports where it is.
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
    arguments = [sys.executable, "-c", code, *map(str, command)]
    return subprocess.Popen(arguments, stdout=quiet, stderr=quiet, start_new_session=True)


def wait_for(condition: Any, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(GraphoptError, OSError):
            if condition():
                return
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def starting() -> Iterator[Farm]:
    """Not all may have registered yet."""
    port = free_port()
    made = Farm(port, start("tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", port, "--port-end", port + 1), [])
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1.0).close() is None)
        for _ in range(2):
            own = free_port()
            address = ("--host", "127.0.0.1", "--port", own, "--port-end", own + 1)
            made.servers.append(start("tvm.exec.rpc_server", *address, "--tracker", f"127.0.0.1:{port}", "--key", KEY))
        yield made
    finally:
        for number in range(len(made.servers)):
            made.kill(number)
        os.killpg(made.tracker.pid, signal.SIGKILL)
        made.tracker.wait()


@pytest.fixture(scope="module")
def net(starting: Farm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    write(from_text(NET), folder / "net.onnx")
    driver.compile(folder / "net.onnx", "tvm{threads=1}", folder / "build")
    return folder


@pytest.fixture(scope="module")
def farm(starting: Farm, net: Path) -> Farm:
    wait_for(lambda: machines(starting.remote()) == 2)
    return starting


def test_an_artifact_runs_on_another_machine_as_here(farm: Farm, net: Path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 16, 14, 14)).astype(np.float32)}
    item = runnable(net / "build")
    with item.open() as here, RemoteMachine(farm.remote()) as place, item.open_at(place) as there:
        np.testing.assert_array_equal(there.run(feeds)["y"], here.run(feeds)["y"])
        assert len(there.time(feeds, 3)) == 3 and min(there.time(feeds, 2)) > 0
        with pytest.raises(GraphoptError, match="the feed is"):
            there.run({"x": feeds["x"][:, :3]})


def bench(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["bench", *map(str, arguments)])
    return int(left.value.code or 0)


def test_bench_times_on_another_machine(farm: Farm, net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = ("--remote", f"127.0.0.1:{farm.port}", "--key", KEY)
    assert bench(net / "build", net / "build", *where, "--duration", "0.1", "--json") == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert len(rows) == 3 and all(row["median_ms"] > 0 for row in rows)


def test_bench_of_a_plain_model_is_refused_there(farm: Farm, net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = ("--remote", f"127.0.0.1:{farm.port}", "--key", KEY)
    assert bench(net / "net.onnx", *where) == 2
    assert "runs on this machine only" in capfd.readouterr().err
    assert bench(net / "net.onnx", "--target", "tvm", *where) == 2
    assert "only models that are one library" in capfd.readouterr().err


def test_unknown_trackers_and_keys_are_refused(farm: Farm, net: Path) -> None:
    with pytest.raises(GraphoptError, match="no machine has registered with this key .*; there are: board;"):
        machines(farm.remote("bord"))
    nobody = Remote("127.0.0.1", free_port(), KEY)
    with pytest.raises(GraphoptError, match="no RPC tracker answers there"):
        driver.compile(net / "net.onnx", "tvm", net / "none", Options(tune=1.0, remote=nobody))
    with socket.create_server(("127.0.0.1", 0)) as other:

        def talk() -> None:
            peer, _ = other.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(GraphoptError, match="no RPC tracker answers there"):
            machines(Remote("127.0.0.1", other.getsockname()[1], KEY))
        thread.join()


def disturbed(disturb: Callable[[Tuner], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune for a short while, with a cache of its own, and call `disturb` after each candidate."""
    monkeypatch.setenv("GRAPHOPT_CACHE", str(folder / "cache"))
    monkeypatch.setattr(search, "PATIENCE", 6)
    monkeypatch.setattr(model, "_BENCH_SECONDS", 0.2)
    watch = model._watch

    def watched(*arguments: Any) -> Any:
        watch(*arguments)
        return disturb

    monkeypatch.setattr(model, "_watch", watched)


def test_tuning_goes_on_when_a_machine_hangs_half_way(
    farm: Farm, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    hung: list[int] = []

    def stop(tuner: Tuner) -> None:
        if tuner.tried >= 2 and not hung:  # the server in whose session candidates run
            busy = max(farm.servers, key=lambda server: len(psutil.Process(server.pid).children(recursive=True)))
            hung.append(busy.pid)
            os.killpg(busy.pid, signal.SIGSTOP)

    disturbed(stop, tmp_path, monkeypatch)
    try:
        options = Options(tune=600.0, remote=farm.remote())
        artifact = driver.compile(net / "net.onnx", "tvm{threads=1}", tmp_path / "build", options)
    finally:
        for group in hung:
            os.killpg(group, signal.SIGCONT)
    told = artifact.report["lowering"]["tuning"]
    assert hung and artifact.manifest["numerics"]["status"] == "passed", told
    assert told["tried"] >= 6 and [layer["finished"] for layer in told["layers"]] == [True], told
    assert sum("timing the candidate took over" in failure["reason"] for failure in told["failures"]) == 1, told
    wait_for(lambda: machines(farm.remote()) == 2)


def test_tuning_goes_on_when_a_machine_dies_half_way(
    farm: Farm, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(tuner: Tuner) -> None:
        if tuner.tried == 2 and farm.servers[0].poll() is None:
            farm.kill(0)

    disturbed(kill, tmp_path, monkeypatch)
    options = Options(tune=600.0, remote=farm.remote())
    artifact = driver.compile(net / "net.onnx", "tvm{threads=1}", tmp_path / "build", options)
    assert farm.servers[0].poll() is not None, "it was killed"
    assert artifact.manifest["numerics"]["status"] == "passed"
    told = artifact.report["lowering"]["tuning"]
    assert told["tried"] >= 6 and told["failures"] == [], told
    assert [layer["finished"] for layer in told["layers"]] == [True]
    assert machines(farm.remote()) == 1


def test_a_runner_whose_machines_are_all_gone_is_lost(farm: Farm, tmp_path: Path) -> None:
    from graphopt.targets.tvm.machine import host

    machine = host(1)
    assert machine is not None
    builder, runner = lane.Builder(machine, tmp_path, 30.0), lane.remote_runner(farm.remote(), 1, 30.0)
    workload = "matmul 4x16 16x16"
    try:
        space = builder.space(workload)
        base = builder.base(workload, space)
        assert runner.open(space.shapes, base, 0.01) > 0
        for number in range(2):
            farm.kill(number)
        wait_for(lambda: not _registered(farm))
        with pytest.raises(lane.RunnerLost, match="no machine has registered"):
            runner.measure(base, 0.01, 9.0)
    finally:
        builder.close()
        runner.close()


def _registered(farm: Farm) -> bool:
    try:
        return machines(farm.remote()) > 0
    except GraphoptError:
        return False
