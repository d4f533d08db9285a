"""Ops that numpy computes bit for bit as the standard says: data movement, integer arithmetic, IEEE basics.

Everything else (exp, pow, reductions of floats, ...) is left to the runtime: its rounding is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graphopt.passes.simplify._numpy_call import Call, NotExact, require

if TYPE_CHECKING:
    import numpy as np

    from graphopt.passes.simplify._numpy_call import Arrays

_NATIVE = "biuf"


def evaluate(op_type: str, inputs: Arrays, attributes: Mapping[str, Any], outputs: int, opset: int) -> list[np.ndarray]:
    """The outputs of one node of the standard domain.

    Args:
        op_type: Name of the op.
        inputs: Operands; None for an absent one.
        attributes: Attribute values by name (tensors as arrays).
        outputs: Number of outputs of the node.
        opset: Version of the standard domain.

    Raises:
        NotExact: not in the table, or not for these types, values or opset.
    """
    import numpy as np

    rule = _RULES.get(op_type)
    if rule is None or any(a is not None and a.dtype.kind not in _NATIVE for a in inputs):
        raise NotExact(op_type)
    call = Call(inputs, attributes, outputs, opset)
    try:
        with np.errstate(all="ignore"):
            made = rule(call)
    except (ValueError, IndexError, TypeError, AttributeError, KeyError, OverflowError, MemoryError) as error:
        raise NotExact(f"{op_type}: {error}") from None
    arrays = list(made) if isinstance(made, list | tuple) else [made]
    return [np.asarray(array, order="C") for array in arrays]


def is_known(op_type: str) -> bool:
    """Whether the table has the op at all."""
    return op_type in _RULES


def _binary(name: str, kinds: str) -> Callable[[Call], Any]:
    def rule(c: Call) -> Any:
        import numpy as np

        a, b = c[0], c[1]
        require(a.dtype == b.dtype and a.dtype.kind in kinds, "types")
        require(a.dtype.kind != "f" or a.dtype.itemsize >= 4, "half precision is rounded by the runtime's own rules")
        return getattr(np, name)(a, b)

    return rule


def _unary(name: str, kinds: str) -> Callable[[Call], Any]:
    def rule(c: Call) -> Any:
        import numpy as np

        require(c[0].dtype.kind in kinds, "types")
        return getattr(np, name)(c[0])

    return rule


def _divide(c: Call) -> Any:
    import numpy as np

    a, b = c[0], c[1]
    require(a.dtype == b.dtype, "types")
    if a.dtype.kind == "f":
        require(a.dtype.itemsize >= 4, "half precision is rounded by the runtime's own rules")
        return np.divide(a, b)
    require(a.dtype.kind in "iu" and (b != 0).all(), "division by zero")
    if a.dtype.kind == "u":
        return a // b
    require((a != np.iinfo(a.dtype).min).all(), "overflow")
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def _mod(c: Call) -> Any:
    import numpy as np

    a, b = c[0], c[1]
    require(a.dtype == b.dtype and a.dtype.kind in "iu" and (b != 0).all(), "types or division by zero")
    return np.fmod(a, b) if c.attr("fmod", 0) else np.mod(a, b)


def _extreme(name: str) -> Callable[[Call], Any]:
    def rule(c: Call) -> Any:
        import functools

        import numpy as np

        operands = [c[i] for i in range(len(c.inputs))]
        require(all(a.dtype == operands[0].dtype and a.dtype.kind in "iu" for a in operands), "types")
        return functools.reduce(getattr(np, name), operands)

    return rule


def _cast(c: Call) -> Any:
    import numpy as np

    from graphopt import ir

    to = ir.DataType(c.attr("to"))
    require(to.name in _CASTS, "target type")
    x, dtype = c[0], np.dtype(to.numpy())
    if x.dtype == dtype:
        return x.copy()
    if x.dtype.kind == "f" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # float(max) may round up to a number that does not fit.
        require(
            np.isfinite(x).all() and (np.trunc(x) >= limits.min).all() and (np.trunc(x) < float(limits.max)).all(),
            "out of range",
        )
    made = x.astype(dtype)
    if dtype == np.float16:
        # Where a kernel works in single precision, the runtime skips this rounding: only what needs none is sure.
        require(np.array_equal(made.astype(x.dtype), x, equal_nan=x.dtype.kind == "f"), "it rounds")
    return made


_CASTS = frozenset(
    {"FLOAT", "DOUBLE", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"}
)


def _slice(c: Call) -> Any:
    x = c[0]
    starts, ends = c.ints(1, "starts"), c.ints(2, "ends")
    require(starts is not None and ends is not None, "bounds")
    assert starts is not None and ends is not None
    axes = c.ints(3, "axes")
    axes = list(range(len(starts))) if axes is None else axes
    steps = c.ints(4) or [1] * len(starts)
    index: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        require(step != 0, "step")
        dim = x.shape[axis]
        if step < 0:
            first = min(max(start + dim if start < 0 else start, 0), dim - 1)
            last = min(max(end + dim if end < 0 else end, -1), dim - 1)
            index[axis] = slice(first, None if last < 0 else last, step) if dim else slice(0, 0)
        else:
            index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _axes(c: Call, position: int = 1) -> list[int] | None:
    return c.ints(position, "axes")


def _unsqueeze(c: Call) -> Any:
    x, axes = c[0], _axes(c)
    require(axes is not None, "axes")
    assert axes is not None
    rank = x.ndim + len(axes)
    places = {axis % rank for axis in axes}
    require(len(places) == len(axes), "axes repeat")
    dims = iter(x.shape)
    return x.reshape([1 if place in places else next(dims) for place in range(rank)])


def _squeeze(c: Call) -> Any:
    import numpy as np

    axes = _axes(c)
    return np.squeeze(c[0], None if axes is None else tuple(axes))


def _reshape(c: Call) -> Any:
    x, target = c[0], c.ints(1, "shape")
    assert target is not None
    if not c.attr("allowzero", 0):
        target = [x.shape[i] if dim == 0 else dim for i, dim in enumerate(target)]
    require(x.size or -1 not in target, "-1 in an empty tensor")
    return x.reshape(target)


def _flatten(c: Call) -> Any:
    import math

    x, axis = c[0], c.attr("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _gather(c: Call) -> Any:
    import numpy as np

    x, axis, index = c[0], c.attr("axis", 0), c[1]
    dim = x.shape[axis]
    require(((index >= -dim) & (index < dim)).all(), "index out of range")
    return np.take(x, index.astype(np.int64), axis=axis)


def _gather_elements(c: Call) -> Any:
    import numpy as np

    x, axis, index = c[0], c.attr("axis", 0), c[1].astype(np.int64)
    dim = x.shape[axis]
    require(((index >= -dim) & (index < dim)).all(), "index out of range")
    where: list[Any] = list(np.indices(index.shape, sparse=True))
    where[axis % x.ndim] = index
    return x[tuple(where)]


def _expand(c: Call) -> Any:
    import numpy as np

    target = c.ints(1)
    assert target is not None
    return np.broadcast_to(c[0], np.broadcast_shapes(c[0].shape, tuple(target))).copy()


def _where(c: Call) -> Any:
    import numpy as np

    require(c[1].dtype == c[2].dtype and c[0].dtype == bool, "types")
    return np.where(c[0], c[1], c[2])


def _shape(c: Call) -> Any:
    import numpy as np

    return np.array(c[0].shape[c.attr("start", 0) : c.attr("end", c[0].ndim)], dtype=np.int64)


def _size(c: Call) -> Any:
    import numpy as np

    return np.array(c[0].size, dtype=np.int64)


def _range(c: Call) -> Any:
    import numpy as np

    start, limit, delta = c[0], c[1], c[2]
    require(start.dtype.kind == "i" and start.dtype == limit.dtype == delta.dtype and delta != 0, "types")
    return np.arange(int(start), int(limit), int(delta), dtype=start.dtype)


def _constant_of_shape(c: Call) -> Any:
    import numpy as np

    shape, value = c.ints(0), c.attr("value")
    require(shape is not None and all(dim >= 0 for dim in shape), "shape")
    assert shape is not None
    require(value is None or value.dtype.kind in _NATIVE, "type")
    return np.zeros(shape, np.float32) if value is None else np.full(shape, value.reshape(-1)[0], value.dtype)


def _split(c: Call) -> Any:
    x, axis, sizes = c[0], c.attr("axis", 0), c.ints(1, "split")
    if sizes is None:
        count = c.attr("num_outputs", c.outputs)
        require(x.shape[axis] % count == 0, "uneven")
        sizes = [x.shape[axis] // count] * count
    require(sum(sizes) == x.shape[axis] and len(sizes) == c.outputs, "sizes")
    parts, at = [], 0
    for size in sizes:
        index = [slice(None)] * x.ndim
        index[axis] = slice(at, at + size)
        parts.append(x[tuple(index)])
        at += size
    return parts


def _pad(c: Call) -> Any:
    import numpy as np

    x, pads = c[0], c.ints(1, "pads")
    require(c.attr("mode", "constant") == "constant" and c.get(3) is None and pads is not None, "mode")
    assert pads is not None
    require(len(pads) == 2 * x.ndim and min(pads, default=0) >= 0, "negative pads")
    given = c.get(2)
    fill = given.reshape(-1)[0] if given is not None else c.attr("value", 0)
    return np.pad(x, list(zip(pads[: x.ndim], pads[x.ndim :], strict=True)), constant_values=fill).astype(x.dtype)


def _reduce(name: str) -> Callable[[Call], Any]:
    def rule(c: Call) -> Any:
        import numpy as np

        x, axes = c[0], _axes(c)
        require(x.dtype.kind == "i" and x.dtype.itemsize >= 4 and x.size, "types")
        if not axes:
            require(not c.attr("noop_with_empty_axes", 0), "no axes")
            axes = list(range(x.ndim))
        out = getattr(np, name)(x, axis=tuple(axes), keepdims=bool(c.attr("keepdims", 1)))
        return out.astype(x.dtype)

    return rule


def _scatter_nd(c: Call) -> Any:
    import numpy as np

    require(c.attr("reduction", "none") == "none" and c[0].dtype == c[2].dtype, "reduction")
    out, index = c[0].copy(), c[1].astype(np.int64)
    rows = index.reshape(-1, index.shape[-1])
    dims = np.array(out.shape[: index.shape[-1]])
    require(((rows >= -dims) & (rows < dims)).all(), "index out of range")
    require(len(np.unique(np.where(rows < 0, rows + dims, rows), axis=0)) == len(rows), "places repeat")
    out[tuple(np.moveaxis(index, -1, 0))] = c[2]
    return out


def _trilu(c: Call) -> Any:
    import numpy as np

    k = int(c[1].reshape(-1)[0]) if c.get(1) is not None else 0
    return np.triu(c[0], k) if c.attr("upper", 1) else np.tril(c[0], k)


def _cumsum(c: Call) -> Any:
    import numpy as np

    require(c[0].dtype.kind == "i" and not c.attr("exclusive", 0) and not c.attr("reverse", 0), "types")
    return np.cumsum(c[0], axis=int(c[1].reshape(-1)[0]), dtype=c[0].dtype)


def _concat(c: Call) -> Any:
    import numpy as np

    return np.concatenate([c[i] for i in range(len(c.inputs))], axis=c.attr("axis"))


def _transpose(c: Call) -> Any:
    import numpy as np

    return np.transpose(c[0], c.attr("perm"))


def _tile(c: Call) -> Any:
    import numpy as np

    repeats = c.ints(1)
    assert repeats is not None
    require(len(repeats) == c[0].ndim, "repeats")
    return np.tile(c[0], repeats)


def _nonzero(c: Call) -> Any:
    import numpy as np

    require(c[0].ndim > 0, "scalar")
    return np.stack(np.nonzero(c[0])).astype(np.int64)


_RULES: dict[str, Callable[[Call], Any]] = {
    **{op: _binary(name, "iuf") for op, name in (("Add", "add"), ("Sub", "subtract"), ("Mul", "multiply"))},
    **{op: _binary(name, "b") for op, name in (("And", "logical_and"), ("Or", "logical_or"), ("Xor", "logical_xor"))},
    **{op: _binary(name, "iuf") for op, name in (("Less", "less"), ("Greater", "greater"))},
    **{op: _binary(name, "iuf") for op, name in (("LessOrEqual", "less_equal"), ("GreaterOrEqual", "greater_equal"))},
    **{op: _unary(name, "if") for op, name in (("Neg", "negative"), ("Abs", "abs"))},
    **{op: _unary(name, "f") for op, name in (("Floor", "floor"), ("Ceil", "ceil"))},
    **{op: _extreme(name) for op, name in (("Max", "maximum"), ("Min", "minimum"))},
    **{
        op: _reduce(name)
        for op, name in (("ReduceProd", "prod"), ("ReduceSum", "sum"), ("ReduceMax", "max"), ("ReduceMin", "min"))
    },
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "Div": _divide,
    "Equal": _binary("equal", "biuf"),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Identity": lambda c: c[0].copy(),
    "Mod": _mod,
    "NonZero": _nonzero,
    "Not": _unary("logical_not", "b"),
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
