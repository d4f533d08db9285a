"""Runs a model on a CPU whose u8s8 kernels saturate: this one when it has no VNNI, else an emulated Haswell.

The emulator is qemu-x86_64 of Debian's `qemu-user`; it runs the same ONNX Runtime, which then takes its AVX2 kernels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.targets.onnxruntime.isa import SATURATES, resolve

if TYPE_CHECKING:
    import numpy as np

HERE = resolve("auto") in SATURATES
_SCRIPT = """
import sys, numpy as np, onnxruntime as ort
model, feeds, out, key = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
if key == "precise":
    options.add_session_config_entry("session.x64quantprecision", "1")
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
given = dict(np.load(feeds))
count = 1 + max(int(name.split(".", 1)[0]) for name in given)
results = {}
for index in range(count):
    batch = {name.split(".", 1)[1]: value for name, value in given.items() if name.startswith(f"{index}.")}
    for position, value in enumerate(session.run(None, batch)):
        results[f"{index}.{position}"] = value
np.savez(out, **results)
"""


def emulator() -> list[str] | None:
    """What comes in front of the command; None when there is no CPU without VNNI to be had."""
    if HERE:
        return []
    found = shutil.which("qemu-x86_64")
    return None if found is None else [found, "-cpu", "Haswell"]


def run_all(
    model: Path, batches: Sequence[Mapping[str, np.ndarray]], folder: Path, *, precise: bool = False
) -> list[list[Any]]:
    """The outputs of every batch.

    Args:
        model: the ONNX file.
        batches: feeds by input name.
        folder: for files on the way.
        precise: with the session key that takes other kernels where u8s8 would saturate.

    Raises:
        SystemExit: there is no such CPU here, or the run failed.
    """
    import numpy as np

    prefix = emulator()
    if prefix is None:
        raise SystemExit("this CPU has VNNI; install qemu-user to emulate one without")
    folder.mkdir(parents=True, exist_ok=True)
    named: dict[str, Any] = {
        f"{index}.{name}": value for index, feeds in enumerate(batches) for name, value in feeds.items()
    }
    np.savez(folder / "feeds.npz", **named)
    (folder / "run.py").write_text(_SCRIPT, encoding="utf-8")
    command = [*prefix, os.path.realpath(sys.executable), "run.py", str(model.resolve()), "feeds.npz", "out.npz"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)}
    done = subprocess.run(
        [*command, "precise" if precise else "plain"], cwd=folder, env=environ, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{model} does not run without VNNI: {done.stderr.decode(errors='replace')[-300:]}")
    with np.load(folder / "out.npz") as found:
        outputs = len(found.files) // len(batches)
        return [[found[f"{index}.{position}"] for position in range(outputs)] for index in range(len(batches))]
