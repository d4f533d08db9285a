"""Rules of pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.linear import pads_of
from graphopt.targets.tvm.lowering.reduction import extreme
from graphopt.targets.tvm.lowering.table import FLOATS, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any


def _check(n: View) -> str | None:
    dims = n.dims(0)
    if dims is None or len(dims) not in (3, 4, 5):
        return f"{n.op} of rank {len(dims or ())} has no lowering to TVM; it has rules for 1 to 3 spatial dims"
    if n.wants(1):
        return f"{n.op} with the indices as second output has no lowering to TVM"
    if n.attr("auto_pad", "NOTSET").startswith("SAME") and not all(isinstance(dim, int) for dim in dims[2:]):
        return f"{n.op} with auto_pad on dynamic sizes has no lowering to TVM; bind them with --dim or --input-shapes"
    return None


@lowers("MaxPool", "AveragePool", dtypes=FLOATS, check=_check)
def pool(c: Lowering, n: View) -> Expr:
    kernel, dims = tuple(n.attr("kernel_shape")), n.dims(0)
    assert dims is not None
    count = len(kernel)
    pads = pads_of(n, kernel, dims[2:])
    strides, dilations = n.attr("strides", (1,) * count), n.attr("dilations", (1,) * count)
    if n.attr("ceil_mode", 0):
        return _pool_by_definition(c, n, kernel, strides, dilations, pads)
    kind = "max" if n.op == "MaxPool" else "avg"
    x = c.input(n, 0)
    if count == 1:
        x = c.emit(c.op.expand_dims(c.emit(x), [2]))
        kernel, pads, strides, dilations = (1, *kernel), (0, pads[0], 0, pads[1]), (1, *strides), (1, *dilations)
    run = getattr(c.op.nn, f"{kind}_pool{max(count, 2)}d")
    out = run(x, kernel, strides, pads, dilations, False, bool(n.attr("count_include_pad", 0)))
    return c.reshape(c.emit(out), c.out_shape(n)) if count == 1 else out


def _pool_by_definition(
    c: Lowering, n: View, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...],
) -> Expr:  # fmt: skip
    """ceil_mode: windows may reach over the padded end; what lies behind it counts for nothing."""
    count, dtype = len(kernel), n.dtype(0)
    te, tirx, average = c.te_lang, c.tirx, n.op == "AveragePool"
    counts_padding = bool(n.attr("count_include_pad", 0))

    def compute(x: Any, out_shape: Any) -> Any:
        def at(*i: Any) -> tuple[list[Any], Any, Any]:
            places = [i[2 + a] * strides[a] + taps[a] * dilations[a] - pads[a] for a in range(count)]
            inside = tirx.all(*[tirx.all(p >= 0, p < x.shape[2 + a]) for a, p in enumerate(places)])
            padded = tirx.all(*[p < x.shape[2 + a] + pads[count + a] for a, p in enumerate(places)])
            return places, inside, padded

        taps = [te.reduce_axis((0, k), name=f"k{a}") for a, k in enumerate(kernel)]
        if not average:
            lowest = tirx.min_value(dtype)

            def largest(*i: Any) -> Any:
                places, inside, _ = at(*i)
                return te.max(tirx.if_then_else(inside, x(*i[:2], *places), lowest), axis=taps)

            return te.compute(out_shape, largest, name="max_pool")

        def summed(*i: Any) -> Any:
            places, inside, _ = at(*i)
            return te.sum(tirx.if_then_else(inside, x(*i[:2], *places), tirx.const(0, dtype)), axis=taps)

        sums = te.compute(out_shape, summed, name="pool_sum")
        taps = [te.reduce_axis((0, k), name=f"n{a}") for a, k in enumerate(kernel)]

        def counted(*i: Any) -> Any:
            _, inside, padded = at(0, 0, *i)
            there = padded if counts_padding else inside
            return te.sum(tirx.Select(there, tirx.const(1, dtype), tirx.const(0, dtype)), axis=taps)

        sizes = te.compute(out_shape[2:], counted, name="pool_count")
        return te.compute(out_shape, lambda *i: sums(*i) / sizes(*i[2:]), name="avg_pool")

    return c.te(compute, c.input(n, 0), name=n.op.lower(), shape=c.out_shape(n))


@lowers("GlobalAveragePool", "GlobalMaxPool", dtypes=FLOATS)
def global_pool(c: Lowering, n: View) -> Expr:
    axes, dtype = list(range(2, n.rank(0))), n.dtype(0)
    if n.op == "GlobalMaxPool":
        return extreme(c, n, axes, True, True)
    return c.cast(c.op.mean(c.widened(c.input(n, 0), dtype), axis=axes, keepdims=True), dtype)


@lowers("LRN", dtypes=FLOATS)
def lrn(c: Lowering, n: View) -> Expr:
    """x / (bias + alpha / size * sum of squares over `size` channels) ** beta."""
    te, tirx, dtype, size = c.te_lang, c.tirx, n.dtype(0), int(n.attr("size"))
    before = (size - 1) // 2

    def compute(x: Any) -> Any:
        tap = te.reduce_axis((0, size), name="k")

        def squares(*i: Any) -> Any:
            at = i[1] + tap - before
            value = tirx.if_then_else(tirx.all(at >= 0, at < x.shape[1]), x(i[0], at, *i[2:]), tirx.const(0, dtype))
            return te.sum(value * value, axis=tap)

        return te.compute(x.shape, squares, name="square_sum")

    x = c.input(n, 0)
    sums = c.te(compute, x, name="lrn")
    scaled = c.op.multiply(sums, c.const(float(n.attr("alpha", 1e-4)) / size, dtype))
    base = c.op.add(scaled, c.const(float(n.attr("bias", 1.0)), dtype))
    return c.op.divide(x, c.op.power(base, c.const(float(n.attr("beta", 0.75)), dtype)))
