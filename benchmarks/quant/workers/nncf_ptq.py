"""NNCF's post-training quantization of ONNX models with its defaults; it asks to be told of transformers, so it is."""

from __future__ import annotations

import nncf
import onnx
from calibration import Samples, job, looks_like_transformer


def main() -> None:
    todo = job()
    model = onnx.load(todo.model)
    samples = Samples(todo.calibration)
    kind = nncf.ModelType.TRANSFORMER if looks_like_transformer(model) else None
    quantized = nncf.quantize(model, nncf.Dataset(list(samples)), subset_size=len(samples), model_type=kind)
    onnx.save(quantized, todo.output)


if __name__ == "__main__":
    main()
