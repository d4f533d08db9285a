"""How ops take to int8: those that multiply and add, those with an int8 kernel of their own, those that only move data.

Measured with ONNX Runtime 1.31 on the CPU: of which ops it makes an int8 kernel out of Dequantize - op - Quantize.
Not here: which nodes of a model are quantized (_static_plan.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from graphopt.ir.constants import const_scalar, const_tensor

if TYPE_CHECKING:
    from graphopt import ir

Kind = Literal["compute", "own", "moves", "clips", "float"]

COMPUTE = {"Conv": 1, "MatMul": 1, "Gemm": 1}
"""Ops with the work, and the slot of their weights."""
OWN = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"})
"""Ops whose int8 kernel takes one scale in and gives another out."""
MOVES = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Transpose",
        "Slice",
        "Gather",
        "Split",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Expand",
        "Tile",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
"""Ops that copy elements: what goes in and what comes out share scale and zero point."""
CLIPS = frozenset({"Relu", "Clip"})
"""Ops that saturation of the codes replaces, when they cut at zero."""
FIXED_RANGES = {"Sigmoid": (0.0, 1.0)}
"""Ranges that are known without data."""


def kind_of(node: ir.Node) -> Kind:
    """How the node takes to int8."""
    if node.domain != "":
        return "float"
    if node.op_type in COMPUTE:
        return "compute"
    if node.op_type in CLIPS:
        return "clips" if cuts_at_zero(node) else "float"
    if node.op_type in OWN:
        return "own"
    if node.op_type in MOVES or is_nearest(node):
        return "moves"
    return "float"


def is_nearest(node: ir.Node) -> bool:
    """A Resize that copies elements."""
    mode = node.attributes.get("mode")
    return node.op_type == "Resize" and (mode is None or mode.as_string() == "nearest")


def cuts_at_zero(node: ir.Node) -> bool:
    """Relu, or a Clip from 0 to a constant: all it does is done by codes that begin at zero."""
    if node.op_type == "Relu":
        return True
    low = const_scalar(node.inputs[1]) if len(node.inputs) > 1 else None
    return low == 0 and clip_high(node) is not None


def clip_high(node: ir.Node) -> float | None:
    """The upper bound of a Clip; inf without one, None when it is no positive constant."""
    if node.op_type == "Relu" or len(node.inputs) < 3 or node.inputs[2] is None:
        return float("inf")
    high = const_scalar(node.inputs[2])
    return float(high) if high is not None and high > 0 else None


def data_slots(node: ir.Node) -> tuple[int, ...]:
    """The inputs that are float activations or constants to be quantized; not shapes, axes, bounds or biases."""
    if node.op_type in ("Add", "Mul", "MatMul"):
        return (0, 1)
    if node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    return (0,)


def weight_axis(node: ir.Node) -> int | None:
    """The axis of output channels of a compute node's constant weights; None when it has none that can be quantized."""
    tensor = const_tensor(node.inputs[1])
    if tensor is None:
        return None
    if node.op_type == "Conv":
        return 0
    if len(tensor.shape) != 2:
        return None
    if node.op_type == "Gemm":
        trans = node.attributes.get("transB")
        return 0 if trans is not None and trans.as_int() else 1
    return 1
