"""graphopt's own quantization of a model file with passes of one's choice, by its command line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quant.quantizers import Made, run


def quantized(model: Path, passes: Sequence[str], folder: Path, calibration: Path | None = None) -> Made:
    """`opt` with these passes joined to -O2, into `folder`/model.onnx.

    Raises:
        SystemExit: it fails; with its last line.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out = folder / "model.onnx"
    listed = " ".join(f'"{item}"' for item in passes)
    command = [sys.executable, "-P", "-m", "graphopt", "opt", str(model), "--target", "cpu", "--numerics", "off"]
    command += ["-p", f"O2{{with=[{listed}]}}", "-o", str(out)]
    if calibration is not None:
        command += ["--calibration-data", str(calibration)]
    made = run(command, out, folder)
    if made.error:
        raise SystemExit(f"{', '.join(passes)} on {model}: {made.error}")
    return made
