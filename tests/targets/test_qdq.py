"""The table of ops that ONNX Runtime computes in integers, checked op by op against what the runtime makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.frontends.onnx import load
from graphopt.realized import realized
from graphopt.running import Runnable
from graphopt.targets.onnxruntime import qdq
from graphopt.targets.onnxruntime.optimized import write_optimized
from graphopt.targets.onnxruntime.settings import SessionSettings
from graphopt.targets.onnxruntime.target import Cpu

_CODES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "uint16": TensorProto.UINT16}
X, W = [1, 4, 8, 8], [4, 4, 3, 3]
# op -> shapes of quantized inputs, further constant inputs, attributes, outputs
OPS: dict[str, tuple[list[list[int]], list[np.ndarray], dict[str, object], int]] = {
    "Conv": ([X, W], [], {}, 1),
    "MatMul": ([[4, 8], [8, 8]], [], {}, 1),
    "Gemm": ([[4, 8], [8, 8]], [], {}, 1),
    "Add": ([X, X], [], {}, 1),
    "Mul": ([X, X], [], {}, 1),
    "AveragePool": ([X], [], {"kernel_shape": [2, 2]}, 1),
    "GlobalAveragePool": ([X], [], {}, 1),
    "LeakyRelu": ([X], [], {}, 1),
    "Sigmoid": ([X], [], {}, 1),
    "Softmax": ([X], [], {}, 1),
    "Concat": ([X, X], [], {"axis": 1}, 1),
    "Where": ([X, X], [], {}, 1),
    "DepthToSpace": ([X], [], {"blocksize": 2}, 1),
    "Expand": ([[1, 4, 1, 1]], [np.array(X)], {}, 1),
    "Flatten": ([X], [], {}, 1),
    "Gather": ([X], [np.array([0, 1])], {"axis": 1}, 1),
    "GatherElements": ([X], [np.zeros((1, 1, 8, 8), np.int64)], {"axis": 1}, 1),
    "MaxPool": ([X], [], {"kernel_shape": [2, 2]}, 1),
    "ReduceMax": ([X], [np.array([2, 3])], {}, 1),
    "ReduceMin": ([X], [np.array([2, 3])], {}, 1),
    "Reshape": ([X], [np.array([4, 64])], {}, 1),
    "Resize": ([X], [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {}, 1),
    "Slice": ([X], [np.array([0]), np.array([2]), np.array([1])], {}, 1),
    "Split": ([X], [], {"axis": 1, "num_outputs": 2}, 2),
    "Squeeze": ([X], [np.array([0])], {}, 1),
    "Tile": ([X], [np.array([1, 1, 2, 1])], {}, 1),
    "Transpose": ([X], [], {"perm": [0, 2, 3, 1]}, 1),
    "Unsqueeze": ([X], [np.array([0])], {}, 1),
    # in float:
    "Relu": ([X], [], {}, 1),
    "Clip": ([X], [np.array(-1, np.float32), np.array(1, np.float32)], {}, 1),
    "Tanh": ([X], [], {}, 1),
    "HardSigmoid": ([X], [], {}, 1),
    "Erf": ([X], [], {}, 1),
    "GlobalMaxPool": ([X], [], {}, 1),
    "ReduceMean": ([X], [np.array([2, 3])], {}, 1),
    "ReduceSum": ([X], [np.array([2, 3])], {}, 1),
    "Sub": ([X, X], [], {}, 1),
    "Div": ([X, X], [], {}, 1),
    "Max": ([X, X], [], {}, 1),
    "ConvTranspose": ([X, W], [], {}, 1),
    "Pad": ([X], [np.array([0, 0, 1, 1, 0, 0, 1, 1])], {}, 1),
    "SpaceToDepth": ([X], [], {"blocksize": 2}, 1),
}


def write_op(path: Path, op: str, kind: str = "uint8", scales: tuple[float, float] = (0.05, 0.05)) -> Path:
    """The op between DequantizeLinear and QuantizeLinear nodes, every quantized input a graph input."""
    shapes, constants, attributes, count = OPS[op]
    nodes, inits, inputs, outputs, names = [], [], [], [], []

    def wrap(name: str, scale: float) -> str:
        inits.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        inits.append(numpy_helper.from_array(np.array(3, kind), f"{name}_zero"))
        params = [f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *params], [f"{name}_q"], f"{name}_Q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *params], [f"{name}_d"], f"{name}_DQ"))
        return f"{name}_d"

    for index, shape in enumerate(shapes):
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape))
        names.append(wrap(f"x{index}", scales[0]))
    for index, array in enumerate(constants):
        inits.append(numpy_helper.from_array(array, f"c{index}"))
        names.append(f"c{index}" if array.size else "")
    if op == "Where":
        inits.append(numpy_helper.from_array(np.arange(8) % 2 == 0, "condition"))
        names.insert(0, "condition")
    results = [f"y{index}" for index in range(count)]
    nodes.append(helper.make_node(op, names, results, "the_op", **attributes))
    for name in results:
        outputs.append(helper.make_tensor_value_info(wrap(name, scales[1]), TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "g", inputs, outputs, inits)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def causes(path: Path) -> set[str]:
    """Codes of the reasons for which the runtime converts inside the graph."""
    found = realized(Runnable(path, Cpu(), {}))
    return {row.cause for row in found.conversions if row.cause != "boundary"}


def test_the_table_is_tried_whole() -> None:
    assert {*qdq.INT8, *qdq.MOVES} <= {*OPS}


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_in_the_table_exactly_when_the_runtime_fuses_it(op: str, tmp_path: Path) -> None:
    fused = op in qdq.INT8 or op in qdq.MOVES
    for kind in ("uint8", "int8"):
        found = causes(write_op(tmp_path / f"{kind}.onnx", op, kind))
        assert found == (set() if fused else {"no-int8-kernel"}), kind


@pytest.mark.parametrize("op", sorted(qdq.MOVES))
def test_ops_that_move_codes_want_one_scale(op: str, tmp_path: Path) -> None:
    assert causes(write_op(tmp_path / "m.onnx", op, scales=(0.05, 0.07))) == {"scale-not-shared"}


@pytest.mark.parametrize("op", sorted({*qdq.INT8, *qdq.MOVES}))
def test_which_ops_take_sixteen_bits(op: str, tmp_path: Path) -> None:
    expected = {"not-eight-bits"} if op in qdq.INT8 or op in qdq._EIGHT_BITS_ONLY else set()
    assert causes(write_op(tmp_path / "m.onnx", op, "uint16")) == expected


@pytest.mark.parametrize("op", ["Conv", "Tanh", "Reshape", "Concat"])
def test_layout_optimizers_neither_add_nor_remove_conversions(op: str, tmp_path: Path) -> None:
    path = write_op(tmp_path / "m.onnx", op)

    def count(layout: bool) -> list[str]:
        folder = tmp_path / str(layout)
        folder.mkdir()
        graph = load(write_optimized(path, SessionSettings(), folder, layout=layout)).graph
        return sorted(node.op_type for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"))

    assert count(False) == count(True)
