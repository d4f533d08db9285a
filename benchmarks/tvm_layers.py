"""Single layers on TVM with our schedules: GFLOP/s against measured machine peak and against ONNX Runtime's kernels.

    python -m benchmarks.tvm_layers [--layers NAME ...] [--seconds S] [--threads N ...]

Convolutions of ResNet-50 (with bias and ReLU) and matrix products of MiniLM. Ours is one call of the compiled function;
for ONNX Runtime it is what its profile gives for the kernel alone, without the layout changes around it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import Figure, Table, arguments, pick, say
from benchmarks.tvm_worker import Worker, race

PEAK_SHARE = 0.75
RUNTIME_SHARE = 0.95
SECONDS = 2.0
_FMAS = 24
_ITERATIONS = 20_000


@dataclass(frozen=True)
class Conv:
    """A square convolution: size of the input, channels in and out, kernel, stride."""

    size: int
    inputs: int
    channels: int
    kernel: int
    stride: int = 1

    def outputs(self) -> int:
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    def gflop(self) -> float:
        return 2e-9 * self.outputs() ** 2 * self.channels * self.inputs * self.kernel**2


@dataclass(frozen=True)
class MatMul:
    """A product [batch, m, k] x [batch, k, n]; weights are constant where batch is 1."""

    m: int
    k: int
    n: int
    batch: int = 1

    def gflop(self) -> float:
        return 2e-9 * self.batch * self.m * self.k * self.n


LAYERS: dict[str, Conv | MatMul] = {
    "conv 7x7/2 224 3-64": Conv(224, 3, 64, 7, 2),
    "conv 3x3 56 64-64": Conv(56, 64, 64, 3),
    "conv 3x3 28 128-128": Conv(28, 128, 128, 3),
    "conv 3x3 14 256-256": Conv(14, 256, 256, 3),
    "conv 3x3 7 512-512": Conv(7, 512, 512, 3),
    "conv 3x3/2 56 128-128": Conv(56, 128, 128, 3, 2),
    "conv 1x1 56 64-256": Conv(56, 64, 256, 1),
    "conv 1x1 14 1024-256": Conv(14, 1024, 256, 1),
    "matmul 128x384x384": MatMul(128, 384, 384),
    "matmul 128x384x1536": MatMul(128, 384, 1536),
    "matmul 128x1536x384": MatMul(128, 1536, 384),
    "matmul 12x128x32x128": MatMul(128, 32, 128, 12),
}


def build_peak(machine: Any, file: Path) -> None:
    """Fused multiply-adds on registers only, the same work on every thread."""
    import tvm
    from tvm import tirx

    from graphopt.targets.tvm.cpu import loops

    lanes = machine.lanes()
    out = tirx.decl_buffer((machine.threads, lanes), "float32", "out")
    accumulators = [loops.register(f"acc_{i}", lanes, "float32") for i in range(_FMAS)]

    def task(t: Any) -> Any:
        factor = loops.load(out, t, 0, lanes=lanes)
        step = [loops.fma(acc, factor, factor, lanes) for acc in accumulators]
        total = [
            loops.store(out, loops.load(out, t, 0, lanes=lanes) + loops.load(acc, 0, lanes=lanes), t, 0, lanes=lanes)
            for acc in accumulators
        ]
        clear = [
            loops.store(acc, loops.number(i, "float32", lanes), 0, lanes=lanes) for i, acc in enumerate(accumulators)
        ]
        body = loops.block(*clear, loops.loop(_ITERATIONS, lambda i: loops.block(*step)), *total)
        return loops.allocate(accumulators, body)

    nest = loops.loop(machine.threads, task, "t", tirx.ForKind.PARALLEL)
    function = tirx.PrimFunc([out], nest).with_attr("tirx.noalias", True).with_attr("global_symbol", "main")
    tvm.tirx.build(function.with_attr("s_tir", True), target=machine.target()).export_library(str(file))
    np.savez(file.with_suffix(".npz"), out=np.zeros((machine.threads, lanes), "float32"))


def build_ours(layer: Conv | MatMul, machine: Any, file: Path) -> None:
    """The layer's function as `optimize` makes it, and arrays for its arguments."""
    import tvm
    from tvm import te, topi

    from graphopt.targets.tvm.cpu.dispatch import schedule_function
    from graphopt.targets.tvm.cpu.rules import conv2d, matmul

    rng = np.random.default_rng(0)
    if isinstance(layer, Conv):
        pad = layer.kernel // 2
        window = conv2d.Window((layer.stride, layer.stride), (1, 1), (pad, pad, pad, pad), 1)
        x = rng.standard_normal((1, layer.size, layer.size, layer.inputs), "float32")
        w = rng.standard_normal((layer.channels, layer.inputs, layer.kernel, layer.kernel), "float32")
        arrays = [x, conv2d.packed(x.shape, w, window, machine), rng.standard_normal(layer.channels, "float32")]
        places = [te.placeholder(value.shape, "float32", f"p{i}") for i, value in enumerate(arrays)]
        out = topi.nn.relu(topi.add(conv2d.define(places[0], places[1], window, layer.channels), places[2]))
    else:
        x = rng.standard_normal((layer.batch, layer.m, layer.k), "float32")
        if layer.batch == 1:
            arrays = [x, matmul.packed(x.shape, rng.standard_normal((layer.k, layer.n), "float32"), machine)]
        else:
            arrays = [x, rng.standard_normal((layer.batch, layer.k, layer.n), "float32")]
        places = [te.placeholder(value.shape, "float32", f"p{i}") for i, value in enumerate(arrays)]
        x_in, w_in = places
        out = matmul.define_packed(x_in, w_in, layer.n) if layer.batch == 1 else matmul.define(x_in, w_in)
    function = schedule_function(te.create_prim_func([*places, out]), machine)
    tvm.tirx.build(function, target=machine.target()).export_library(str(file))
    result = np.zeros([int(dim) for dim in out.shape], "float32")
    np.savez(file.with_suffix(".npz"), *arrays, result)


