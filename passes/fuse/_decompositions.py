"""One function per op that a fusion makes: the op as simpler ops of the standard. The pass is in decompose.py.

Formulas follow the function bodies of the ONNX operator specification. Each returns what replaces the node's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

    Decomposition = Callable[[Builder, Match, ir.Node], "ir.Value | Sequence[ir.Value | None]"]

TABLE: dict[str, Decomposition] = {}
"""The decomposition of each op of the standard domain, by op type."""


def decomposes(op_type: str) -> Callable[[Decomposition], Decomposition]:
    """Register the function as the decomposition of an op."""

    def register(function: Decomposition) -> Decomposition:
        TABLE[op_type] = function
        return function

    return register


def _x(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def reduce(op: Builder, m: Match, kind: str, x: ir.Value, axes: Sequence[int], keepdims: int = 1) -> ir.Value:
    """A reduction; its axes are an input from opset 18 (ReduceSum: 13), an attribute before."""
    if m.opset() >= (13 if kind == "ReduceSum" else 18):
        return op.node(kind, x, list(axes), keepdims=keepdims)
    return op.node(kind, x, axes=list(axes), keepdims=keepdims)


def _widened(op: Builder, m: Match, node: ir.Node) -> tuple[ir.Value, Callable[[ir.Value], ir.Value]]:
    """x in the type that a normalisation computes in (stash_type), and the way back to x's own."""
    x = _x(node)
    dtype = m.dtype(x)
    if dtype.name not in ("FLOAT16", "BFLOAT16") or m.attr(node, "stash_type", 1) != 1:
        return x, lambda value: value
    return op.Cast(x, to=1), lambda value: op.Cast(value, to=int(dtype))


@decomposes("Gelu")
def gelu(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    x = _x(node)
    half = op.Mul(x, 0.5)
    if m.attr(node, "approximate", "none") == "tanh":
        cube = op.Mul(op.Mul(op.Mul(x, x), x), 0.044715)
        return op.Mul(half, op.Add(op.Tanh(op.Mul(op.Add(x, cube), math.sqrt(2 / math.pi))), 1.0))
    return op.Mul(half, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0))


@decomposes("LayerNormalization")
def layer_norm(op: Builder, m: Match, node: ir.Node) -> Sequence[ir.Value | None]:
    x, back = _widened(op, m, node)
    axes = _last_axes(m, node)
    mean = reduce(op, m, "ReduceMean", x, axes)
    deviation = op.Sub(x, mean)
    variance = reduce(op, m, "ReduceMean", op.Mul(deviation, deviation), axes)
    root = op.Sqrt(op.Add(variance, m.attr(node, "epsilon", 1e-5)))
    made = op.Mul(back(op.Div(deviation, root)), node.inputs[1])
    if m.input(2, node) is not None:
        made = op.Add(made, node.inputs[2])
    wanted = [output.uses() or output.is_graph_output() for output in node.outputs]
    more = [mean, op.Reciprocal(root) if len(wanted) > 2 and wanted[2] else None]
    return [made, *more][: len(node.outputs)]


