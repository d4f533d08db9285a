"""Scales and codes of the constant weights of compute nodes, in the order in which kernels add their products.

Lives here: from a node's weights to a QParams and to codes. Not here: the arithmetic (graphopt.quantization).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from graphopt.quantization.affine import SMALLEST_SCALE, QParams, QType, channel_ranges, params_from_range, quantize
from graphopt.quantization.saturation import make_safe, safe_scales

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir

Ranges = Literal["max", "mse"]
_SHRINK = 20
"""Clips tried by the search for the least squared error: from the largest weight down to half of it."""


def choose_params(
    node: ir.Node, weights: np.ndarray, qtype: QType, axis: int | None, ranges: Ranges, safe: bool
) -> QParams:
    """Symmetric scales for the weights of a compute node: one per output channel of `axis`, or one when it is None.

    Args:
        node: Conv, MatMul or Gemm.
        weights: its float32 weights.
        qtype: the type of the codes.
        axis: of the output channels.
        ranges: `max` spans the largest weight, `mse` clips where that lowers the squared error.
        safe: choose scales with which saturation-safe codes lose least.

    Raises:
        GraphoptError: the weights hold NaN or infinities.
    """
    import numpy as np

    low, high = channel_ranges(weights, axis)
    params = params_from_range(low, high, qtype, symmetric=True, narrow=True)
    if ranges == "mse":
        params = _least_error(weights, QParams(qtype, params.scale, params.zero_point, axis))
    scale = params.scale
    if safe and adds_in_pairs(node):
        rows = kernel_rows(node, weights)
        wide = np.broadcast_to(scale, rows.shape[0] * rows.shape[2]).reshape(rows.shape[0], -1)
        scale = np.stack([safe_scales(group, item) for group, item in zip(rows, wide, strict=True)]).reshape(-1)
        scale = np.asarray(scale.max()) if axis is None else scale
    return QParams(qtype, scale.astype(np.float32), params.zero_point, axis)


def codes_of(node: ir.Node, weights: np.ndarray, params: QParams, safe: bool) -> np.ndarray:
    """Weights as codes; with `safe`, such that no 16-bit sum of a kernel without VNNI can saturate."""
    import numpy as np

    codes = quantize(weights, params)
    if params.type.signed:
        codes = np.maximum(codes, np.asarray(-params.type.qmax, codes.dtype))
    if not safe or not adds_in_pairs(node):
        return codes
    rows = np.stack([make_safe(group) for group in kernel_rows(node, codes)])
    return from_kernel_rows(node, rows, codes.shape)


def adds_in_pairs(node: ir.Node) -> bool:
    """Whether the kernel adds neighbouring products in 16 bits; depthwise kernels widen first."""
    return not (node.op_type == "Conv" and _groups(node) > 1 and _inner(node) == 1)


def kernel_rows(node: ir.Node, weights: np.ndarray) -> np.ndarray:
    """Weights as (groups, K, N): K in the order in which the kernel adds, N the output channels of a group.

    A convolution adds over kernel positions, and over the channels of one position first (channels last).
    """
    import numpy as np

    if node.op_type == "Conv":
        groups = _groups(node)
        split = weights.reshape(groups, weights.shape[0] // groups, *weights.shape[1:])
        order = np.moveaxis(split, (1, 2), (-1, -2))
        return order.reshape(groups, -1, split.shape[1])
    return (weights.T if _transposed(node) else weights)[None]


def from_kernel_rows(node: ir.Node, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of kernel_rows."""
    import numpy as np

    if node.op_type == "Conv":
        split = rows.reshape(rows.shape[0], *shape[2:], shape[1], rows.shape[2])
        return np.ascontiguousarray(np.moveaxis(split, (-1, -2), (1, 2)).reshape(shape))
    return np.ascontiguousarray(rows[0].T if _transposed(node) else rows[0])


def bias_codes(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int32 codes of a bias whose scale is that of input times weights; exact up to half a step."""
    import numpy as np

    return np.clip(np.rint(bias.astype(np.float64) / scale), -(2**31), 2**31 - 1).astype(np.int32)


def fit_to_bias(params: QParams, weights: np.ndarray, bias: np.ndarray | None, input_scale: float) -> QParams:
    """Scales whose bias codes fit 31 bits, which channels with tiny weights and a large bias need.

    Codes of a channel without weights are zero whatever its scale: that is the one with which its bias keeps the digits
    of float32.
    """
    import numpy as np

    if bias is None:
        return params
    sizes = np.abs(bias.astype(np.float64)) / input_scale
    low, high = channel_ranges(weights, params.axis)
    empty = (low == 0) & (high == 0)
    sizes = sizes if params.axis is not None else sizes.max(initial=0.0)
    given = np.where(empty & (sizes > 0), np.maximum(sizes / 2.0**24, SMALLEST_SCALE), params.scale)
    scale = np.maximum(given, sizes / 2.0**30).astype(np.float32)
    return QParams(params.type, scale, params.zero_point, params.axis)


def _least_error(weights: np.ndarray, params: QParams) -> QParams:
    import numpy as np

    axis = params.axis
    over = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)

    def error(scale: np.ndarray) -> np.ndarray:
        spread, _ = QParams(params.type, scale, params.zero_point, axis).spread(weights.shape)
        codes = np.clip(np.rint(weights / spread), -params.type.qmax, params.type.qmax)
        return np.square(codes * spread - weights, dtype=np.float64).sum(axis=over)

    best, least = params.scale, error(params.scale)
    for step in range(1, _SHRINK + 1):
        candidate = (params.scale * (1 - 0.5 * step / _SHRINK)).astype(np.float32)
        now = error(candidate)
        best, least = np.where(now < least, candidate, best), np.minimum(now, least)
    return QParams(params.type, best, params.zero_point, axis)


def _groups(node: ir.Node) -> int:
    attr = node.attributes.get("group")
    return 1 if attr is None else attr.as_int()


def _inner(node: ir.Node) -> int:
    """Input channels of one group."""
    weights = node.inputs[1]
    assert weights is not None and weights.shape is not None
    size = weights.shape[1]
    return size if isinstance(size, int) else 0


def _transposed(node: ir.Node) -> bool:
    attr = node.attributes.get("transB")
    return node.op_type == "Gemm" and attr is not None and bool(attr.as_int())
