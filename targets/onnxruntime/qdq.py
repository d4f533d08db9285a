"""Which ops ONNX Runtime executes in integers between DequantizeLinear and QuantizeLinear, and why one stayed in float.

Found by giving ONNX Runtime 1.31.1 one op at a time in Q/DQ form; tests/targets/test_qdq.py gives it every one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.ir.constants import const_tensor
from graphopt.target import Cause

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.targets.onnxruntime.kernels import Device

INT8: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "Conv": ("QLinearConv", (0, 1)),
    "MatMul": ("QLinearMatMul", (0, 1)),
    "Gemm": ("com.microsoft::QGemm", (0, 1)),
    "Add": ("com.microsoft::QLinearAdd", (0, 1)),
    "Mul": ("com.microsoft::QLinearMul", (0, 1)),
    "AveragePool": ("com.microsoft::QLinearAveragePool", (0,)),
    "GlobalAveragePool": ("com.microsoft::QLinearGlobalAveragePool", (0,)),
    "LeakyRelu": ("com.microsoft::QLinearLeakyRelu", (0,)),
    "Sigmoid": ("com.microsoft::QLinearSigmoid", (0,)),
    "Softmax": ("com.microsoft::QLinearSoftmax", (0,)),
    "Concat": ("com.microsoft::QLinearConcat", None),
    "Where": ("com.microsoft::QLinearWhere", (1, 2)),
}
"""By float op: the op that replaces it, and the inputs that must come from DequantizeLinear (None: all)."""

FLOAT_OUTPUT = frozenset({"MatMul", "Gemm"})
"""Ops of INT8 that may also give their result in float, without a QuantizeLinear behind them."""

_MOVES = (
    "DepthToSpace Expand Flatten Gather GatherElements MaxPool ReduceMax ReduceMin Reshape Resize Slice Split Squeeze "
    "Tile Transpose Unsqueeze"
)
MOVES = frozenset(_MOVES.split())
"""Ops that pass codes through unchanged when input and output have the same scale and zero point."""

_EIGHT_BITS_ONLY = frozenset({"DepthToSpace", "MaxPool", "ReduceMax", "ReduceMin", "Resize"})
_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
_EIGHT_BITS = frozenset({"INT8", "UINT8"})


def why_float(node: ir.Node, device: Device) -> Cause:
    """Why an op of an optimized graph computes in float though it stands beside a Q/DQ node; the first reason found."""
    op = _FUSED.get(node.op_type, node.op_type)
    where = f"ONNX Runtime's {device.upper()} provider"
    if device != "cpu" or (op not in INT8 and op not in MOVES):
        return Cause("no-int8-kernel", f"{where} has no int8 kernel for {op}")
    inputs = _data_inputs(node, op)
    return (
        _about_inputs(inputs, op)
        or _about_outputs(node, op)
        or (_about_moves(node, op) if op in MOVES else None)
        or Cause("not-fused", f"{where} does not fuse this {op}; its reason is not known here")
    )


def _data_inputs(node: ir.Node, op: str) -> Sequence[ir.Value]:
    wanted = INT8[op][1] if op in INT8 else (0,)
    return [
        value for index, value in enumerate(node.inputs) if value is not None and (wanted is None or index in wanted)
    ]


def _about_inputs(inputs: Sequence[ir.Value], op: str) -> Cause | None:
    for value in inputs:
        source = value.producer()
        if source is None or source.op_type != "DequantizeLinear":
            return Cause("input-not-quantized", f"its input {value.name!r} is not quantized{_origin(value)}")
        codes, scale = source.inputs[0], source.inputs[1]
        is_weight = const_tensor(codes) is not None
        if const_tensor(scale) is None:
            return Cause("computed-scale", f"the scale of its input {value.name!r} is computed at run time")
        if not is_weight and _size(scale) != 1:
            return Cause(
                "per-channel-activation",
                f"its input {value.name!r} has one scale per channel, and int8 kernels take one per tensor",
            )
        bits = codes.dtype.name if codes is not None and codes.dtype is not None else ""
        if bits not in _EIGHT_BITS and (op in INT8 or op in _EIGHT_BITS_ONLY):
            return Cause(
                "not-eight-bits", f"its input {value.name!r} is {bits.lower()}, and {op} has 8-bit kernels only"
            )
    return None


def _about_outputs(node: ir.Node, op: str) -> Cause | None:
    if op in FLOAT_OUTPUT:
        return None
    for value in node.outputs:
        readers = [reader.op_type for reader, _ in value.uses()]
        floats = sorted({reader for reader in readers if reader != "QuantizeLinear"})
        if value.is_graph_output():
            return Cause("output-not-quantized", f"its output {value.name!r} leaves the graph in float")
        if readers and len(floats) == len(set(readers)):
            return Cause("output-not-quantized", f"its output {value.name!r} goes to {', '.join(floats)} in float")
        if floats:
            text = f"its output {value.name!r} is quantized and also read in float by {', '.join(floats)}"
            return Cause("output-read-in-float", text)
    return None


def _about_moves(node: ir.Node, op: str) -> Cause | None:
    data = node.inputs[0]
    source = data.producer() if data is not None else None
    if data is None or source is None:
        return None
    for value in node.outputs:
        for reader, _ in value.uses():
            if reader.op_type == "QuantizeLinear" and not same_parameters(source, reader):
                return Cause(
                    "scale-not-shared",
                    f"{op} only moves values, and its input {data.name!r} and output {value.name!r} have different "
                    "scales or zero points",
                )
    return None


def same_parameters(a: ir.Node, b: ir.Node) -> bool:
    """Whether two Q/DQ nodes have equal constant scales and zero points of one type."""
    return all(_equal(_parameter(a, index), _parameter(b, index)) for index in (1, 2))


def _parameter(node: ir.Node, index: int) -> np.ndarray | None:
    tensor = const_tensor(node.inputs[index]) if index < len(node.inputs) else None
    return None if tensor is None else tensor.numpy()


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    import numpy as np

    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and np.array_equal(a.reshape(-1), b.reshape(-1))


def _origin(value: ir.Value) -> str:
    source = value.producer()
    if source is None:
        return " (a graph input)" if value.is_graph_input() else " (a float constant)"
    return f" (it comes from {source.op_type})"


def _size(value: ir.Value | None) -> int:
    tensor = const_tensor(value)
    return tensor.size if tensor is not None else 0
