"""Models of a wanted size, made by code without torch: many nodes, or many gigabytes of weights.

They are for measuring how time and memory grow; their weights are seeded and their values stay bounded at any depth.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    import numpy as np
    import onnx

_CHANNELS, _SIDE = 8, 8
_OPSET = 21
_PAGE = 4096


def deep_graph(nodes: int, path: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write a model with exactly `nodes` nodes and return its path.

    One input x and one output y, float32 [batch, 8, 8, 8]. The mix is what exporters leave behind: Conv +
    BatchNormalization + Relu, Gelu written out, Identity, Dropout, pairs of Transpose and Unsqueeze/Squeeze, Casts to
    the same type, Reshapes by a computed shape, Constant nodes and arithmetic on them. Each round ends in a contraction
    towards x, so that neither values nor rounding errors grow with the depth.

    Raises:
        GraphoptError: fewer than one node was asked for.
    """
    if nodes < 1:
        raise GraphoptError(f"deep_graph: {nodes} nodes were asked for; at least 1 is needed")
    import onnx

    chain = _Chain(nodes, seed)
    rounds = (chain.conv_block, chain.noise, chain.gelu, chain.reshape_pair, chain.constants, chain.mix)
    step = 0
    while chain.room >= _LONGEST_BLOCK:
        rounds[step % len(rounds)]()
        step += 1
    while chain.room > 1:
        chain.unary("Relu")
    chain.add("Identity", [chain.x], "y")
    return _save(onnx, chain.nodes, chain.initializers, Path(path))


_LONGEST_BLOCK = 10