@decomposes("RMSNormalization")
def rms_norm(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    x, back = _widened(op, m, node)
    mean = reduce(op, m, "ReduceMean", op.Mul(x, x), _last_axes(m, node))
    root = op.Sqrt(op.Add(mean, m.attr(node, "epsilon", 1e-5)))
    return op.Mul(back(op.Div(x, root)), node.inputs[1])


def _last_axes(m: Match, node: ir.Node) -> list[int]:
    rank = m.rank(_x(node))
    return list(range(m.axis(m.attr(node, "axis", -1), rank) - rank, 0))


@decomposes("InstanceNormalization")
def instance_norm(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    x = _x(node)
    rank = m.rank(x)
    axes = list(range(2, rank))
    deviation = op.Sub(x, reduce(op, m, "ReduceMean", x, axes))
    variance = reduce(op, m, "ReduceMean", op.Mul(deviation, deviation), axes)
    made = op.Div(deviation, op.Sqrt(op.Add(variance, m.attr(node, "epsilon", 1e-5))))
    return op.Add(op.Mul(made, _column(op, m, node.inputs[1], rank)), _column(op, m, node.inputs[2], rank))


@decomposes("GroupNormalization")
def group_norm(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    import numpy as np

    m.require(m.opset() >= 21, "GroupNormalization has a scale per group before opset 21")
    groups = m.attr(node, "num_groups")
    x, back = _widened(op, m, node)
    rank, dtype = m.rank(x), m.dtype(x).numpy()
    ones, zeros = np.ones(groups, dtype), np.zeros(groups, dtype)
    normal = op.InstanceNormalization(
        op.Reshape(x, [0, groups, -1]), ones, zeros, epsilon=m.attr(node, "epsilon", 1e-5)
    )
    made = back(op.Reshape(normal, op.Shape(x)))
    return op.Add(op.Mul(made, _column(op, m, node.inputs[1], rank)), _column(op, m, node.inputs[2], rank))


def _column(op: Builder, m: Match, value: ir.Value | None, rank: int) -> ir.Value:
    """A vector over the channels as [C, 1, ...], to broadcast against `rank` dims."""
    assert value is not None
    if m.is_const(value):
        return op.const(m.const(value).reshape(-1, *(1,) * (rank - 2)), str(value.name), m.dtype(value))
    return op.Reshape(value, [-1] + [1] * (rank - 2))


@decomposes("HardSwish")
def hard_swish(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    return op.Mul(_x(node), op.HardSigmoid(_x(node), alpha=1 / 6, beta=0.5))


@decomposes("HardSigmoid")
def hard_sigmoid(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    line = op.Add(op.Mul(_x(node), m.attr(node, "alpha", 0.2)), m.attr(node, "beta", 0.5))
    return op.Clip(line, 0.0, 1.0) if m.opset() >= 11 else op.Clip(line, min=0.0, max=1.0)


@decomposes("Swish")
def swish(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    alpha = m.attr(node, "alpha", 1.0)
    return op.Mul(_x(node), op.Sigmoid(_x(node) if alpha == 1 else op.Mul(_x(node), alpha)))


@decomposes("Mish")
def mish(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    return op.Mul(_x(node), op.Tanh(op.Softplus(_x(node))))


@decomposes("Softplus")
def softplus(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    """In the form that does not overflow: max(x, 0) + log(1 + exp(-|x|))."""
    x = _x(node)
    return op.Add(op.Relu(x), op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), 1.0)))


@decomposes("LeakyRelu")
def leaky_relu(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    x = _x(node)
    return op.Where(op.Greater(x, 0.0), x, op.Mul(x, m.attr(node, "alpha", 0.01)))


@decomposes("PRelu")
def prelu(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    x = _x(node)
    return op.Where(op.Greater(x, 0.0), x, op.Mul(x, node.inputs[1]))


@decomposes("Relu")
def relu(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    return op.Max(_x(node), 0.0)


@decomposes("Clip")
def clip(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    m.require(m.opset() >= 12, "Min and Max take every type from opset 12")
    made = _x(node)
    for kind, bound in (("Max", m.input(1, node)), ("Min", m.input(2, node))):
        if bound is not None:
            made = op.node(kind, made, bound)
    return made if made is not _x(node) else op.Identity(made)


@decomposes("ReduceL2")
def reduce_l2(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    return op.Sqrt(_sum_of_squares(op, m, node))


@decomposes("ReduceSumSquare")
def reduce_sum_square(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    return _sum_of_squares(op, m, node)


def _sum_of_squares(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    x, axes = _x(node), m.axes(node)
    square = op.Mul(x, x)
    if not axes and m.attr(node, "noop_with_empty_axes", 0):
        return square
    chosen = list(axes) if axes else list(range(m.rank(x)))
    return reduce(op, m, "ReduceSum", square, chosen, m.attr(node, "keepdims", 1))


@decomposes("Softmax")
def softmax(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    below, axis = _less_maximum(op, m, node)
    power = op.Exp(below)
    return op.Div(power, reduce(op, m, "ReduceSum", power, [axis]))


@decomposes("LogSoftmax")
def log_softmax(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    below, axis = _less_maximum(op, m, node)
    return op.Sub(below, op.Log(reduce(op, m, "ReduceSum", op.Exp(below), [axis])))


def _less_maximum(op: Builder, m: Match, node: ir.Node) -> tuple[ir.Value, int]:
    m.require(m.opset() >= 13, "Softmax flattens its input before opset 13")
    axis = m.attr(node, "axis", -1)
    return op.Sub(_x(node), reduce(op, m, "ReduceMax", _x(node), [axis])), axis


@decomposes("GlobalAveragePool")
def global_average_pool(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    return reduce(op, m, "ReduceMean", _x(node), list(range(2, m.rank(_x(node)))))


@decomposes("Gemm")
def gemm(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    a, b = (
        op.Transpose(value, perm=[1, 0]) if m.attr(node, name, 0) else value
        for value, name in zip(node.inputs[:2], ("transA", "transB"), strict=True)
    )
    made = op.MatMul(a, b)
    alpha, beta, c = m.attr(node, "alpha", 1.0), m.attr(node, "beta", 1.0), m.input(2, node)
    if alpha != 1:
        made = op.Mul(made, alpha)
    if c is None or beta == 0:
        return made
    return op.Add(made, c if beta == 1 else op.Mul(c, beta))