def build_onnx(layer: Conv | MatMul, file: Path) -> None:
    """The layer as an ONNX model, and its feeds."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    constants = []
    if isinstance(layer, Conv):
        pad = layer.kernel // 2
        feeds["x"] = rng.standard_normal((1, layer.inputs, layer.size, layer.size), "float32")
        w = rng.standard_normal((layer.channels, layer.inputs, layer.kernel, layer.kernel), "float32")
        constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(w[:, 0, 0, 0].copy(), "b")]
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[pad] * 4, strides=[layer.stride] * 2),
            helper.make_node("Relu", ["c"], ["y"]),
        ]
    else:
        feeds["x"] = rng.standard_normal((layer.batch, layer.m, layer.k), "float32")
        w = rng.standard_normal((layer.batch, layer.k, layer.n), "float32")
        if layer.batch == 1:
            constants = [numpy_helper.from_array(w[0], "w")]
        else:
            feeds["w"] = w
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    np.savez(file.with_suffix(".npz"), **feeds)  # type: ignore[arg-type]


def main() -> int:
    from graphopt.targets.tvm.machine import host

    parser = arguments(__doc__)
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="only these layers (writes no page)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring per layer (default %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    chosen = pick(LAYERS, options.layers)
    folder = options.folder / "tvm_layers"
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(
        "tvm-layers",
        "Single layers on TVM",
        "GFLOP/s of one layer without tuning; peak is the same machine's on fused multiply-adds in registers, measured "
        "in turns with the layer. ONNX Runtime's is the time that its profile gives for the kernel alone, on one "
        "thread: each profile needs a new session, and the threads of one are at work only after many runs.",
        (f"at least {PEAK_SHARE:.0%} of peak, or at least {RUNTIME_SHARE:.0%} of ONNX Runtime's speed",),
    )
    for threads in options.threads:
        machine = host(threads)
        assert machine is not None
        peak_file = folder / f"peak_{threads}.so"
        build_peak(machine, peak_file)
        peak_gflop = 2e-9 * _FMAS * _ITERATIONS * machine.lanes() * threads
        columns = ("layer", "ours", "ONNX Runtime", "peak", "of peak", "of ONNX Runtime")
        table = Table(columns, f"{threads} thread{'s' * (threads > 1)}, GFLOP/s")
        for number, name in enumerate(chosen):
            say(f"{name}, {threads} threads ...")
            layer = LAYERS[name]
            ours, theirs = folder / f"layer{number}_{threads}.so", folder / f"layer{number}.onnx"
            build_ours(layer, machine, ours)
            build_onnx(layer, theirs)
            with ExitStack() as stack:
                workers = {
                    "ours": Worker("kernel", threads, ours, ours.with_suffix(".npz")),
                    "peak": Worker("kernel", threads, peak_file, peak_file.with_suffix(".npz")),
                }
                if threads == 1:
                    workers["theirs"] = Worker("ort-kernel", threads, theirs, theirs.with_suffix(".npz"))
                for worker in workers.values():
                    stack.callback(worker.close)
                blocks = race(workers, options.seconds)
            speed = {key: layer.gflop() / float(np.median(value)) for key, value in blocks.items()}
            speed["peak"] = peak_gflop / float(np.median(blocks["peak"]))
            of_peak, of_theirs = speed["ours"] / speed["peak"], speed["ours"] / speed.get("theirs", math.inf)
            shown = [f"{speed[key]:.1f}" if key in speed else "-" for key in ("ours", "theirs", "peak")]
            table.add(name, *shown, f"{of_peak:.2f}", f"{of_theirs:.2f}" if of_theirs else "-")
            say(" ".join(table.rows[-1]))
            figure.require(
                of_peak >= PEAK_SHARE or of_theirs >= RUNTIME_SHARE,
                f"{name}, {threads} threads: {of_peak:.0%} of peak, {of_theirs:.0%} of ONNX Runtime",
            )
        figure.tables.append(table)
    return figure.finish(write=not (options.no_write or options.layers or options.seconds < SECONDS))


if __name__ == "__main__":
    raise SystemExit(main())
