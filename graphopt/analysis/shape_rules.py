"""Own inference rules: ops that build shapes, and ops where the package assumes more than is known.

A rule gets the analysis and the node and returns one Result per output, or None to leave the node to the package.
Rules raise ValueError on a malformed node. Control flow is in `shape_control`, element arithmetic in `shape_values`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from graphopt.analysis import dims, shape_values
from graphopt.analysis.shape_attrs import attr_int, attr_ints, attr_tensor, axis_of, optional_input
from graphopt.analysis.shape_control import infer_if, infer_loop, infer_scan
from graphopt.analysis.shape_matmul import infer_matmul
from graphopt.analysis.shape_result import Result
from graphopt.analysis.shape_spatial import infer_pool, infer_resize, infer_unique
from graphopt.ir.constants import const_tensor

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shapes import Shapes

Rule: TypeAlias = "Callable[[Shapes, ir.Node], Sequence[Result] | None]"

_SAME = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish PRelu Reciprocal Relu Round "
    "Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu"
)
_ARITHMETIC = "Add Sub Mul Div Mod Pow BitShift BitwiseAnd BitwiseOr BitwiseXor Max Min Sum Mean"
_PREDICATES = "Equal Less Greater LessOrEqual GreaterOrEqual And Or Xor"


def _same(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x = node.inputs[0]
    return [Result(s.dtype(x), s.dims(x))]


def _neg(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x = node.inputs[0]
    known = s.values(x)
    return [Result(s.dtype(x), s.dims(x), None if known is None else [dims.multiply(e, -1) for e in known])]


def _identity(s: Shapes, node: ir.Node) -> Sequence[Result]:
    from graphopt import ir

    x = node.inputs[0]
    if x is not None and x.type is not None and not isinstance(x.type, ir.TensorType):
        return [Result(type=x.type)]
    return [Result(s.dtype(x), s.dims(x), s.values(x))]


def _constant(s: Shapes, node: ir.Node) -> Sequence[Result] | None:
    tensor = const_tensor(node.outputs[0])
    if tensor is None:
        return None
    return [Result(tensor.dtype, tensor.shape.numpy(), s.constant_values(node.outputs[0]))]


def _elementwise(s: Shapes, node: ir.Node) -> Sequence[Result]:
    from graphopt import ir

    shape = s.broadcast_shapes([s.dims(x) for x in node.inputs])
    dtype = next((x.dtype for x in node.inputs if x is not None and x.dtype is not None), None)
    values = None
    if shape is not None and len(shape) <= 1 and dtype is not None and not dtype.is_floating_point():
        values = shape_values.elementwise(s, node)
    return [Result(ir.DataType.BOOL if node.op_type in _PREDICATE_SET else dtype, shape, values)]


def _not(s: Shapes, node: ir.Node) -> Sequence[Result]:
    from graphopt import ir

    x = node.inputs[0]
    known = s.ints(x) if node.op_type == "Not" else None
    return [Result(ir.DataType.BOOL, s.dims(x), None if known is None else [1 - e for e in known])]


def _where(s: Shapes, node: ir.Node) -> Sequence[Result]:
    condition, x, y = node.inputs
    shape = s.broadcast_shapes([s.dims(value) for value in node.inputs])
    values = None
    if shape is not None and len(shape) <= 1:
        values = shape_values.where(s, s.values(condition), s.values(x), s.values(y))
    return [Result(s.dtype(x) or s.dtype(y), shape, values)]


def _cast(s: Shapes, node: ir.Node) -> Sequence[Result]:
    from graphopt import ir

    x = node.inputs[0]
    if node.op_type == "CastLike":
        dtype = s.dtype(node.inputs[1])
    else:
        dtype = ir.DataType(attr_int(node, "to", 0))
    known = s.values(x)
    values = None if known is None else shape_values.cast(known, dtype)
    return [Result(dtype, s.dims(x), values)]


def _shape(s: Shapes, node: ir.Node) -> Sequence[Result]:
    from graphopt import ir

    size = s.dims(node.inputs[0])
    if size is None:
        return [Result(ir.DataType.INT64, [s.fresh()])]
    part = size[slice(attr_int(node, "start", 0), attr_int(node, "end", len(size)))]
    return [Result(ir.DataType.INT64, [len(part)], part)]


def _size(s: Shapes, node: ir.Node) -> Sequence[Result]:
    from graphopt import ir

    count = s.numel(node.inputs[0])
    return [Result(ir.DataType.INT64, (), None if count is None else [count])]


def _gather(s: Shapes, node: ir.Node) -> Sequence[Result]:
    data, index = node.inputs[0], node.inputs[1]
    size, picked = s.dims(data), s.dims(index)
    if size is None or picked is None:
        return [Result(s.dtype(data))]
    axis = axis_of(attr_int(node, "axis", 0), len(size))
    values = None
    known, at = s.values(data), s.ints(index)
    if known is not None and at is not None and len(size) == 1 and len(picked) <= 1:
        if any(not -len(known) <= i < len(known) for i in at):
            raise ValueError(f"index out of range for {len(known)} elements: {list(at)}")
        values = [known[i] for i in at]
    return [Result(s.dtype(data), (*size[:axis], *picked, *size[axis + 1 :]), values)]


def _concat(s: Shapes, node: ir.Node) -> Sequence[Result]:
    shapes = [s.dims(x) for x in node.inputs]
    dtype = next((x.dtype for x in node.inputs if x is not None and x.dtype is not None), None)
    first = next((shape for shape in shapes if shape is not None), None)
    if first is None:
        return [Result(dtype)]
    rank = len(first)
    axis = axis_of(attr_int(node, "axis", 1), rank)
    if any(shape is not None and len(shape) != rank for shape in shapes):
        raise ValueError("inputs have different ranks")
    out: list[Dim] = []
    for index in range(rank):
        column = [shape[index] for shape in shapes if shape is not None]
        if index != axis:
            out.append(next((dim for dim in column if isinstance(dim, int)), column[0]))
            continue
        total: Dim = 0
        for dim in column:
            total = dims.add(total, dim)
        out.append(total if len(column) == len(shapes) else s.fresh())
    values = None
    if rank == 1 and dtype is not None and dtype.is_integer():
        values = shape_values.concat(s, [(s.values(x), s.static(x)) for x in node.inputs])
    return [Result(dtype, out, values)]


def _axes(s: Shapes, node: ir.Node) -> tuple[tuple[int, ...] | None, bool]:
    """The axes of Squeeze/Unsqueeze/ReduceX from input 1 or the attribute, and whether any were given."""
    given = optional_input(node, 1)
    if given is not None:
        return s.ints(given), True
    axes = attr_ints(node, "axes")
    return axes, axes is not None


def _squeeze(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x = node.inputs[0]
    size, (axes, given) = s.dims(x), _axes(s, node)
    values = s.values(x)
    if size is None or (given and axes is None):
        return [Result(s.dtype(x))]
    if axes is None:
        if any(not isinstance(dim, int) for dim in size):
            return [Result(s.dtype(x))]
        return [Result(s.dtype(x), [dim for dim in size if dim != 1], values)]
    dropped = {axis_of(axis, len(size)) for axis in axes}
    if any(isinstance(size[axis], int) and size[axis] != 1 for axis in dropped):
        raise ValueError(f"an axis of {list(axes)} is not 1 in shape [{', '.join(map(str, size))}]")
    return [Result(s.dtype(x), [dim for index, dim in enumerate(size) if index not in dropped], values)]


def _unsqueeze(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x = node.inputs[0]
    size, (axes, _) = s.dims(x), _axes(s, node)
    if size is None or axes is None:
        return [Result(s.dtype(x))]
    rank = len(size) + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise ValueError(f"axes {list(axes)} repeat")
    rest = iter(size)
    out = [1 if index in new else next(rest) for index in range(rank)]
    return [Result(s.dtype(x), out, s.values(x) if rank <= 1 else None)]


def _reshape(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x, target = node.inputs[0], optional_input(node, 1)
    size = s.dims(x)
    wanted: Sequence[Dim] | None = attr_ints(node, "shape") if target is None else s.values(target)
    if wanted is None:
        rank = s.static(target)
        return [Result(s.dtype(x), [s.fresh() for _ in range(rank[0])] if rank else None)]
    keep_zero = attr_int(node, "allowzero", 0)
    out: list[Dim] = []
    for index, element in enumerate(wanted):
        if element == 0 and not keep_zero:
            if size is not None and index >= len(size):
                raise ValueError(f"0 at position {index} copies a dimension that rank {len(size)} does not have")
            out.append(s.fresh() if size is None else size[index])
        else:
            out.append(element)
    if sum(element == -1 for element in wanted) > 1:
        raise ValueError("more than one dimension is -1")
    # A symbol of which nothing is known may itself stand for -1 or 0 (copy), so it is no dimension.
    sure = all(element == -1 or dims.nonnegative(element) for element in out)
    result = [s.fresh() if element == -1 else s.as_dim(element) for element in out]
    if -1 in out and sure and size is not None:
        others = dims.product(element for element in out if element != -1)
        quotient = dims.floor_divide(dims.product(size), others) if others != 0 else dims.unknown()
        result[out.index(-1)] = s.known(quotient)
    return [Result(s.dtype(x), result, s.values(x) if len(out) <= 1 else None)]


def _expand(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x, target = node.inputs[0], node.inputs[1]
    size, wanted = s.dims(x), s.values(target)
    if wanted is None:
        length = s.static(target)
        if size is None or not length or length[0] > len(size):
            return [Result(s.dtype(x), [s.fresh() for _ in range(length[0])] if size is not None and length else None)]
        wide = len(size) - length[0]
        # Whatever is asked for, a dimension over 1 stays.
        tail = [d if isinstance(d, int) and d > 1 else s.fresh() for d in size[wide:]]
        return [Result(s.dtype(x), [*size[:wide], *tail])]
    shape = s.broadcast_shapes([size, [s.as_dim(element) for element in wanted]])
    known = s.values(x)
    values = None
    if shape is not None and len(shape) <= 1 and known is not None and len(known) == 1:
        count = shape[0] if shape else 1
        values = list(known) * count if isinstance(count, int) and count <= 64 else None
    return [Result(s.dtype(x), shape, values)]


def _constant_of_shape(s: Shapes, node: ir.Node) -> Sequence[Result]:
    from graphopt import ir

    tensor = attr_tensor(node, "value")
    dtype = ir.DataType.FLOAT if tensor is None else tensor.dtype
    wanted = s.values(node.inputs[0])
    if wanted is None:
        rank = s.static(node.inputs[0])
        return [Result(dtype, [s.fresh() for _ in range(rank[0])] if rank else None)]
    shape = [s.as_dim(element) for element in wanted]
    values = None
    if tensor is not None and dtype.is_integer() and len(shape) <= 1:
        count = shape[0] if shape else 1
        if isinstance(count, int) and count <= 64:
            values = [int(tensor.numpy().reshape(-1)[0])] * count
    return [Result(dtype, shape, values)]


def _range(s: Shapes, node: ir.Node) -> Sequence[Result]:
    dtype = s.dtype(node.inputs[0])
    if dtype is None or not dtype.is_integer():
        return [Result(dtype, [s.fresh()])]
    start, limit, delta = (s.values(x) for x in node.inputs)
    if start is None or limit is None or delta is None or not isinstance(delta[0], int) or delta[0] == 0:
        return [Result(dtype, [s.fresh()])]
    count = dims.maximum(0, dims.ceil_divide(dims.subtract(limit[0], start[0]), delta[0]))
    values = None
    if isinstance(count, int) and count <= 64:
        values = [dims.add(start[0], index * delta[0]) for index in range(count)]
    return [Result(dtype, [s.as_dim(count)], values)]


def _slice(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x = node.inputs[0]
    size = s.dims(x)
    if size is None:
        return [Result(s.dtype(x))]
    starts, ends, axes, steps = (_slice_part(s, node, index) for index in range(4))
    count = next((len(part) for part in (starts, ends, axes) if part), None)
    if count is None or axes is None:
        return [Result(s.dtype(x), [s.fresh() for _ in size])]
    places = [axis_of(int(axis), len(size)) for axis in axes or range(count)]  # type: ignore[arg-type]
    strides = [1] * count if steps == () else steps
    if starts is None or ends is None or strides is None:
        return [Result(s.dtype(x), [s.fresh() if index in places else dim for index, dim in enumerate(size)])]
    out = list(size)
    for axis, start, end, step in zip(places, starts, ends, strides, strict=True):
        out[axis] = shape_values.slice_length(s, size[axis], start, end, step)
    values = None
    data = s.values(x)
    if data is not None and len(size) == 1 and count == 1:
        values = shape_values.sliced(data, starts[0], ends[0], strides[0])
    return [Result(s.dtype(x), out, values)]


def _slice_part(s: Shapes, node: ir.Node, index: int) -> Sequence[Dim] | None:
    """Starts, ends, axes or steps by number, from an attribute before opset 10; () when absent, None when unknown."""
    if "starts" in node.attributes:
        return attr_ints(node, ("starts", "ends", "axes", "steps")[index]) or ()
    value = optional_input(node, index + 1)
    if value is None:
        return ()
    return s.values(value) if index < 2 else s.ints(value)


def _split(s: Shapes, node: ir.Node) -> Sequence[Result]:
    x = node.inputs[0]
    size = s.dims(x)
    outputs = len(node.outputs)
    if size is None:
        return [Result(s.dtype(x))] * outputs
    axis = axis_of(attr_int(node, "axis", 0), len(size))
    given = optional_input(node, 1)
    parts: Sequence[Dim] | None = s.values(given) if given is not None else attr_ints(node, "split")
    if given is None and parts is None:
        ragged = "num_outputs" in node.attributes
        parts = shape_values.even_parts(s, size[axis], attr_int(node, "num_outputs", outputs), ragged=ragged)
    results = []
    data: Sequence[Dim] | None = s.values(x) if len(size) == 1 else None
    for index in range(outputs):
        part = s.as_dim(parts[index]) if parts is not None else s.fresh()
        values = None
        if data is not None:
            values, data = (data[:part], data[part:]) if isinstance(part, int) else (None, None)
        results.append(Result(s.dtype(x), (*size[:axis], part, *size[axis + 1 :]), values))
    return results


def _reduce_values(s: Shapes, node: ir.Node) -> Sequence[Result] | None:
    """Sums and products of shape tensors; every other reduction is the package's."""
    known = s.values(node.inputs[0])
    size = s.dims(node.inputs[0])
    if known is None or size is None or len(size) != 1 or attr_int(node, "noop_with_empty_axes", 0):
        return None
    total: Dim = 1 if node.op_type == "ReduceProd" else 0
    for element in known:
        total = dims.multiply(total, element) if node.op_type == "ReduceProd" else dims.add(total, element)
    return [Result(s.dtype(node.inputs[0]), [1] if attr_int(node, "keepdims", 1) else (), [total])]


