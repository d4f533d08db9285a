"""onnxsim's int8: simplify, then quantize_static, which is what `onnxsim --static-quantize` does.

The command itself takes calibration data from a hub only, so the library is called.
Options: method=minmax|entropy|mse|percentile
"""

from __future__ import annotations

import onnx
import onnxsim
from calibration import Samples, job


def main() -> None:
    todo = job()
    simplified, _ = onnxsim.simplify(todo.model)
    quantized = onnxsim.quantize_static(
        simplified, list(Samples(todo.calibration)), method=todo.options.get("method", "minmax")
    )
    onnx.save(quantized, todo.output)


if __name__ == "__main__":
    main()
