"""Quantized layers and networks on TVM: int8 against our own float code and against ONNX Runtime's int8 kernels.

    python -m benchmarks.tvm_int8 [--layers NAME ...] [--models NAME ...] [--seconds S] [--threads N ...]

Layers are those of tvm_layers with 8-bit activations and weights per channel, from codes to codes (products to floats).
Networks are quantized by `quantize-static` on made-up samples: for speed, not for accuracy. Each runtime has a process
of its own; they take turns.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import Figure, Table, arguments, pick, say
from benchmarks.tvm_latency import compile_library, difference, make_feeds, outputs, reference, timed
from benchmarks.tvm_layers import LAYERS, Conv, MatMul, build_ours
from benchmarks.tvm_worker import Worker, race
from graphopt import driver, models
from graphopt.driver import Options

SECONDS = 2.0
MODELS = ("resnet50-export", "resnet18-export", "mobilenet-v2-export", "minilm-l6-export-static")
QUANTIZE = 'O2{with=["quantize-static{method=minmax}"]}'
LAYER_OVER_FLOAT, LAYER_OVER_RUNTIME = 2.0, 0.95
NETWORK_OVER_FLOAT, NETWORK_OVER_RUNTIME = 0.7, 1.1
NAMES = [name for name, layer in LAYERS.items() if isinstance(layer, Conv) or layer.batch == 1]


def build_onnx(layer: Conv | MatMul, file: Path) -> None:
    """The quantized layer as an ONNX model, and its feeds: codes in, codes out; floats out of a product."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    conv = isinstance(layer, Conv)
    if isinstance(layer, Conv):
        shape: tuple[int, ...] = (1, layer.inputs, layer.size, layer.size)
        weights = rng.integers(-127, 128, (layer.channels, layer.inputs, layer.kernel, layer.kernel))
    else:
        shape, weights = (layer.batch, layer.m, layer.k), rng.integers(-127, 128, (layer.k, layer.n))
    channels = weights.shape[0] if conv else weights.shape[1]
    scales = np.asarray(rng.uniform(0.005, 0.015, channels), np.float32)
    constants: dict[str, np.ndarray] = {
        "xs": np.array(0.02, np.float32),
        "xz": np.array(120, np.uint8),
        "w": weights.astype(np.int8),
        "ws": scales,
        "wz": np.zeros(channels, np.int8),
        "b": np.asarray(rng.integers(-1000, 1000, channels), np.int32),
        "bs": np.asarray(0.02 * scales, np.float32),
        "ys": np.array(0.1, np.float32),
        "yz": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0 if conv else 1),
    ]
    if isinstance(layer, Conv):
        pads, strides = [layer.kernel // 2] * 4, [layer.stride] * 2
        nodes += [
            helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
            helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], pads=pads, strides=strides),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("MatMul", ["xd", "wd"], ["y"]))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8 if conv else TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), file)
    np.savez(file.with_suffix(".npz"), x=rng.integers(0, 256, shape).astype(np.uint8))


def build_codes(model: Path, machine: Any, file: Path) -> None:
    """The one function of a quantized layer that multiplies codes, and arrays for its arguments."""
    import tvm

    from graphopt.frontends.onnx import load
    from graphopt.targets.tvm.cpu import optimize
    from graphopt.targets.tvm.lowering.graph import lower

    module = lower(load(model))
    with machine.target(), tvm.transform.PassContext(opt_level=3):
        module = tvm.relax.transform.ConvertToDataflow(min_size=1)(module)
        module = optimize(tvm.relax.transform.DeadCodeElimination()(module), machine)
    (function,) = [function for name, function in module.functions_items() if "_codes" in name.name_hint]
    function = function.with_attr("global_symbol", "main")
    tvm.tirx.build(function, target=machine.target()).export_library(str(file))
    rng = np.random.default_rng(0)
    arrays = []
    for param in function.params:
        shape, dtype = [int(dim) for dim in param.ty.shape], str(param.ty.dtype)
        if dtype.startswith("float"):
            arrays.append(rng.uniform(0.0001, 0.001, shape).astype(dtype))
        else:
            arrays.append(rng.integers(0, 100, shape).astype(dtype))
    np.savez(file.with_suffix(".npz"), *arrays)


def layers(options: Any, figure: Figure, folder: Path) -> None:
    from graphopt.targets.tvm.machine import host

    machine = host(1)
    assert machine is not None
    columns = ("layer", "int8", "float", "ONNX Runtime int8", "over float", "over ONNX Runtime")
    table = Table(columns, f"Layers, 1 thread, {machine.isa}, 10^9 operations per second")
    for name in pick(NAMES, options.layers):
        say(f"{name} ...")
        layer = LAYERS[name]
        slug = name.replace(" ", "-").replace("/", "s")
        ours, floats, theirs = (folder / f"{slug}{kind}" for kind in ("_codes.so", "_float.so", ".onnx"))
        if not (options.keep and floats.exists()):
            build_onnx(layer, theirs)
            build_codes(theirs, machine, ours)
            build_ours(layer, machine, floats)
        with ExitStack() as stack:
            workers = {
                "ours": Worker("kernel", 1, ours, ours.with_suffix(".npz")),
                "float": Worker("kernel", 1, floats, floats.with_suffix(".npz")),
                "theirs": Worker("ort-kernel", 1, theirs, theirs.with_suffix(".npz")),
            }
            for worker in workers.values():
                stack.callback(worker.close)
            blocks = race(workers, options.seconds)
        speed = {key: layer.gflop() / float(np.median(value)) for key, value in blocks.items()}
        over_float, over_theirs = speed["ours"] / speed["float"], speed["ours"] / speed["theirs"]
        shown = [f"{speed[key]:.0f}" for key in workers]
        table.add(name, *shown, f"{over_float:.2f}", f"{over_theirs:.2f}")
        say(" ".join(table.rows[-1]))
        figure.require(over_float >= LAYER_OVER_FLOAT, f"{name}: {over_float:.2f} of float's speed")
        figure.require(over_theirs >= LAYER_OVER_RUNTIME, f"{name}: {over_theirs:.2f} of ONNX Runtime's speed")
    figure.tables.append(table)


