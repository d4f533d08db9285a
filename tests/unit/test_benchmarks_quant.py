"""The ground that quantization is measured on: scoring, intervals, decoding, data formats, and what the bars say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # the figures are scripts of the checkout, not part of the package

from benchmarks.quant import fashion, filetypes, intervals, ocr, photos, tasks, text  # noqa: E402
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
