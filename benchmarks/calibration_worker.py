"""One calibration, by graphopt or by ONNX Runtime's quantizer, in a process of its own; prints JSON: seconds, ranges.

    python -m benchmarks.calibration_worker graphopt|onnxruntime MODEL DATA.npz METHOD SAMPLES [BATCH]

Both look at the values that ONNX Runtime's quantizer asks for. Not here: what is compared (benchmarks/calibration.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
Ranges = dict[str, list[float]]


def values_to_calibrate(model: str) -> list[str]:
    """What `onnxruntime.quantization.quantize_static` would look at."""
    from onnxruntime.quantization.calibrate import CalibraterBase

    base = CalibraterBase(model, _op_types())
    return sorted(base.select_tensors_to_calibrate(base.model)[0])


def _op_types() -> list[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def by_graphopt(model: str, data: str, method: str, samples: int, names: list[str], folder: Path) -> Ranges:
    """Statistics of all values, and the ranges that the method chooses from them."""
    from graphopt.analysis.shapes import Shapes
    from graphopt.calibrating import Calibrating
    from graphopt.frontends.onnx import load
    from graphopt.quantization.affine import UINT8
    from graphopt.quantization.ranges import parse_method

    loaded = load(model)
    Shapes(loaded).infer()
    calibration = Calibrating(loaded, Path(data), folder, limit=samples)
    chosen = parse_method(method)
    found = calibration.statistics(loaded, names)
    return {name: list(chosen.choose(stats, UINT8)) for name, stats in found.items()}


def by_onnxruntime(model: str, data: str, method: str, samples: int, batch: int, folder: Path) -> Ranges:
    """Its calibrator, as its quantizer drives it."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    calibrator = create_calibrator(
        Path(model),
        _op_types(),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod[METHODS[method]],
    )
    calibrator.collect_data(Reader(data, samples, batch))
    found = calibrator.compute_data().items()
    return {name: [float(end.item()) for end in item.range_value] for name, item in found}


class Reader:
    """Samples of an archive, `batch` at a time; None at the end, as the calibrators want it."""

    def __init__(self, path: str, samples: int, batch: int) -> None:
        with np.load(path) as archive:
            self._arrays = {name: archive[name][:samples] for name in archive.files}
        self._samples, self._batch, self._at = samples, batch, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        start, self._at = self._at, self._at + self._batch
        if start >= self._samples:
            return None
        return {name: value[start : self._at] for name, value in self._arrays.items()}


def main() -> None:
    tool, model, data, method, samples = sys.argv[1:6]
    logging.disable(logging.WARNING)
    names = values_to_calibrate(model)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        if tool == "graphopt":
            ranges = by_graphopt(model, data, method, int(samples), names, Path(folder))
        else:
            ranges = by_onnxruntime(model, data, method, int(samples), int(sys.argv[6]), Path(folder))
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "ranges": ranges}))


if __name__ == "__main__":
    main()
