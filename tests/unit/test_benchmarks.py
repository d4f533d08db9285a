"""The figures' own arithmetic: what they count, what they hold to which bar, and that a miss fails the script."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # the figures are scripts of the checkout, not part of the package

from benchmarks import faults, latency, nodes, opt_time, peers, random_graphs, scale, zoo  # noqa: E402
from benchmarks.figure import Figure, Table, pick  # noqa: E402


def empty_figure() -> Figure:
    return Figure("name", "Title", "Text.", ("a bar",))


def model_with_inner_graphs(path: Path, *, external: bool = False) -> Path:
    """5 nodes: If with a Neg in each branch, a call of a function, and the Relu inside it."""
    value = oh.make_tensor_value_info
    float_ = onnx.TensorProto.FLOAT
    branches = [
        oh.make_graph([oh.make_node("Neg", ["x"], [out])], out, [], [value(out, float_, [4])]) for out in ("a", "b")
    ]
    relu = oh.make_node("Relu", ["t"], ["u"])
    function = oh.make_function("local", "F", ["t"], ["u"], [relu], [oh.make_opsetid("", 18)])
    graph = oh.make_graph(
        [
            oh.make_node("If", ["c"], ["m"], then_branch=branches[0], else_branch=branches[1]),
            oh.make_node("F", ["m"], ["y"], domain="local"),
        ],
        "g",
        [value("x", float_, [4]), value("c", onnx.TensorProto.BOOL, [])],
        [value("y", float_, [4])],
        [onnx.numpy_helper.from_array(np.zeros(1000, "float32"), "w")],
    )
    opsets = [oh.make_opsetid("", 18), oh.make_opsetid("local", 1)]
    model = oh.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights", size_threshold=0)
    return path


def test_ops_counts_subgraphs_and_functions(tmp_path: Path) -> None:
    counts = zoo.ops(model_with_inner_graphs(tmp_path / "m.onnx"))
    assert counts == Counter({"If": 1, "Neg": 2, "local::F": 1, "Relu": 1})


def test_file_bytes_counts_external_data(tmp_path: Path) -> None:
    inside = zoo.file_bytes(model_with_inner_graphs(tmp_path / "m.onnx"))
    assert inside == (tmp_path / "m.onnx").stat().st_size
    outside = zoo.file_bytes(model_with_inner_graphs(tmp_path / "e.onnx", external=True))
    assert outside == (tmp_path / "e.onnx").stat().st_size + 4000


def test_loads_says_why_not(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert zoo.loads(model_with_inner_graphs(tmp_path / "m.onnx")) == ""
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert zoo.loads(tmp_path / "bad.onnx")


def test_groups_name_models_of_the_zoo() -> None:
    known = set(zoo.onnx_models())
    named = {*zoo.OCR_AND_CNN, *zoo.TRANSFORMERS, *zoo.MINILM, zoo.VIT, *latency.SHAPES}
    named |= {name for names in faults.PLANTED.values() for name in names}
    assert named <= known
    assert "minilm-l6" not in known, "a folder of weights is no ONNX model"


def result(count: int, size: int = 100, error: str = "") -> nodes.Result:
    return nodes.Result(error, Counter({"Add": count}), size)


@pytest.mark.parametrize(
    ("ours", "peers_", "misses"),
    [
        (result(10), {"a": result(10), "b": result(12)}, 0),
        (result(11), {"a": result(10), "b": result(12)}, 1),
        (result(11), {"a": result(10, error="fails"), "b": result(12)}, 0),
        (result(9, 105), {"a": result(10)}, 0),
        (result(9, 106), {"a": result(10)}, 1),
        (result(9, 95), {"a": result(10, 90)}, 1),
        (result(99, 999), {"a": result(10, error="fails")}, 0),
        (result(9, error="exit status 70"), {"a": result(10)}, 1),
    ],
)
def test_nodes_bars(ours: nodes.Result, peers_: dict[str, nodes.Result], misses: int) -> None:
    figure = empty_figure()
    assert nodes.judge(figure, "m", result(20), ours, peers_) == (misses == 0)
    assert len(figure.missed) == misses


def test_nodes_difference_lists_what_is_left() -> None:
    ours = nodes.Result("", Counter(Relu=3, Add=1, Slice=2))
    peer = nodes.Result("", Counter(Relu=1, Add=1, Squeeze=4))
    assert nodes.difference(ours, peer) == "Relu +2, Slice +2, Squeeze -4"


@pytest.mark.parametrize(
    ("name", "peer", "allowed"), [("m", 2.0, 2.0), ("m", 1.5, 1.8), ("m", 0.5, 0.8), (zoo.VIT, 16.0, 8.0)]
)
def test_opt_time_limits(name: str, peer: float, allowed: float) -> None:
    assert opt_time.limit(name, peer) == pytest.approx(allowed)


def test_opt_time_is_held_to_the_faster_peer_that_works() -> None:
    for ours, misses in ((2.0, 0), (2.1, 1)):
        figure = empty_figure()
        assert opt_time.judge(figure, "m", {opt_time.OURS: ours, "a": 2.0, "b": 3.0}) == "2.00"
        assert len(figure.missed) == misses
    figure = empty_figure()
    assert opt_time.judge(figure, "m", {opt_time.OURS: 99.0}) == "none"
    assert not figure.missed


def test_opt_time_drops_the_first_round_and_failing_tools(tmp_path: Path) -> None:
    taken = iter([9.0, 1.0, 2.0])
    tools: dict[str, peers.Tool] = {
        "good": lambda model, output: peers.Attempt(next(taken)),
        "bad": lambda model, output: peers.Attempt(0.1, "exit status 1"),
    }
    assert opt_time.measure(Path("m"), tools, tmp_path, 2) == {"good": [1.0, 2.0], "bad": "exit status 1"}


def test_latency_groups() -> None:
    members, bar = latency.GROUPS["MiniLM"]
    good = {name: 0.5 for members, _ in latency.GROUPS.values() for name in members}
    figure = empty_figure()
    latency.judge_groups(figure, good)
    assert not figure.missed
    latency.judge_groups(figure, {**good, **dict.fromkeys(members, bar + 0.01)})
    assert [miss.partition(":")[0] for miss in figure.missed] == ["MiniLM"]
    figure = empty_figure()
    latency.judge_groups(figure, {name: ratio for name, ratio in good.items() if name != members[0]})
    assert figure.missed, "a group that lost a model has no mean"
    assert latency.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def test_page_says_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    figure = empty_figure()
    table = Table(("model", "count"))
    table.add("a|b", 1)
    figure.tables.append(table)
    assert figure.finish(write=False) == 0
    assert "All bars are met." in (page := capsys.readouterr().out)
    assert "| a\\|b | 1 |" in page
    assert not figure.require(False, "m: too many")
    assert figure.finish(write=False) == 1
    assert "- m: too many" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        table.add("lonely")


def test_pick_refuses_unknown_models() -> None:
    assert pick(["a", "b"], None) == ["a", "b"]
    assert pick(["a", "b"], ["b"]) == ["b"]
    with pytest.raises(SystemExit, match="no such model here: c"):
        pick(["a", "b"], ["c"])


def test_tool_reports_failures(tmp_path: Path) -> None:
    code = "import sys; print('first'); print('last line', file=sys.stderr); sys.exit(3)"
    attempt = peers.run([sys.executable, "-c", code], tmp_path / "out" / "model.onnx")
    assert attempt.error == "exit status 3: last line"
    silent = peers.run([sys.executable, "-c", "pass"], tmp_path / "out" / "model.onnx")
    assert silent.error == "exit status 0: no message", "a tool that writes nothing has failed"


def test_wrong_peer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = peers.Peer("tool", "2.0", "tool")
    programs = tmp_path / "tool" / "bin"
    programs.mkdir(parents=True)
    (programs / "tool").touch()
    (programs / "python").write_text("#!/bin/sh\necho 1.0\n")
    (programs / "python").chmod(0o755)
    monkeypatch.setenv("GRAPHOPT_PEERS", str(tmp_path))
    with pytest.raises(SystemExit, match=r"has tool 1\.0, not 2\.0"):
        peers.environment(peer)


GRANDCHILD = """
import subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"])
else:
    held = bytearray(120_000_000)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(1.0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_of_the_whole_tree_is_seen(tmp_path: Path) -> None:
    script = tmp_path / "grow.py"
    script.write_text(GRANDCHILD)
    done = scale.watch([sys.executable, str(script)], tmp_path)
    assert done.status == 0, done.errors
    assert 120e6 < done.peak < 250e6
    assert done.samples >= 5


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_tree_follows_the_session(tmp_path: Path) -> None:
    # The parent ends at once; its child lives on, adopted by another process, but in the same session.
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    process.wait()
    (orphan,) = scale.tree(process.pid) - {process.pid}
    assert scale.anonymous_bytes(orphan) > 0
    os.kill(orphan, signal.SIGKILL)


def planted() -> dict[str, Any]:
    from graphopt.manager import registry

    before = set(registry._loaded)
    found = {cls.name: cls for cls in registry.load_file(faults.PLUGIN)}
    for name in set(registry._loaded) - before:
        del registry._loaded[name]
    return found


def test_plugin_has_the_planted_faults_and_joins_no_level() -> None:
    found = planted()
    assert set(found) == set(faults.PLANTED)
    assert {cls.level for cls in found.values()} == {None}


class _SilentProcess(random_graphs.Worker):
    """A worker whose process says only what the test sends through `there`."""

    exitcode = 0

    def _start(self) -> None:
        self.pipe, self.there = multiprocessing.Pipe()
        self.process = self  # type: ignore[assignment]

    def kill(self) -> None:
        pass

    def join(self, seconds: float) -> None:
        pass


def test_a_silent_worker_hangs_and_a_paused_run_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter(range(0, 3600 * 1000, 3600))  # an hour passes between two looks
    monkeypatch.setattr(random_graphs.time, "monotonic", lambda: next(hours))
    monkeypatch.setattr(random_graphs, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(random_graphs, "Worker", _SilentProcess)
    monkeypatch.setitem(random_graphs._HANG_SECONDS, "mutants", 0.05)
    assert list(random_graphs.spread(["a rule"], "mutants", 1)) == [("a rule", None, "no answer in 0 s")]
    assert next(hours) > 3 * 3600  # two looks are not enough: what lies between them counts for 0.02 s


def test_a_worker_that_dies_of_the_graph_as_it_was_made_refuses_it() -> None:
    worker = _SilentProcess("seeds")
    worker.give(7)
    worker.there.close()
    assert worker.hear() == (7, {"refused": "the process died with status 0", "problems": ()}, "")
    worker.give(8)
    worker.there.send(None)
    assert worker.hear() is None
    worker.there.close()
    assert worker.hear() == (8, None, "the process died with status 0")
