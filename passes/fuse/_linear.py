"""Folding a per-channel `y * factor + shift` into the linear op that makes y (LINEAR_OPS).

Lives here: which axis of a constant is the channel, arithmetic in float64 and its limits. Not here: the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.constants import const_tensor, nbytes

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

    Factor = np.ndarray | None

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
ACTIVATIONS = (
    "fuse-gelu",
    "fuse-hard-sigmoid",
    "fuse-hard-swish",
    "fuse-layer-norm",
    "fuse-instance-norm",
    "fuse-swish",
)
"""Passes whose left side has scalar factors; they come before the rules that would fold those factors away."""

SHARED_LIMIT = 1 << 20
"""A weight with other users is copied when folding; larger ones (bytes) would make the model grow and are refused."""


@dataclass(frozen=True)
class Linear:
    """A linear node seen by its output: `rank` dims, the channel at `axis` with `count` indices.

    `left` is True for MatMul(constant, x), whose channels are rows.
    """

    node: ir.Node
    weight: ir.Value
    rank: int
    axis: int
    count: int
    left: bool = False


def linear(m: Match, node: ir.Node) -> Linear:
    """Read a linear node.

    Raises:
        NoMatch: unknown shapes, a quantize/dequantize group, training mode, integers.
    """
    m.not_quantized([*node.inputs, *node.outputs])
    m.require(m.is_float(node.outputs[0]), f"{node.op_type} {node.name!r} does not compute with floats")
    if node.op_type == "MatMul":
        return _matmul(m, node)
    if node.op_type == "BatchNormalization":
        check_batch_norm(m, node)
        return Linear(node, _given(m, node, 1), m.rank(node.inputs[0]), 1, m.dim(node.inputs[1], 0))
    weight = _given(m, node, 1)
    if node.op_type == "Gemm":
        return Linear(node, weight, 2, 1, m.dim(weight, 0 if m.attr(node, "transB", 0) else 1))
    count = m.dim(weight, 0) if node.op_type == "Conv" else m.dim(weight, 1) * m.attr(node, "group", 1)
    return Linear(node, weight, m.rank(weight), 1, count)


def _matmul(m: Match, node: ir.Node) -> Linear:
    left, right = _given(m, node, 0), _given(m, node, 1)
    rank = m.rank(node.outputs[0])
    if not m.is_const(right) and m.is_const(left):
        m.require(m.rank(left) >= 2 and m.rank(right) >= 2, "a vector operand of MatMul")
        return Linear(node, left, rank, rank - 2, m.dim(left, -2), left=True)
    m.require(m.rank(right) >= 2, "a vector operand of MatMul")
    return Linear(node, right, rank, rank - 1, m.dim(right, -1))


def _given(m: Match, node: ir.Node, index: int) -> ir.Value:
    value = m.input(index, node)
    m.require(value is not None, f"{node.op_type} {node.name!r} lacks input {index}")
    assert value is not None
    return value


def check_batch_norm(m: Match, bn: ir.Node) -> None:
    """Raise NoMatch unless the batch norm is in inference form: per channel, one output, running statistics."""
    m.require(not m.attr(bn, "training_mode", 0) and len(bn.outputs) == 1, "the batch norm is in training mode")
    m.require(m.attr(bn, "spatial", 1) == 1, "the batch norm is not per channel")


def batch_norm_affine(m: Match, bn: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the shift ([C], float64) that an inference batch norm with constant parameters stands for."""
    import numpy as np

    check_batch_norm(m, bn)
    scale, bias, mean, var = (m.const(value).astype(np.float64) for value in bn.inputs[1:5])
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(var + m.attr(bn, "epsilon", 1e-5))
        shift = bias - mean * factor
    m.require(np.isfinite(factor).all() and np.isfinite(shift).all(), "scale / sqrt(var + epsilon) is not finite")
    return factor, shift


def per_channel(m: Match, value: ir.Value, rank: int, axis: int, count: int) -> np.ndarray:
    """The constant `value`, broadcast against `rank` dims, as numbers along `axis`: float64 of shape () or [count].

    Raises:
        NoMatch: not constant, not finite, or it varies along another axis or makes the result larger.
    """
    import numpy as np

    tensor = const_tensor(value)
    m.require(tensor is not None, f"value {value.name!r} is not constant")
    assert tensor is not None
    dims = tuple(tensor.shape.numpy())
    m.require(len(dims) <= rank, f"the constant has rank {len(dims)}, the result rank {rank}")
    padded = (1,) * (rank - len(dims)) + dims
    fits = all(dim == 1 or (at == axis and dim == count) for at, dim in enumerate(padded))
    m.require(
        fits, f"the constant {list(dims)} is not one number per channel (axis {axis} of {rank}, {count} channels)"
    )
    array = m.const(value).astype(np.float64)
    m.require(np.isfinite(array).all(), "the constant is not finite")
    return array.reshape(()) if array.size == 1 else array.reshape(count)


