"""Constants in front of a linear op, folded into its weights: `Conv(x * s, w)` and, without padding, `Conv(x + t, w)`.

Zero padding commutes with a factor but not with a summand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._linear import ACTIVATIONS, batch_norm_affine, copyable, linear, per_channel, rounded

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

_AFFINE = frozenset({"Mul", "Div", "Add", "Sub", "BatchNormalization"})


class _Before(NodePass):
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    # A batch norm behind a linear op belongs to that one.
    after: ClassVar[tuple[str, ...]] = (
        *ACTIVATIONS,
        "fuse-conv-bn",
        "fuse-gemm-bn",
        "fuse-matmul-bn",
        "fuse-conv-scale",
        "fuse-conv-bias",
    )

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        position = 1 if node.op_type == "MatMul" and m.is_const(node.inputs[0]) else 0
        value = node.inputs[position]
        before = value.producer() if value is not None else None
        if before is None or before.op_type not in _AFFINE or before.domain != "" or before.graph is not node.graph:
            raise Uninteresting("no constant in front")
        assert value is not None
        if not any(m.is_const(v) for v in before.inputs):
            raise Uninteresting("no constant in front")
        m.sole_use(value)
        m.not_quantized([value, *before.inputs])
        lin = linear(m, node)
        weight = lin.weight
        copyable(m, weight)
        rank, axis, count = input_channel(m, node, position)
        x, factor, shift = _affine(m, before, rank, axis, count)
        m.require(m.same_shape(x, value), "the constant makes the value larger")
        m.interior = [before]
        exact = m.const(weight).astype("float64")
        inputs = [*node.inputs, None][:3]
        inputs[position] = x
        if shift is not None:
            _no_padding(m, node)
            inputs[2] = _new_bias(op, m, node, exact, shift, lin.count)
        if factor is not None:
            inputs[1 - position] = rounded(op, m, times_input(m, node, exact, factor), weight)
        if node.op_type == "MatMul":
            return op.clone(node, inputs[:2])
        return op.clone(node, inputs, **({"beta": 1.0} if node.op_type == "Gemm" and shift is not None else {}))


@dataclass(frozen=True)
class FuseScaleConv(_Before):
    """Conv(x * s + t, w, b) -> Conv(x, w * s, b + sum(w * t)), for constants s and t per input channel.

    A factor and a summand are taken one at a time; a BatchNormalization in front is both at once.
    """

    name: ClassVar[str] = "fuse-scale-conv"
    ops: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class FuseScaleMatMul(_Before):
    """MatMul(x * s, w) -> MatMul(x, s * w), for constants s and w; also Gemm, whose bias takes a summand too."""

    name: ClassVar[str] = "fuse-scale-matmul"
    ops: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm")


def input_channel(m: Match, node: ir.Node, position: int) -> tuple[int, int, int]:
    """Rank of the data input, its contracted axis and that axis's length as the weight has it."""
    weight = node.inputs[1 - position]
    if node.op_type == "Conv":
        return m.rank(weight), 1, m.dim(weight, 1) * m.attr(node, "group", 1)
    if node.op_type == "ConvTranspose":
        return m.rank(weight), 1, m.dim(weight, 0)
    if node.op_type == "Gemm":
        return 2, 0 if m.attr(node, "transA", 0) else 1, m.dim(weight, 1 if m.attr(node, "transB", 0) else 0)
    rank = m.rank(node.inputs[position])
    m.require(rank >= 2 and m.rank(weight) >= 2, "a vector operand of MatMul")
    return (rank, rank - 1, m.dim(weight, -2)) if position == 0 else (rank, rank - 2, m.dim(weight, -1))


def _affine(m: Match, node: ir.Node, rank: int, axis: int, count: int) -> tuple[ir.Value, Any, Any]:
    """The node as x * factor + shift; None for a factor of 1 and a shift of 0."""
    import numpy as np

    if node.op_type == "BatchNormalization":
        m.require(axis == 1, "the batch norm is over another axis")
        factor, shift = batch_norm_affine(m, node)
        assert node.inputs[0] is not None
        return node.inputs[0], factor, (shift if shift.any() else None)
    a, b = node.inputs
    x, constant = (b, a) if m.is_const(a) else (a, b)
    assert x is not None and constant is not None
    array = per_channel(m, constant, rank, axis, count)
    if node.op_type == "Mul":
        return x, array, None
    if node.op_type == "Div":
        m.require(constant is b and (array != 0).all(), "not a division by a constant other than zero")
        return x, 1.0 / array, None
    if node.op_type == "Sub" and constant is a:
        return x, -np.ones_like(array), array
    return x, None, array if node.op_type == "Add" else -array


def _no_padding(m: Match, node: ir.Node) -> None:
    m.require(node.op_type in ("Conv", "Gemm"), f"{node.op_type} cannot take a summand in front into its bias")
    if node.op_type == "Conv":
        kind = m.attr(node, "auto_pad", "NOTSET")
        pads = m.attr(node, "pads", ())
        m.require(
            kind == "VALID" or (kind == "NOTSET" and not any(pads)),
            "the convolution pads with zeros, which the summand would miss",
        )


def times_input(m: Match, node: ir.Node, weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """`weights` with every input channel multiplied by its factor."""
    import numpy as np

    if factor.ndim == 0:
        return weights * factor
    ones = (1,) * (weights.ndim - 2)
    if node.op_type == "Conv":
        per_group = factor.reshape(-1, weights.shape[1])
        rows = np.repeat(per_group, weights.shape[0] // per_group.shape[0], axis=0)
        return weights * rows.reshape(*rows.shape, *ones)
    if node.op_type == "ConvTranspose":
        return weights * factor.reshape(-1, 1, *ones)
    by_columns = bool(m.attr(node, "transB", 0)) if node.op_type == "Gemm" else m.is_const(node.inputs[0])
    return weights * (factor if by_columns else factor[:, None])


def _new_bias(op: Builder, m: Match, node: ir.Node, weights: np.ndarray, shift: np.ndarray, count: int) -> ir.Value:
    """The old bias plus what the summand contributes to every output channel."""
    old = m.input(2, node)
    part = times_input(m, node, weights, shift)
    assert node.inputs[1] is not None
    if node.op_type == "Conv":
        total = part.sum(axis=tuple(range(1, part.ndim)))
        bias = m.const(old).astype("float64") if old is not None else 0.0
    else:
        total = part.sum(axis=1 if m.attr(node, "transB", 0) else 0) * m.attr(node, "alpha", 1.0)
        bias = m.const(old).astype("float64") * m.attr(node, "beta", 1.0) if old is not None else 0.0
    return rounded(op, m, bias + total, node.inputs[1], f"{node.name}_bias")
