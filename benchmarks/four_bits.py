"""Weights of 4 bits: how much of what rounding to nearest loses comes back, with 8-bit activations and with float ones.

    python -m benchmarks.four_bits [--tasks A B]

The same float file, calibration samples without labels and held-out samples for each row of a task.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figure import Figure, Table, arguments, say
from benchmarks.latency import opener
from benchmarks.quant import tasks
from benchmarks.quant.intervals import paired_difference
from benchmarks.quant.ours import quantized
from benchmarks.quant.task import Task

if TYPE_CHECKING:
    import numpy as np

CALIBRATION = 512
CLOSED = 0.9
"""Part of the gap between rounding to nearest and float that has to be closed."""
SECONDS = 600
MIN_SHARE, SMALLER = 0.99, 3.5

ACTIVATIONS = ("mobilenet-fashion", "fashion-resnet")
"""W4A8: weights of 4 bits per output channel, activations of 8."""
NEAREST = "quantize-static{weight=int4}"
REFINED = ("equalize-layers", "quantize-static{weight=int4 weight_ranges=mse}", "round-weights", "correct-bias")

WEIGHTS = ("minilm-20ng", "minilm-r8")
"""W4: weights of 4 bits in groups of 32, activations in float."""
GROUPS = {
    "rounding to nearest": "quantize-weights{bits=4 group=32 clip=none}",
    "graphopt": "quantize-weights{bits=4 group=32}",
    "graphopt, gptq": "quantize-weights{bits=4 group=32 method=gptq}",
    "graphopt, gptq, float products": "quantize-weights{bits=4 group=32 method=gptq compute=float}",
}

FIGURE = Figure(
    "four-bits",
    "Weights of 4 bits",
    f"W4A8 is a static quantization with int4 weights per output channel and uint8 activations; `nearest` is "
    f"`{NEAREST}`, `graphopt` is `{', '.join(REFINED)}`, on {CALIBRATION} calibration samples without labels. "
    "W4 stores the weights of MatMul and Gemm in 4 bits in groups of 32 and computes on float inputs "
    "(`--precision int4`; ONNX Runtime rounds the inputs of its kernel to 8 bits unless `compute=float`). "
    "Differences are in percentage points, with paired 95 % intervals.",
    (
        f"W4A8: at least {CLOSED:.0%} of the gap of rounding to nearest to float is closed, in at most {SECONDS} s",
        f"W4: at least {MIN_SHARE:g} of float, with MatMul weights at least {SMALLER:g} times smaller",
        "W4: better than rounding to nearest",
    ),
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=[*ACTIVATIONS, *WEIGHTS], help="only these (writes no page)")
    options = parser.parse_args()
    chosen = options.tasks or [*ACTIVATIONS, *WEIGHTS]
    eight = Table(("task", "weights", "metric", "difference from float", "gap closed", "seconds"), "W4A8", 2)
    floats = Table(("task", "weights", "metric", "difference from float", "over float", "smaller", "seconds"), "W4", 2)
    for name in chosen:
        task = tasks.load(name)
        say(f"{name} ...")
        folder = options.folder / "four-bits" / name
        _activations(task, folder, eight) if name in ACTIVATIONS else _weights(task, folder, floats)
    FIGURE.tables += [table for table in (eight, floats) if table.rows]
    return FIGURE.finish(write=not options.no_write and not options.tasks)


def _activations(task: Task, folder: Path, table: Table) -> None:
    calibration = task.calibration_of(CALIBRATION)
    base = _scores(task, task.model)
    table.add(task.name, "float", _percent(base), "", "", "")
    gaps = {}
    for label, passes in (("nearest", (NEAREST,)), ("graphopt", REFINED)):
        say(f"  {label} ...")
        made = quantized(task.model, passes, folder / label, calibration)
        scores = _scores(task, made.path)
        gaps[label] = float(base.mean() - scores.mean())
        closed = 1 - gaps[label] / gaps["nearest"] if gaps["nearest"] > 0 else float("nan")
        shown = f"{closed:.1%}" if label != "nearest" else ""
        difference = paired_difference(scores, base)
        table.add(task.name, label, _percent(scores), difference, shown, f"{made.seconds:.0f}")
        say(" | ".join(table.rows[-1]))
        if label == "graphopt":
            FIGURE.require(gaps["nearest"] > 0, f"{task.name}: rounding to nearest loses nothing, so there is no gap")
            FIGURE.require(closed >= CLOSED, f"{task.name}: {closed:.1%} of the gap is closed")
            FIGURE.require(made.seconds <= SECONDS, f"{task.name}: took {made.seconds:.0f} s")


def _weights(task: Task, folder: Path, table: Table) -> None:
    calibration = task.calibration_of(256)
    base = _scores(task, task.model)
    table.add(task.name, "float", _percent(base), "", "", "", "")
    shares = {}
    for index, (label, passes) in enumerate(GROUPS.items()):
        say(f"  {label} ...")
        made = quantized(task.model, (passes,), folder / str(index), calibration if "gptq" in passes else None)
        scores = _scores(task, made.path)
        shares[label] = share = float(scores.mean() / base.mean())
        before, after = weight_bytes(made.path)
        cells = (f"{share:.4f}", f"{before / after:.2f}x", f"{made.seconds:.0f}")
        table.add(task.name, label, _percent(scores), paired_difference(scores, base), *cells)
        say(" | ".join(table.rows[-1]))
        if label == "graphopt":
            FIGURE.require(share >= MIN_SHARE, f"{task.name}: {share:.4f} of float")
            FIGURE.require(before >= SMALLER * after, f"{task.name}: weights are {before / after:.2f} times smaller")
            nearest = shares["rounding to nearest"]
            FIGURE.require(share > nearest, f"{task.name}: {share:.4f}, rounding to nearest has {nearest:.4f}")


def weight_bytes(path: Path) -> tuple[int, int]:
    """Bytes that the weights of all MatMulNBits nodes would have in float32, and those that they have."""
    from graphopt import ir
    from graphopt.ir.constants import const_tensor

    before = after = 0
    for node in ir.load(path).graph:
        if node.op_type == "MatMulNBits":
            before += 4 * node.attributes["K"].as_int() * node.attributes["N"].as_int()
            after += sum(tensor.nbytes for tensor in map(const_tensor, node.inputs[1:]) if tensor is not None)
    return before, after


def _scores(task: Task, path: Path) -> np.ndarray:
    with opener(path) as runner:
        return task.score(runner.run)


def _percent(scores: np.ndarray) -> str:
    return f"{100 * float(scores.mean()):.2f} %"


if __name__ == "__main__":
    raise SystemExit(main())