def fold(op: Builder, m: Match, lin: Linear, factor: Factor, shift: Factor) -> ir.Value:
    """Make the linear node anew so that it computes `y * factor + shift` (each () or [count], None: 1 and 0).

    Raises:
        NoMatch: a weight that must change is not constant, shared and large, or would overflow; MatMul has no shift.
    """
    if lin.node.op_type == "BatchNormalization":
        return _fold_batch_norm(op, m, lin, factor, shift)
    inputs = list(lin.node.inputs[:2])
    new_bias = _bias(op, m, lin, factor, shift)
    if factor is not None:
        inputs[0 if lin.left else 1] = fold_weight(op, m, lin, factor)
    if lin.node.op_type == "MatMul":
        return op.clone(lin.node, inputs)
    more = {"beta": 1.0} if lin.node.op_type == "Gemm" else {}
    return op.clone(lin.node, [*inputs, new_bias], **more)


def fold_weight(op: Builder, m: Match, lin: Linear, factor: np.ndarray) -> ir.Value:
    """A new weight constant: the old one with every output channel multiplied by its factor (() or [count])."""
    return rounded(op, m, _times(m, lin, factor), lin.weight)


def _times(m: Match, lin: Linear, factor: np.ndarray) -> np.ndarray:
    import numpy as np

    copyable(m, lin.weight)
    weights = m.const(lin.weight).astype(np.float64)
    if factor.ndim == 0:
        return weights * factor
    kind = lin.node.op_type
    if kind == "Conv":
        return weights * factor.reshape(-1, *(1,) * (weights.ndim - 1))
    if kind == "ConvTranspose":
        rows = np.repeat(
            factor.reshape(-1, weights.shape[1]), weights.shape[0] // (lin.count // weights.shape[1]), axis=0
        )
        return weights * rows.reshape(*rows.shape, *(1,) * (weights.ndim - 2))
    by_rows = lin.left or (kind == "Gemm" and m.attr(lin.node, "transB", 0))
    return weights * (factor[:, None] if by_rows else factor)


def _bias(op: Builder, m: Match, lin: Linear, factor: Factor, shift: Factor) -> ir.Value | None:
    import numpy as np

    old = m.input(2, lin.node)
    if lin.node.op_type == "MatMul":
        m.require(shift is None, "MatMul has no bias input")
        return None
    if old is None and shift is None:
        return None
    beta = m.attr(lin.node, "beta", 1.0) if lin.node.op_type == "Gemm" else 1.0
    exact = m.const(old).astype(np.float64) * beta if old is not None else np.zeros(())
    if factor is not None:
        exact = exact * factor
    if shift is not None:
        exact = exact + shift
    if lin.node.op_type != "Gemm":
        exact = np.broadcast_to(exact, (lin.count,))
    elif exact.ndim == 0:
        exact = exact.reshape(1)
    return rounded(op, m, exact, lin.weight, f"{lin.node.name}_bias")


def _fold_batch_norm(op: Builder, m: Match, lin: Linear, factor: Factor, shift: Factor) -> ir.Value:
    import numpy as np

    x, scale, bias, mean, var = lin.node.inputs[:5]
    new = [m.const(value).astype(np.float64) for value in (scale, bias)]
    if factor is not None:
        new = [array * factor for array in new]
    if shift is not None:
        new[1] = new[1] + shift
    assert scale is not None and bias is not None
    return op.clone(lin.node, [x, rounded(op, m, new[0], scale), rounded(op, m, new[1], bias), mean, var])


def copyable(m: Match, weight: ir.Value) -> None:
    """Raise NoMatch when a changed copy of the weight would stay beside a large original that others use."""
    tensor = const_tensor(weight)
    m.require(tensor is not None, f"the weight {weight.name!r} is not constant")
    assert tensor is not None
    shared = len(weight.uses()) > 1 or weight.is_graph_output()
    m.require(
        not shared or nbytes(tensor) <= SHARED_LIMIT,
        f"the weight {weight.name!r} has other users and {nbytes(tensor)} bytes",
    )


def rounded(op: Builder, m: Match, exact: Any, like: ir.Value, hint: str | None = None) -> ir.Value:
    """A new constant with the float64 contents rounded once to the type of `like`.

    Raises:
        NoMatch: something overflows, or most of the precision is lost to underflow.
    """
    import numpy as np

    dtype = m.dtype(like)
    with np.errstate(all="ignore"):
        array = np.asarray(exact).astype(dtype.numpy())
        back = array.astype(np.float64)
    m.require(np.isfinite(back).all(), f"the folded weights are not finite in {dtype}")
    lost = np.abs(back - exact).max(initial=0.0)
    largest = np.abs(exact).max(initial=0.0)
    m.require(lost <= 2.0**-7 * largest, f"the folded weights underflow in {dtype}")
    return op.const(array, hint or f"{like.name}_folded", dtype)