class _Chain:
    """A growing list of nodes; `x` names the value that the next block reads."""

    def __init__(self, nodes: int, seed: int) -> None:
        import numpy

        self.wanted = nodes
        self.rng = numpy.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.x = "x"

    @property
    def room(self) -> int:
        return self.wanted - len(self.nodes)

    def add(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        import onnx

        index = len(self.nodes)
        output = output or f"v{index}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"{op}_{index}", **attributes))
        return output

    def unary(self, op: str, **attributes: Any) -> None:
        self.x = self.add(op, [self.x], **attributes)

    def weight(self, array: np.ndarray) -> str:
        import onnx

        name = f"w{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def constant(self, array: np.ndarray) -> str:
        import onnx

        return self.add("Constant", [], value=onnx.numpy_helper.from_array(array))

    def conv_block(self) -> None:
        # The absolute weights of each output sum to 1, and no norm scales up: the block never enlarges a difference.
        c = _CHANNELS
        kernel = self.rng.uniform(-1, 1, (c, c, 3, 3)).astype("float32")
        kernel /= abs(kernel).sum((1, 2, 3), keepdims=True)
        norm = [(0.5, 1.0), (-0.5, 0.5), (-0.1, 0.1), (1.0, 2.0)]
        stats = [self.weight(self.rng.uniform(low, high, c).astype("float32")) for low, high in norm]
        conv = self.add("Conv", [self.x, self.weight(kernel)], pads=[1, 1, 1, 1])
        self.x = self.add("BatchNormalization", [conv, *stats])
        self.unary("Relu")

    def noise(self) -> None:
        self.unary("Identity")
        self.unary("Transpose", perm=[0, 2, 3, 1])
        self.unary("Transpose", perm=[0, 3, 1, 2])
        self.unary("Dropout")
        axes = self.weight(_int64([1]))
        self.x = self.add("Squeeze", [self.add("Unsqueeze", [self.x, axes]), axes])
        self.unary("Cast", to=1)

    def gelu(self) -> None:
        scaled = self.add("Div", [self.x, self.weight(_float32(2**0.5))])
        shifted = self.add("Add", [self.add("Erf", [scaled]), self.weight(_float32(1.0))])
        self.x = self.add("Mul", [self.add("Mul", [self.x, shifted]), self.weight(_float32(0.5))])

    def reshape_pair(self) -> None:
        batch = self.add("Gather", [self.add("Shape", [self.x]), self.constant(_int64(0))])
        batch = self.add("Unsqueeze", [batch, self.weight(_int64([0]))])
        shape = self.add("Concat", [batch, self.constant(_int64([-1]))], axis=0)
        flat = self.add("Reshape", [self.x, shape])
        self.x = self.add("Reshape", [flat, self.constant(_int64([0, _CHANNELS, _SIDE, _SIDE]))])

    def constants(self) -> None:
        bias = self.rng.uniform(-0.1, 0.1, (1, _CHANNELS, 1, 1)).astype("float32")
        total = self.add("Add", [self.constant(bias), self.constant(-bias / 2)])
        self.x = self.add("Add", [self.x, total])

    def mix(self) -> None:
        """x <- 0.75 * x + 0.25 * (the graph's input): every round sees the input again."""
        kept = self.add("Mul", [self.x, self.weight(_float32(0.75))])
        fresh = self.add("Mul", ["x", self.weight(_float32(0.25))])
        self.x = self.add("Add", [kept, fresh])


def big_model(path: str | os.PathLike[str], gigabytes: float, seed: int = 0) -> Path:
    """Write a model whose fp32 weights take about `gigabytes` * 1e9 bytes, all different, as external data.

    Layers of MatMul, Add and Relu; one input x and one output y, float32 [batch, width]. The weights lie in one file
    beside the model, `<name>.data`, and are written layer by layer: peak memory is that of one layer.

    Raises:
        GraphoptError: the size is not positive, or the files cannot be written.
    """
    if not gigabytes > 0:
        raise GraphoptError(f"big_model: {gigabytes} gigabytes were asked for; a positive number is needed")
    import numpy
    import onnx

    path = Path(path)
    width = 2048 if gigabytes >= 0.1 else 128
    layers = max(1, round(gigabytes * 1e9 / (4 * width * (width + 1))))
    rng = numpy.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    matrix, bias = numpy.empty((width, width), "float32"), numpy.empty(width, "float32")
    x = "x"
    try:
        with path.with_name(path.name + ".data").open("wb") as data:
            for layer in range(layers):
                # The variance 2 / width keeps the size of the values through any number of Relu layers (He et al.).
                for name, buffer, bound in (("weight", matrix, (6 / width) ** 0.5), ("bias", bias, 0.01)):
                    rng.random(out=buffer, dtype="float32")
                    buffer -= 0.5
                    buffer *= 2 * bound
                    weights.append(_external(onnx, f"layer{layer}.{name}", buffer, data))
                last = "y" if layer == layers - 1 else f"relu{layer}"
                for op, inputs, output in (
                    ("MatMul", [x, f"layer{layer}.weight"], f"matmul{layer}"),
                    ("Add", [f"matmul{layer}", f"layer{layer}.bias"], f"add{layer}"),
                    ("Relu", [f"add{layer}"], last),
                ):
                    nodes.append(onnx.helper.make_node(op, inputs, [output], name=f"layer{layer}.{op}"))
                x = last
    except OSError as error:
        raise _not_written(path, error) from error
    return _save(onnx, nodes, weights, path, [width])


def _external(onnx: Any, name: str, array: np.ndarray, data: Any) -> onnx.TensorProto:
    # Page-aligned, so that a reader can map each tensor.
    data.seek(-data.tell() % _PAGE, os.SEEK_CUR)
    entries = {"location": Path(data.name).name, "offset": data.tell(), "length": array.nbytes}
    data.write(array.data)
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _save(
    onnx: Any,
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    path: Path,
    shape: list[int] | None = None,
) -> Path:
    helper = onnx.helper
    dims = ["batch", *(shape or [_CHANNELS, _SIDE, _SIDE])]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name in "xy")
    graph = helper.make_graph(nodes, "synthetic", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    try:
        path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise _not_written(path, error) from error
    return path


def _not_written(path: Path, error: OSError) -> GraphoptError:
    return GraphoptError(f"cannot write {path}: {error.strerror or error}; choose a folder that exists and has space")


def _int64(values: int | list[int]) -> np.ndarray:
    import numpy

    return numpy.array(values, "int64")


def _float32(value: float) -> np.ndarray:
    import numpy

    return numpy.array(value, "float32")
