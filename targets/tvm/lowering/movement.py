"""Rules of ops that only move data: shapes come from the shape analysis, never from a computation at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.analysis import dims as dim_math
from graphopt.targets.tvm.lowering.table import ALL, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze", dtypes=ALL)
def reshape(c: Lowering, n: View) -> Expr:
    return c.reshape(c.input(n, 0), c.out_shape(n))


@lowers("Transpose", dtypes=ALL)
def transpose(c: Lowering, n: View) -> Expr:
    return c.op.permute_dims(c.input(n, 0), list(n.attr("perm", tuple(reversed(range(n.rank(0)))))))


@lowers("Expand", dtypes=ALL)
def expand(c: Lowering, n: View) -> Expr:
    own, out = n.dims(0) or (), n.out_dims() or ()
    first = len(out) - len(own)
    if all(dim in (1, out[first + axis]) for axis, dim in enumerate(own)):
        return c.op.broadcast_to(c.input(n, 0), c.relax.ShapeExpr(c.out_shape(n)))

    def compute(x: Any, shape: Any) -> Any:
        """Which dims are 1 is known at run time only."""

        def at(*i: Any) -> Any:
            own = zip(i[first:], x.shape, strict=True)
            return x(*(c.tirx.Select(dim == 1, c.tirx.const(0, "int64"), index) for index, dim in own))

        return c.te_lang.compute(tuple(shape), at, name="expand")

    return c.te(compute, c.input(n, 0), name="expand", shape=c.out_shape(n))


@lowers("Concat", dtypes=ALL)
def concat(c: Lowering, n: View) -> Expr:
    parts = c.operands(n, *range(len(n.node.inputs)), free=n.axis(0))
    return parts[0] if len(parts) == 1 else c.op.concat(parts, axis=n.axis(0))


@lowers("Split", dtypes=ALL)
def split(c: Lowering, n: View) -> list[Expr]:
    axis, x, start = n.axis(0), c.input(n, 0), c.tirx.IntImm("int64", 0)
    parts = []
    for index in range(len(n.node.outputs)):
        shape = c.out_shape(n, index)
        parts.append(_window(c, x, shape, {axis: start}, {}))
        start = start + shape[axis]
    return parts


def _window(c: Lowering, x: Expr, shape: list[Any], begins: dict[int, Any], steps: dict[int, int]) -> Expr:
    """out[..., i, ...] = x[..., begin + i * step, ...]."""

    def compute(a: Any, *rest: Any) -> Any:
        *starts, shape = rest
        first = dict(zip(begins, starts, strict=True))

        def at(*i: Any) -> Any:
            return a(*[first[d] + j * steps.get(d, 1) if d in first else j for d, j in enumerate(i)])

        return c.te_lang.compute(shape, at, name="strided_slice")

    return c.te(compute, x, *begins.values(), name="strided_slice", shape=shape)


def _slice_check(n: View) -> str | None:
    if slice_terms(n) is None:
        return "Slice from positions that are known only at run time has no lowering to TVM"
    return None


def slice_terms(n: View) -> list[tuple[int, Any, int]] | None:
    """(axis, start, step) of a Slice; starts may be symbolic, and negative ones are left as they are."""
    if n.version < 10:
        starts, axes = n.attr("starts"), n.attr("axes", tuple(range(len(n.attr("starts")))))
        steps: Any = (1,) * len(starts)
    else:
        starts = n.elements(1)
        axes = n.ints(3, "") if n.has(3) else tuple(range(len(starts or ())))
        steps = n.ints(4, "") if n.has(4) else (1,) * len(starts or ())
    if starts is None or axes is None or steps is None:
        return None
    if any(not isinstance(start, int) and not dim_math.nonnegative(start) for start in starts):
        return None
    rank = n.rank(0)
    return [(a + rank if a < 0 else a, start, step) for a, start, step in zip(axes, starts, steps, strict=True)]


@lowers("Slice", dtypes=ALL, check=_slice_check)
def slice_(c: Lowering, n: View) -> Expr:
    terms, shape, tirx = slice_terms(n), c.shape(n.value(0)), c.tirx
    assert terms is not None
    begins, steps = {}, {}
    for axis, start, step in terms:
        size = shape[axis]
        begin = c.dim(start)
        if isinstance(start, int) and start < 0:
            begin = tirx.max(size + begin, tirx.IntImm("int64", 0))
        last = size if step > 0 else size - 1
        begins[axis], steps[axis] = tirx.min(begin, last), step
    return _window(c, c.input(n, 0), c.out_shape(n), begins, steps)


@lowers("Tile", dtypes=ALL)
def tile(c: Lowering, n: View) -> Expr:
    def compute(a: Any, out: Any) -> Any:
        return c.te_lang.compute(
            out, lambda *i: a(*[c.tirx.floormod(j, a.shape[d]) for d, j in enumerate(i)]), name="tile"
        )

    return c.te(compute, c.input(n, 0), name="tile", shape=c.out_shape(n))


def _pad_check(n: View) -> str | None:
    if pads_of(n) is None:
        return "Pad by amounts that are known only at run time has no lowering to TVM"
    mode = n.attr("mode", "constant")
    return None if mode in ("constant", "reflect", "edge", "wrap") else f"Pad with mode {mode!r} has no lowering to TVM"


def pads_of(n: View) -> tuple[list[Any], list[Any]] | None:
    """Begins and ends of a Pad, for all axes; None when they are not known."""
    given = tuple(n.attr("pads")) if "pads" in n.node.attributes else n.elements(1)
    if given is None:
        return None
    rank = n.rank(0)
    axes = n.ints(3, "") if n.has(3) else tuple(range(rank))
    if axes is None or any(not isinstance(p, int) and not dim_math.nonnegative(p) for p in given):
        return None
    begins: list[Any] = [0] * rank
    ends: list[Any] = [0] * rank
    for index, axis in enumerate(axes):
        begins[axis], ends[axis] = given[index], given[index + len(axes)]
    return begins, ends


@lowers("Pad", dtypes=ALL, check=_pad_check)
def pad(c: Lowering, n: View) -> Expr:
    pads, mode, tirx = pads_of(n), n.attr("mode", "constant"), c.tirx
    assert pads is not None
    begins = [c.dim(item) for item in pads[0]]
    dtype = n.dtype(0)
    fill = c.input(n, 2) if n.has(2) else c.const(n.attr("value", 0), dtype)
    fill = c.emit(c.reshape(fill, []))
    touched = [d for d in range(n.rank(0)) if pads[0][d] != 0 or pads[1][d] != 0]

    def compute(a: Any, value: Any, *rest: Any) -> Any:
        *before, out = rest

        def inner(d: int, j: Any) -> Any:
            at, size = j - before[d], a.shape[d]
            if mode == "edge":
                return tirx.max(tirx.min(at, size - 1), tirx.IntImm("int64", 0))
            if mode == "wrap":
                return tirx.floormod(at, size)
            at = tirx.Select(at < 0, -at, at)  # reflect, for pads below the size
            return tirx.Select(at >= size, 2 * (size - 1) - at, at)

        def at(*i: Any) -> Any:
            if mode != "constant":
                return a(*[inner(d, j) if d in touched else j for d, j in enumerate(i)])
            places = [j - before[d] if d in touched else j for d, j in enumerate(i)]
            inside = [tirx.all(places[d] >= 0, places[d] < a.shape[d]) for d in touched]
            return tirx.if_then_else(tirx.all(*inside), a(*places), value()) if inside else a(*places)

        return c.te_lang.compute(out, at, name="pad")

    return c.te(compute, c.input(n, 0), fill, *begins, name="pad", shape=c.out_shape(n))


def _blocks_check(n: View) -> str | None:
    plain = n.op == "DepthToSpace" or n.attr("mode", "DCR") == "DCR"
    return None if plain else f"SpaceToDepth with mode {n.attr('mode')} has no lowering to TVM"


@lowers("DepthToSpace", "SpaceToDepth", dtypes=ALL, check=_blocks_check)
def blocks(c: Lowering, n: View) -> Expr:
    """Channels to and from blocks of pixels, as transposes."""
    b, (batch, channels, height, width) = int(n.attr("blocksize")), c.shape(n.value(0))
    div, x = c.tirx.floordiv, c.input(n, 0)
    if n.op == "SpaceToDepth":
        split_, perm = [batch, channels, div(height, b), b, div(width, b), b], [0, 3, 5, 1, 2, 4]
    elif n.attr("mode", "DCR") == "DCR":
        split_, perm = [batch, b, b, div(channels, b * b), height, width], [0, 3, 4, 1, 5, 2]
    else:
        split_, perm = [batch, div(channels, b * b), b, b, height, width], [0, 1, 4, 2, 5, 3]
    return c.reshape(c.emit(c.op.permute_dims(c.emit(c.reshape(x, split_)), perm)), c.out_shape(n))


@lowers("Trilu", dtypes=ALL, check=lambda n: None if not n.has(1) or n.ints(1, "") is not None else
        "Trilu of a diagonal known only at run time has no lowering to TVM")  # fmt: skip
def trilu(c: Lowering, n: View) -> Expr:
    k = (n.ints(1, "") or (0,))[0] if n.has(1) else 0
    upper, tirx = bool(n.attr("upper", 1)), c.tirx

    def compute(a: Any) -> Any:
        def at(*i: Any) -> Any:
            kept = i[-1] - i[-2] >= k if upper else i[-1] - i[-2] <= k
            return tirx.if_then_else(kept, a(*i), tirx.const(0, a.dtype))

        return c.te_lang.compute(a.shape, at, name="trilu")

    return c.te(compute, c.input(n, 0), name="trilu")


# ---- values out of shapes ------------------------------------------------------------------------------------------


@lowers("Shape", "Size", dtypes=ALL | {"string"})
def shape(c: Lowering, n: View) -> Expr:
    dims = list(n.dims(0) or ())
    if n.op == "Size":
        return vector_of(c, [dim_math.product(dims)], scalar=True)
    start, end = n.attr("start", 0), n.attr("end", len(dims))
    return vector_of(c, dims[start:end], scalar=False)


def vector_of(c: Lowering, elements: list[Any], scalar: bool) -> Expr:
    """An int64 tensor of numbers and symbolic sizes."""
    import numpy as np

    if all(isinstance(item, int) for item in elements):
        return c.const(np.array(elements[0] if scalar else elements, np.int64))
    tirx = c.tirx
    exprs = [c.dim(item) for item in elements]

    def compute(*sizes: Any) -> Any:
        def at(*i: Any) -> Any:
            out = sizes[-1]
            for index in reversed(range(len(sizes) - 1)):
                out = tirx.Select(i[0] == index, sizes[index], out)
            return out

        return c.te_lang.compute([] if scalar else [tirx.IntImm("int64", len(sizes))], at, name="shape_values")

    return c.te(compute, *exprs, name="shape_values", alone=True)


@lowers("ConstantOfShape", dtypes=frozenset({"int64"}))
def constant_of_shape(c: Lowering, n: View) -> Expr:
    value = n.attr("value")
    fill = value.numpy().reshape(()) if value is not None else 0.0
    return c.op.full(c.relax.ShapeExpr(c.out_shape(n)), c.const(fill, n.out_dtype()), n.out_dtype())


@lowers("Range", dtypes=frozenset({"float32", "float64", "int16", "int32", "int64"}))
def range_(c: Lowering, n: View) -> Expr:
    dtype = n.dtype(0)
    start, delta = (c.emit(c.reshape(c.input(n, index), [])) for index in (0, 2))

    def compute(a: Any, d: Any, out: Any) -> Any:
        return c.te_lang.compute(out, lambda i: a() + i.astype(dtype) * d(), name="range")

    return c.te(compute, start, delta, name="range", shape=c.out_shape(n))


@lowers("EyeLike", dtypes=ALL)
def eye_like(c: Lowering, n: View) -> Expr:
    k, tirx, dtype = int(n.attr("k", 0)), c.tirx, n.out_dtype()

    def at(i: Any, j: Any) -> Any:
        return tirx.Select(j - i == k, tirx.const(1, dtype), tirx.const(0, dtype))

    return c.te(lambda out: c.te_lang.compute(out, at, name="eye"), name="eye", shape=c.out_shape(n))
