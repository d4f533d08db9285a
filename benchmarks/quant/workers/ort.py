"""ONNX Runtime's own static quantizer, as its guide says: preprocess, then QDQ with per-channel weights.

Options: method=MinMax|Entropy|Percentile weight=QInt8|QUInt8 reduce_range=1
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from calibration import Job, Samples, job
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


def main() -> None:
    todo = job()
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder, "prepared.onnx"))
        try:
            quant_pre_process(todo.model, prepared)
        except Exception as error:  # its message says to skip symbolic shape inference where that is incomplete
            print(f"without symbolic shapes: {error}")
            quant_pre_process(todo.model, prepared, skip_symbolic_shape=True)
        try:
            quantize(todo, prepared, {})
        except ValueError as error:  # its adjustment of weight scales takes a per-channel bias scale for a number
            print(f"without adjusted weight scales: {error}")
            quantize(todo, prepared, {"QDQDisableWeightAdjustForInt32Bias": True})


def quantize(todo: Job, prepared: str, extra: dict[str, bool]) -> None:
    quantize_static(
        prepared,
        todo.output,
        Samples(todo.calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=todo.options.get("reduce_range") == "1",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType[todo.options.get("weight", "QInt8")],
        calibrate_method=CalibrationMethod[todo.options.get("method", "MinMax")],
        extra_options=extra,
    )


if __name__ == "__main__":
    main()
