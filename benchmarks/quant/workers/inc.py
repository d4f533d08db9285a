"""Intel Neural Compressor's successor for ONNX: static QDQ, per-channel weights, the rest its defaults.

Options: smooth=1 (SmoothQuant)
"""

from __future__ import annotations

from calibration import Samples, job
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, config, quantize


class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def get_next(self) -> dict | None:
        return self.samples.get_next()

    def rewind(self) -> None:
        self.samples.rewind()


def main() -> None:
    todo = job()
    samples = Samples(todo.calibration)
    settings = config.StaticQuantConfig(
        Reader(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(samples),
        extra_options={"SmoothQuant": True} if todo.options.get("smooth") == "1" else {},
    )
    quantize(todo.model, todo.output, settings)


if __name__ == "__main__":
    main()
