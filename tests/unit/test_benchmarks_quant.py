"""The ground that quantization is measured on: scoring, intervals, decoding, data formats, and what the bars say."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.timing import BenchRow

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # the figures are scripts of the checkout, not part of the package

from benchmarks import figure as figure_module  # noqa: E402
from benchmarks import quant_accuracy  # noqa: E402
from benchmarks.figure import Figure, Table, save_part  # noqa: E402
from benchmarks.quant import executed, fashion, filetypes, intervals, ocr, photos, quantizers, tasks, text  # noqa: E402
from benchmarks.quant.outcomes import Outcome  # noqa: E402
from benchmarks.quant.task import Spec, Task, read, top1, write  # noqa: E402


def toy_task(folder: Path, **options: Any) -> Task:
    """Seven held-out samples of three numbers, whose label is the largest of them, and five for calibration."""
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    write(folder / "test.npz", {"x": rows, "label": rows.argmax(-1)})
    write(folder / "calibration.npz", {"x": rows[:5]})
    return Task(Spec("toy", "a toy", lambda _: None, {"top-1": top1}, batch=3, **options), folder)


def test_score_runs_in_batches_and_keeps_the_order(tmp_path: Path) -> None:
    task = toy_task(tmp_path)
    seen: list[int] = []

    def run(feeds: Any) -> dict[str, Any]:
        seen.append(len(feeds["x"]))
        assert set(feeds) == {"x"}, "the label is no input"
        return {"logits": feeds["x"]}

    assert task.score(run).tolist() == [1.0] * 7
    assert seen == [3, 3, 1]
    assert task.score(run, 4).tolist() == [1.0] * 4
    flipped = task.score(lambda feeds: {"logits": -feeds["x"]})
    assert flipped.tolist() == [0.0] * 7


def test_prepared_rows_are_the_feeds(tmp_path: Path) -> None:
    task = toy_task(tmp_path, prepare=lambda rows: {"doubled": 2 * rows["x"]})
    assert np.allclose(task.feeds(1, 3)["doubled"], 2 * read(tmp_path / "test.npz")["x"][1:3])


def test_fewer_calibration_samples_are_the_first(tmp_path: Path) -> None:
    task = toy_task(tmp_path)
    assert np.array_equal(read(task.calibration_of(2))["x"], read(task.calibration)["x"][:2])
    assert task.calibration_of(5) == task.calibration
    with pytest.raises(ValueError, match="6 calibration samples are asked for, toy has 5"):
        task.calibration_of(6)


def test_interval_covers_a_known_difference() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(40):
        base = rng.random(400) < 0.8
        ours = np.where(rng.random(400) < 0.1, rng.random(400) < 0.5, base)
        found = intervals.paired_difference(ours, base, seed)
        # A tenth of the samples is drawn anew with 0.5 instead of 0.8.
        inside += found.low <= -0.03 <= found.high
        assert found.low <= found.mean <= found.high
    assert inside >= 34


def test_interval_of_equal_scores_is_nothing() -> None:
    scores = np.array([1.0, 0.0, 1.0])
    assert intervals.paired_difference(scores, scores) == intervals.Difference(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="3 and 2"):
        intervals.paired_difference(scores, scores[:2])


def test_upsampling_keeps_constants_and_means() -> None:
    grey = np.full((2, 28, 28), 51, np.uint8)
    mean, deviation = (np.array(values)[:, None, None] for values in fashion.IMAGENET)
    assert np.allclose(fashion.upsampled(grey), (0.2 - mean) / deviation, atol=1e-5)
    ramp = np.tile(np.arange(28, dtype=np.uint8) * 9, (1, 28, 1))
    row = fashion.upsampled(ramp)[0, 0, 0]
    assert np.all(np.diff(row) >= 0)


def test_table_of_texts() -> None:
    table = 'Category\tText\nd\tstring\nclass\t\n\nearn\tone two\nacq\tthree "four"\n'
    assert text.parse_table(table) == (["earn", "acq"], ["one two", 'three "four"'])


def test_file_features_pad_between_the_halves() -> None:
    short = filetypes.features(b"  ab ", b"  ab ")
    assert len(short) == 2048
    assert short[:4] == [97, 98, 32, 256]
    assert short[-5:] == [256, 32, 32, 97, 98]
    long = filetypes.features(bytes(range(33, 127)) * 40, bytes(range(33, 127)) * 40)
    assert 256 not in long


def test_file_samples_take_each_content_once(tmp_path: Path) -> None:
    for name, content in (("a.py", "x" * 80), ("b.py", "x" * 80), ("c.py", "y" * 80), ("d.py", "z"), ("e.zzz", "q")):
        (tmp_path / name).write_text(content)
    found = filetypes.known_files([tmp_path])
    assert {extension: len(paths) for extension, paths in found.items()} == {"py": 4}
    rows, labels = filetypes.samples(found, 9)
    assert len(rows) == 2
    assert labels == ["python", "python"]
    assert len(filetypes.samples(found, 1)[0]) == 1


def test_ctc_decoding() -> None:
    assert ocr.decode(np.array([0, 1, 1, 0, 1, 2, 2, 0]), "ab") == "aab"
    assert ocr.decode(np.array([0, 0]), "ab") == ""


@pytest.mark.parametrize(
    ("a", "b", "count"), [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3)]
)
def test_edit_distance(a: str, b: str, count: int) -> None:
    assert ocr.edits(a, b) == count


def test_lines_fit_and_vary() -> None:
    lines = ocr.strings(["alpha", "beta", "incomprehensible"], 200, np.random.default_rng(0))
    assert len(lines) == 200
    assert max(map(len, lines)) <= ocr.LONGEST
    assert any(line.isupper() for line in lines)
    assert any(any(map(str.isdigit, line)) for line in lines)


def test_signal_share() -> None:
    logits = np.array([[3.0, -3.0], [1.0, -1.0]])
    rows = {"logits": logits}
    assert photos.signal_share({"y": logits}, rows).tolist() == [1.0, 1.0]
    assert photos.signal_share({"y": 0.9 * logits}, rows) == pytest.approx([0.99, 0.99])
    assert photos.signal_share({"y": -logits}, rows).tolist() == [0.0, 0.0]


def test_tasks_are_named_once_and_have_a_metric() -> None:
    there = tasks.specs()
    assert len(there) == sum(len(tasks.import_module(f"benchmarks.quant.{name}").SPECS) for name in tasks._MODULES)
    assert all(spec.judges for spec in there.values())
    with pytest.raises(SystemExit, match="no such task: mobile"):
        tasks.load("mobile")


def optimized(*nodes: tuple[str, str, str]) -> onnx.ModelProto:
    """A graph of (op, input, output) with an int8 initializer w."""
    made = [onnx.helper.make_node(op, [a], [b]) for op, a, b in nodes]
    weight = onnx.numpy_helper.from_array(np.zeros(1, np.int8), "w")
    return onnx.helper.make_model(onnx.helper.make_graph(made, "g", [], [], [weight]))


def test_integer_nodes_are_counted_by_what_flows_in() -> None:
    model = optimized(
        ("QuantizeLinear", "x", "a"),
        ("QLinearConv", "a", "b"),
        ("MaxPool", "b", "c"),
        ("DequantizeLinear", "c", "d"),
        ("MaxPool", "d", "e"),
        ("Conv", "e", "f"),
        ("Gather", "w", "g"),
    )
    counted = executed.count(model)
    assert counted == executed.Executed(nodes=7, integer=3, heavy=2, heavy_integer=1, conversions=2)
    assert counted.share == pytest.approx(3 / 7)
    assert counted.heavy_share == 0.5
    assert executed.Executed(0, 0, 0, 0, 0).share == 0.0


def test_failing_quantizers_say_why(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    code = "print('ValueError: no such op'); print('bye'); raise SystemExit(3)"
    assert (
        quantizers.run([sys.executable, "-c", code], output, tmp_path).error == "exit status 3: ValueError: no such op"
    )
    slow = quantizers.run([sys.executable, "-c", "import time; time.sleep(30)"], output, tmp_path, 0.2)
    assert slow.error == "took over 0.2 s"
    made = quantizers.run([sys.executable, "-c", "open('model.onnx', 'w')"], output, tmp_path)
    assert (made.path, made.error) == (output, "")


def test_environment_that_cannot_be_made_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(peer: Any) -> Path:
        raise SystemExit(f"pip cannot install {peer.requirement}")

    monkeypatch.setattr(quantizers, "environment", refuse)
    made = quantizers.quantize("nncf", tmp_path / "m.onnx", tmp_path / "c.npz", tmp_path / "out")
    assert made.error.startswith("pip cannot install nncf==")


def measured(folder: Path, keep_slow: int | None = 800, **right: int | None) -> Outcome:
    """1,000 samples of which float gets 800 right, and each tool so many of the same; None is a tool that failed."""
    right = {**right, quantizers.OURS_INT8: keep_slow}
    return summary(folder, {name: None if count is None else (count, 1.0) for name, count in right.items()})


def summary(folder: Path, tools: Mapping[str, tuple[int, float] | None]) -> Outcome:
    """The same, with each tool's latency over float's."""
    (folder / "model.onnx").write_bytes(b"1234")
    found = {}
    for name, tool in tools.items():
        result = found[name] = quant_accuracy.Result(quantizers.Made(folder / "model.onnx", seconds=2.0, peak=3))
        if tool is None:
            result.error = "exit status 1: no"
            continue
        result.scores = {"top-1": (np.arange(1000) < tool[0]).astype(float)}
        result.executed = executed.Executed(nodes=4, integer=2, heavy=2, heavy_integer=1, conversions=1)
        result.latency = timed(tool[1])
    task, base = toy_task(folder), {"top-1": (np.arange(1000) < 800).astype(float)}
    return quant_accuracy.summary(task, base, found, (timed(1.0), timed(1.01)), "on a day at a commit")


def timed(ratio: float) -> BenchRow:
    return BenchRow("A", "", 1.0, 1.0, 1, ratio, ratio - 0.01, ratio + 0.01, 0.0, 0)


@pytest.mark.parametrize(
    ("right", "misses"),
    [
        ({"graphopt": 800, "a": 799}, 0),
        ({"graphopt": 799, "a": 800, "b": None}, 1),  # 0.99875 of float
        ({"graphopt": 790, "a": None}, 2),
        ({"graphopt": 800, "a": 820}, 2),
        ({"graphopt": None, "a": 790}, 2),
        ({"graphopt": 801}, 0),
        ({"graphopt": 800, "keep_slow": 780}, 2),
    ],
)
def test_accuracy_bars(tmp_path: Path, right: dict[str, int | None], misses: int) -> None:
    figure = Figure("name", "Title", "Text.", ("a bar",))
    quant_accuracy.judge(figure, [measured(tmp_path, **right)])
    assert len(figure.missed) == misses, figure.missed


def test_half_of_the_tasks_have_to_be_close(tmp_path: Path) -> None:
    close, near = measured(tmp_path, graphopt=800), measured(tmp_path, graphopt=796)
    for tasks_, misses in (([close, near], 0), ([close, near, near], 1)):
        figure = Figure("name", "Title", "Text.", ("a bar",))
        quant_accuracy.judge(figure, tasks_)
        assert len(figure.missed) == misses


def test_best_peer_is_one_that_runs(tmp_path: Path) -> None:
    assert measured(tmp_path, graphopt=800, a=700, b=None, c=710).best_peer == "c"
    assert measured(tmp_path, graphopt=800, b=None).best_peer is None


@pytest.mark.parametrize(
    ("tools", "misses"),
    [
        ({"graphopt": (800, 0.5), "a": (800, 0.5)}, 0),
        ({"graphopt": (800, 0.6), "a": (800, 0.5)}, 1),
        ({"graphopt": (800, 0.6), "a": (790, 0.5), "b": None}, 0),  # a loses too much
        ({"graphopt": (800, 1.01)}, 0),  # 1.00 by the lower end
        ({"graphopt": (800, 1.02), "a": (800, 1.5)}, 1),
        ({"graphopt": None, "a": (800, 0.5)}, 0),  # the bar of accuracy is missed then
    ],
)
def test_latency_bars(tmp_path: Path, tools: dict[str, tuple[int, float] | None], misses: int) -> None:
    figure = Figure("name", "Title", "Text.", ("a bar",))
    quant_accuracy.judge_latency(figure, [summary(tmp_path, tools)])
    assert len(figure.missed) == misses, figure.missed


def test_latency_is_compared_on_the_tasks_where_the_peer_is_accurate(tmp_path: Path) -> None:
    figure = Figure("name", "Title", "Text.", ("a bar",))
    outcomes = [
        summary(tmp_path, {"graphopt": (800, 0.9), "a": (790, 0.1)}),
        dataclasses.replace(summary(tmp_path, {"graphopt": (800, 0.4), "a": (800, 0.5)}), task="other"),
    ]
    table = quant_accuracy.judge_latency(figure, outcomes)
    assert table.rows == [("graphopt", "2 of 2", "0.600", "0.600"), ("a", "1 of 2", "0.500", "0.400")]
    assert not figure.missed


def test_failed_tools_keep_their_row(tmp_path: Path) -> None:
    table = Table(quant_accuracy.COLUMNS, words=2)
    quant_accuracy.add_rows(table, measured(tmp_path, None, graphopt=None))
    assert [row[:3] for row in table.rows[:2]] == [
        ("toy", "float, top-1 of 1000", "80.00 %"),
        ("toy", "graphopt", "exit status 1: no"),
    ]
    assert "A/A 1.010" in table.rows[0][7]


def test_page_is_made_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_module, "PAGES", tmp_path)
    spec = Spec("toy", "a toy", lambda _: None, {"top-1": top1})
    other = dataclasses.replace(spec, name="other")
    monkeypatch.setattr(tasks, "specs", lambda: {"toy": spec, "other": other})
    outcome = measured(tmp_path, graphopt=790, a=799, b=None)
    save_part(quant_accuracy.NAME, "toy", outcome.to_json())
    figure = Figure("name", "Title", "Text.", ("a bar",))
    assert quant_accuracy.kept_outcomes(figure) == [outcome]
    assert figure.missed == ["other: not measured"]
    quant_accuracy.page(figure, [outcome])
    assert "| toy | on a day at a commit |" in figure.markdown("command")

    save_part(quant_accuracy.NAME, "other", {**outcome.to_json(), "task": "other", "version": 7})
    figure = Figure("name", "Title", "Text.", ("a bar",))
    assert quant_accuracy.kept_outcomes(figure) == [outcome]
    assert figure.missed == ["other: measured on version 7 of the task"]


def test_peers_are_chosen_by_name() -> None:
    assert quant_accuracy.tool_names(None) == [*quantizers.OWN, *quantizers.DEFAULT]
    assert quant_accuracy.tool_names(["ort-u8u8"]) == [*quantizers.OWN, "ort-u8u8"]
    assert quant_accuracy.tool_names([]) == list(quantizers.OWN)
    assert quant_accuracy.split("a,b") == ["a", "b"]
    with pytest.raises(SystemExit, match="no such model here: other"):
        quant_accuracy.tool_names(["other"])
    assert all((ROOT / "benchmarks/quant/workers" / peer.worker).exists() for peer in quantizers.PEERS.values())