def networks(options: Any, figure: Figure, folder: Path, threads: int) -> None:
    columns = ("model", "float ms", "ONNX Runtime int8 ms", "int8 ms", "over float", "over ONNX Runtime", "A/A",
               "difference", "ONNX Runtime's")  # fmt: skip
    table = Table(columns, f"Networks, {threads} thread{'s' * (threads > 1)}")
    for name in pick(MODELS, options.models):
        say(f"{name}, {threads} threads ...")
        source, quantized, feeds_file = models.fetch(name), folder / f"{name}.onnx", folder / f"{name}.npz"
        if not quantized.exists():
            settings = Options(passes=QUANTIZE, calibration_data="random", numerics="off")
            driver.optimize(source, "cpu", settings, quantized)
        feeds = make_feeds(source, feeds_file)
        floats, ours = (
            folder / f"{name}-{kind}-{threads}" / "model.so"
            if options.keep and (folder / f"{name}-{kind}-{threads}").exists()
            else compile_library(model, threads, folder / f"{name}-{kind}-{threads}")[0]
            for kind, model in (("float", source), ("int8", quantized))
        )
        exact = reference(quantized, feeds)
        off = [difference(found, exact) for found in (outputs(ours, feeds), integers(quantized, feeds))]
        kinds = {"float": ("vm", floats), "theirs": ("ort", quantized), "ours": ("vm", ours), "again": ("vm", ours)}
        blocks = {key: np.array(value) for key, value in timed(kinds, threads, feeds_file, options.seconds).items()}
        ratios = [float(np.median(blocks["ours"] / blocks[key])) for key in ("float", "theirs", "again")]
        times = [f"{1e3 * float(np.median(blocks[key])):.2f}" for key in ("float", "theirs", "ours")]
        table.add(name, *times, *(f"{ratio:.3f}" for ratio in ratios), *(f"{item:.1e}" for item in off))
        say(" ".join(table.rows[-1]))
        figure.require(ratios[0] <= NETWORK_OVER_FLOAT, f"{name}, {threads} threads: {ratios[0]:.2f} of float's time")
        figure.require(
            ratios[1] <= NETWORK_OVER_RUNTIME, f"{name}, {threads} threads: {ratios[1]:.2f} of ONNX Runtime's time"
        )
    figure.tables.append(table)


def integers(model: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime's own int8 kernels."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, feeds)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--layers", nargs="*", metavar="NAME", help="only these layers (writes no page)")
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these networks (writes no page)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring each (default %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of networks")
    parser.add_argument("--keep", action="store_true", help="what an earlier run has compiled is not compiled again")
    options = parser.parse_args()
    folder = options.folder / "tvm_int8"
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(
        "tvm-int8",
        "Quantized layers and networks on TVM",
        "8-bit activations, 8-bit weights with a scale per channel; batch 1. A layer is one kernel: ours is one call "
        "of the compiled function, ONNX Runtime's is the time in its profile, both without changes of layout around "
        "it (nor, in ours, the fourth channel that an image of three gets while it is quantized). Networks are whole "
        "runs; ratios are of times. A/A is our code against itself in a second process. Differences are from ONNX "
        "Runtime with its optimizations off, which computes the same model in floats, as a share of the largest "
        "output; the samples are made up, so these networks say nothing about accuracy.",
        (
            f"a layer at least {LAYER_OVER_FLOAT:g} times as fast as in float, at least {LAYER_OVER_RUNTIME:.0%} of "
            "ONNX Runtime's int8 kernel",
            f"a network at most {NETWORK_OVER_FLOAT:.0%} of the time in float, at most {NETWORK_OVER_RUNTIME:.0%} of "
            "ONNX Runtime's time in int8",
        ),
    )
    figure.notes.append(
        "ONNX Runtime makes a Gemm with a float bias of each MatMul and Add of MiniLM, has no int8 kernel for that, "
        "and dequantizes the weights in every run."
    )
    if options.layers is None or options.layers:
        layers(options, figure, folder)
    if options.models is None or options.models:
        for threads in options.threads:
            networks(options, figure, folder, threads)
    partial = options.layers is not None or options.models is not None or options.seconds < SECONDS
    return figure.finish(write=not (options.no_write or partial))


if __name__ == "__main__":
    raise SystemExit(main())
