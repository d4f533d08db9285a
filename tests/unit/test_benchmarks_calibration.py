"""The figure of calibration: both sides see the same values and samples, and agree where they compute the same."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the figures are scripts of the checkout

from benchmarks import calibration, calibration_worker
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3] x) => (float[N, 3] y) <float[3, 3] w = {1, 0, 0, 0, 2, 0, 0, 0, 3}> {
  h = MatMul (x, w)
  y = Relu (h) }"""


@pytest.mark.parametrize("batch", [1, 4])
def test_both_sides_agree_about_minima_and_maxima(tmp_path: Path, batch: int) -> None:
    write(from_text(MODEL), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.linspace(-1, 1, 36, dtype=np.float32).reshape(12, 3))
    model, data = str(tmp_path / "model.onnx"), str(tmp_path / "data.npz")
    names = calibration_worker.values_to_calibrate(model)
    assert names == ["h", "x", "y"]
    ours = calibration_worker.by_graphopt(model, data, "minmax", 10, names, tmp_path)
    theirs = calibration_worker.by_onnxruntime(model, data, "minmax", 10, batch, tmp_path)
    for name in names:
        low, high = theirs[name]
        assert ours[name] == pytest.approx([min(low, 0), max(high, 0)], rel=1e-5)


def test_samples_are_those_of_the_models(tmp_path: Path) -> None:
    for subject in calibration.SUBJECTS:
        one, two = (subject.sample(np.random.default_rng(0), 2) for _ in range(2))
        assert all(len(value) == 2 and np.array_equal(value, two[name]) for name, value in one.items())
    path = calibration.write_samples(calibration.SUBJECTS[1], 3, tmp_path)
    reader = calibration_worker.Reader(str(path), 3, 2)
    sizes = [None if feeds is None else len(feeds["input_ids"]) for feeds in (reader.get_next() for _ in range(3))]
    assert sizes == [2, 1, None]