def _mel_weights(s: Shapes, node: ir.Node) -> Sequence[Result]:
    """One row per frequency of the transform, one column per band; the package has other sizes."""
    from graphopt import ir

    bands, length = (s.values(value) for value in node.inputs[:2])
    rows = dims.add(dims.floor_divide(length[0], 2), 1) if length is not None else dims.unknown()
    columns = bands[0] if bands is not None else dims.unknown()
    size = [s.fresh() if dims.is_unknown(dim) else s.as_dim(dim) for dim in (rows, columns)]
    return [Result(ir.DataType(attr_int(node, "output_datatype", ir.DataType.FLOAT.value)), size)]


_PREDICATE_SET = frozenset(_PREDICATES.split())

RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys((*_ARITHMETIC.split(), *_PREDICATES.split()), _elementwise),
    **dict.fromkeys(("Not", "IsNaN", "IsInf"), _not),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(("Resize", "Upsample"), infer_resize),
    **dict.fromkeys(("ReduceSum", "ReduceProd"), _reduce_values),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), infer_pool),
    "Unique": infer_unique,
    "MelWeightMatrix": _mel_weights,
    "MatMul": infer_matmul,
    "Neg": _neg,
    "Identity": _identity,
    "Constant": _constant,
    "Where": _where,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Slice": _slice,
    "Split": _split,
    "If": infer_if,
    "Loop": infer_loop,
    "Scan": infer_scan,
}
