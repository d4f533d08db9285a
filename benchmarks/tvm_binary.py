"""Layers whose weights and inputs are +-1: packed kernels on TVM against ONNX Runtime's float kernels.

    python -m benchmarks.tvm_binary [--layers NAME ...] [--seconds S]

A layer is timed as a chain of equal ones, so that what happens once per run (changes of layout, starting a run) weighs
little: ours is `graphopt compile --target tvm` on Where(x >= 0, 1, -1) and the layer, comparison and packing included;
ONNX Runtime's is the layers alone, on floats. Each runs in a process of its own, ours in a second one as well (A/A).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure, Table, arguments, pick, say
from benchmarks.tvm_latency import outputs
from benchmarks.tvm_worker import WARM, Worker, race
from graphopt import driver
from graphopt.driver import Options

SPEEDUP = 3.0
SECONDS = 1.0
CHAIN = 8


@dataclass(frozen=True)
class Conv:
    """A convolution that keeps its size and channels."""

    size: int
    channels: int
    kernel: int

    def input(self) -> tuple[int, ...]:
        return (1, self.channels, self.size, self.size)

    def weights(self) -> tuple[int, ...]:
        return (self.channels, self.channels, self.kernel, self.kernel)


@dataclass(frozen=True)
class Dense:
    """A product of `rows` rows with a square matrix."""

    rows: int
    channels: int

    def input(self) -> tuple[int, ...]:
        return (self.rows, self.channels)

    def weights(self) -> tuple[int, ...]:
        return (self.channels, self.channels)


LAYERS: dict[str, Conv | Dense] = {
    **{f"conv {k}x{k} {size} {c}": Conv(size, c, k) for k in (3, 1) for size, c in ((28, 128), (14, 256), (7, 512))},
    **{f"dense {rows}x{n}x{n}": Dense(rows, n) for rows, n in ((1, 1024), (64, 1024), (1, 4096))},
}
# Instruction sets and threads that are timed; "auto" is this machine's own.
SETTINGS = (("auto", 1), ("auto", 2), ("avx2", 1))


def chain(layer: Conv | Dense, signs: bool, file: Path) -> None:
    """The layer CHAIN times, each behind Where(x >= 0, 1, -1) if `signs`, with the same weights of +-1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.where(np.random.default_rng(0).standard_normal(layer.weights()) > 0, 1, -1).astype("float32")
    numbers = {"w": weights, "zero": np.float32(0), "plus": np.float32(1), "minus": np.float32(-1)}
    nodes = []
    for i in range(CHAIN):
        x, y = f"x{i}", f"x{i + 1}"
        if signs:
            nodes.append(helper.make_node("GreaterOrEqual", [x, "zero"], [f"positive{i}"]))
            nodes.append(helper.make_node("Where", [f"positive{i}", "plus", "minus"], [f"sign{i}"]))
            x = f"sign{i}"
        if isinstance(layer, Conv):
            nodes.append(helper.make_node("Conv", [x, "w"], [y], pads=[layer.kernel // 2] * 4))
        else:
            nodes.append(helper.make_node("MatMul", [x, "w"], [y]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, layer.input()) for name in ("x0", f"x{CHAIN}")]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def reference(file: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@dataclass(frozen=True)
class Measured:
    """Seconds of one layer, ONNX Runtime's over ours, a second process of ours over the first; exactness."""

    theirs: float
    ours: float
    speedup: float
    same: float
    exact: bool


def measure(layer: Conv | Dense, isa: str, threads: int, folder: Path, seconds: float) -> Measured:
    """Compile and time one layer; `folder` gets the files."""
    folder.mkdir(parents=True, exist_ok=True)
    binary, plain, file = folder / "binary.onnx", folder / "float.onnx", folder / "feeds.npz"
    chain(layer, True, binary)
    chain(layer, False, plain)
    x = np.random.default_rng(1).standard_normal(layer.input(), "float32")
    np.savez(file, x0=x)
    target = f"tvm{{isa={isa} threads={threads}}}"
    artifact = driver.compile(str(binary), target, folder / "build", Options(numerics="off"))
    library = folder / "build" / artifact.manifest["main"]
    exact = np.array_equal(outputs(library, {"x0": x})[0], reference(binary, {"x0": x}))
    kinds = {"ours": ("vm", library), "again": ("vm", library), "theirs": ("ort", plain)}
    with ExitStack() as stack:
        workers = {key: Worker(kind, threads, path, file) for key, (kind, path) in kinds.items()}
        for worker in workers.values():
            stack.callback(worker.close)
            worker.time(WARM)
        blocks = race(workers, seconds)
    times = {key: float(np.median(values)) / CHAIN for key, values in blocks.items()}
    speedup, same = (float(np.median(np.array(blocks[key]) / np.array(blocks["ours"]))) for key in ("theirs", "again"))
    return Measured(times["theirs"], times["ours"], speedup, same, exact)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="only these layers (writes no page)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring per layer (default %(default)s)")
    options = parser.parse_args()
    chosen = pick(LAYERS, options.layers)
    figure = Figure(
        "tvm-binary",
        "Binary layers on TVM",
        f"Microseconds of one layer of a chain of {CHAIN}: packed kernels on TVM, with comparison and packing, against "
        "ONNX Runtime's float kernels alone; the A/A column is a second process of ours over the first.",
        (f"at least {SPEEDUP:g} times ONNX Runtime's speed", "the same numbers to the last bit"),
    )
    for isa, threads in SETTINGS:
        title = f"{threads} thread{'s' * (threads > 1)}" + (f", isa={isa}" if isa != "auto" else "")
        table = Table(("layer", "ONNX Runtime us", "ours us", "speedup", "A/A", "exact"), title)
        for number, name in enumerate(chosen):
            say(f"{name}, {title} ...")
            folder = options.folder / "tvm_binary" / f"{number}-{isa}-{threads}"
            found = measure(LAYERS[name], isa, threads, folder, options.seconds)
            exact = "yes" if found.exact else "no"
            times = (f"{1e6 * found.theirs:.1f}", f"{1e6 * found.ours:.1f}")
            table.add(name, *times, f"{found.speedup:.1f}", f"{found.same:.3f}", exact)
            say(" ".join(table.rows[-1]))
            figure.require(found.speedup >= SPEEDUP, f"{name}, {title}: {found.speedup:.1f} times ONNX Runtime's speed")
            figure.require(found.exact, f"{name}, {title}: other numbers than ONNX Runtime")
        figure.tables.append(table)
    return figure.finish(write=not (options.no_write or options.layers or options.seconds < SECONDS))


if __name__ == "__main__":
    raise SystemExit(main())
