"""Own rules for Resize, pooling with ceil mode and Unique, where the package's answer does not always hold.

Not here: every other pooling and convolution, which the package does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.analysis import shape_values
from graphopt.analysis.shape_attrs import attr_int, attr_ints, axis_of, optional_input
from graphopt.analysis.shape_package import infer_by_package
from graphopt.analysis.shape_result import Result
from graphopt.ir.constants import const_tensor

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shapes import Shapes


def infer_resize(s: Shapes, node: ir.Node) -> Sequence[Result]:
    """By sizes, or by scales where the product rounds the same in any arithmetic."""
    x = node.inputs[0]
    size = s.dims(x)
    if size is None:
        return [Result(s.dtype(x))]
    # Opset 10 and Upsample have (X, scales), later ones (X, roi, scales, sizes).
    late = len(node.inputs) > 2
    sizes = optional_input(node, 3)
    scales = optional_input(node, 2 if late else 1)
    axes = tuple(axis_of(axis, len(size)) for axis in attr_ints(node, "axes") or range(len(size)))
    policy = node.attributes.get("keep_aspect_ratio_policy")
    out = list(size)
    if sizes is not None:
        wanted = s.values(sizes)
        free = policy is None or policy.as_string() == "stretch"
        for index, axis in enumerate(axes):
            out[axis] = s.as_dim(wanted[index]) if wanted is not None and free else s.fresh()
        return [Result(s.dtype(x), out)]
    tensor = const_tensor(scales)
    attr = node.attributes.get("scales")
    factors = attr.as_floats() if attr is not None else None if tensor is None else tensor.numpy().reshape(-1).tolist()
    for index, axis in enumerate(axes):
        out[axis] = s.fresh() if not factors else shape_values.scaled(s, size[axis], factors[index])
    return [Result(s.dtype(x), out)]


def infer_pool(s: Shapes, node: ir.Node) -> Sequence[Result] | None:
    """The package's result, without the symbolic dimensions that ceil mode may make one smaller.

    A last window that would start in the end padding is dropped, which cannot happen while the (dilated) kernel is at
    least stride + end padding.
    """
    results = infer_by_package(s, node)
    if not results or not attr_int(node, "ceil_mode", 0):
        return results
    kernel = attr_ints(node, "kernel_shape") or ()
    rank = len(kernel)
    strides = attr_ints(node, "strides") or (1,) * rank
    dilations = attr_ints(node, "dilations") or (1,) * rank
    ends = (attr_ints(node, "pads") or (0,) * (2 * rank))[rank:]
    safe = [
        (size - 1) * dilation + 1 >= stride + end
        for size, dilation, stride, end in zip(kernel, dilations, strides, ends, strict=True)
    ]
    return [result if result.dims is None else result._replace(dims=_sure(s, result.dims, safe)) for result in results]


def _sure(s: Shapes, size: Sequence[Dim], safe: Sequence[bool]) -> list[Dim]:
    spatial = zip(size[2:], safe, strict=True)
    return [*size[:2], *(dim if sure or isinstance(dim, int) else s.fresh() for dim, sure in spatial)]


def infer_unique(s: Shapes, node: ir.Node) -> Sequence[Result]:
    """(unique elements or slices, first positions, inverse positions, counts)."""
    from graphopt import ir

    x = node.inputs[0]
    size, count = s.dims(x), s.fresh()
    total = s.numel(x)
    if "axis" not in node.attributes:
        found: list[Dim] | None = [count]
    elif size is None:
        found = None
    else:
        axis = axis_of(attr_int(node, "axis", 0), len(size))
        found = [*size[:axis], count, *size[axis + 1 :]]
        total = size[axis]
    inverse = [s.fresh() if total is None else total]
    index = ir.DataType.INT64
    return [Result(s.dtype(x), found), Result(index, [count]), Result(index, inverse), Result(index, [count])]
