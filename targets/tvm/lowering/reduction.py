"""Rules of reductions, softmax, arg-max and running sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.table import FLOATS, NUMBERS, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

_PLAIN = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod"}
_DERIVED = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")


def _axes_check(n: View) -> str | None:
    if n.has(1) and n.ints(1, "axes") is None:
        return f"{n.op} over axes that are known only at run time has no lowering to TVM"
    return None


def axes_of(n: View) -> list[int] | None:
    """The reduced axes from the front; None when nothing is to be reduced."""
    given = n.ints(1, "axes") if n.has(1) or "axes" in n.node.attributes else None
    if not given:
        return None if n.attr("noop_with_empty_axes", 0) else list(range(n.rank(0)))
    return sorted({axis % n.rank(0) for axis in given})  # some models name an axis twice


@lowers(*_PLAIN, dtypes=NUMBERS, check=_axes_check)
def reduce(c: Lowering, n: View) -> Expr:
    axes, x, dtype, keep = axes_of(n), c.input(n, 0), n.dtype(0), bool(n.attr("keepdims", 1))
    if not axes:
        return x
    if n.op in ("ReduceMax", "ReduceMin") and dtype in FLOATS:
        return extreme(c, n, axes, keep, n.op == "ReduceMax")
    out = getattr(c.op, _PLAIN[n.op])(c.widened(x, dtype), axis=axes, keepdims=keep)
    return c.cast(out, dtype)


def extreme(c: Lowering, n: View, axes: list[int], keep: bool, largest: bool) -> Expr:
    """Largest or smallest over axes; infinities count, where TVM's own begins with the largest float."""
    te, tirx, dtype = c.te_lang, c.tirx, n.dtype(0)
    limit = tirx.const(float("-inf") if largest else float("inf"), dtype)

    def better(a: Any, b: Any) -> Any:
        return tirx.max(a, b) if largest else tirx.min(a, b)

    pick = te.comm_reducer(better, lambda t: limit, name="max" if largest else "min")

    def compute(x: Any) -> Any:
        taps = {axis: te.reduce_axis((0, x.shape[axis]), name=f"k{axis}") for axis in axes}

        def at(*i: Any) -> Any:
            rest = iter(i)
            return pick(x(*[taps[d] if d in taps else next(rest) for d in range(len(x.shape))]), axis=[*taps.values()])

        return te.compute([dim for d, dim in enumerate(x.shape) if d not in taps], at, name="extreme")

    out = c.te(compute, c.input(n, 0), name="max" if largest else "min")
    return c.op.expand_dims(out, axes) if keep else out


@lowers(*_DERIVED, dtypes=FLOATS, check=_axes_check)
def reduce_derived(c: Lowering, n: View) -> Expr:
    axes, x, keep = axes_of(n) or [], c.input(n, 0), bool(n.attr("keepdims", 1))

    def total(value: Expr) -> Expr:
        return c.op.sum(value, axis=axes, keepdims=keep) if axes else value

    if n.op == "ReduceL1":
        return total(c.op.abs(x))
    if n.op == "ReduceSumSquare":
        return total(c.op.multiply(x, x))
    if n.op == "ReduceL2":
        return c.op.sqrt(total(c.op.multiply(x, x)))
    if n.op == "ReduceLogSum":
        return c.op.log(total(x))
    if not axes:
        return x
    largest = c.emit(c.op.max(x, axis=axes, keepdims=True))
    sums = c.op.log(c.op.sum(c.op.exp(c.op.subtract(x, largest)), axis=axes, keepdims=keep))
    return c.op.add(sums, largest if keep else c.op.squeeze(largest, axes))


@lowers("Softmax", "LogSoftmax", dtypes=FLOATS)
def softmax(c: Lowering, n: View) -> Expr:
    run = c.op.nn.softmax if n.op == "Softmax" else c.op.nn.log_softmax
    x = c.input(n, 0)
    if n.version >= 13:
        return run(x, axis=n.axis(-1))
    # Before opset 13 all axes from `axis` on are one.
    shape, axis = c.shape(n.value(0)), n.axis(1)
    rows, columns = c.tirx.IntImm("int64", 1), c.tirx.IntImm("int64", 1)
    for index, size in enumerate(shape):
        rows, columns = (rows * size, columns) if index < axis else (rows, columns * size)
    return c.reshape(c.emit(run(c.emit(c.reshape(x, [rows, columns])), axis=1)), shape)


@lowers("ArgMax", "ArgMin", dtypes=NUMBERS)
def arg_extreme(c: Lowering, n: View) -> Expr:
    """The first index of the extreme, or the last one with select_last_index."""
    te, tirx, axis = c.te_lang, c.tirx, n.axis(0)
    keep, last, largest = bool(n.attr("keepdims", 1)), bool(n.attr("select_last_index", 0)), n.op == "ArgMax"

    def better(a: Any, b: Any) -> Any:
        first = tirx.Select(a[0] >= 0, a[0], b[0])  # -1 is the identity: no element yet
        wins = tirx.any(a[1] > b[1] if largest else a[1] < b[1], b[0] < 0)
        level = tirx.all(a[1] == b[1], a[0] > b[0] if last else a[0] < b[0], a[0] >= 0)
        takes = tirx.all(a[0] >= 0, tirx.any(wins, level))
        return tirx.Select(takes, first, b[0]), tirx.Select(takes, a[1], b[1])

    def nothing(index: str, value: str) -> Any:
        return tirx.const(-1, index), tirx.min_value(value) if largest else tirx.max_value(value)

    pick = te.comm_reducer(better, nothing, name=n.op.lower())

    def compute(x: Any) -> Any:
        k = te.reduce_axis((0, x.shape[axis]), name="k")
        out = [dim for index, dim in enumerate(x.shape) if index != axis]

        def at(*i: Any) -> Any:
            return pick((k, x(*i[:axis], k, *i[axis:])), axis=k)

        index, _ = te.compute(out, at, name=n.op.lower())
        return te.compute(out, lambda *i: index(*i).astype("int64"), name="index")

    found = c.te(compute, c.input(n, 0), name=n.op.lower())
    return c.reshape(found, c.out_shape(n)) if keep else found


def _cumsum_check(n: View) -> str | None:
    return None if n.ints(1, "") is not None else "CumSum over an axis known only at run time has no lowering to TVM"


@lowers("CumSum", dtypes=NUMBERS, check=_cumsum_check)
def cumsum(c: Lowering, n: View) -> Expr:
    axes = n.ints(1, "")
    assert axes is not None
    axis = axes[0] + n.rank(0) if axes[0] < 0 else axes[0]
    x, back = c.input(n, 0), bool(n.attr("reverse", 0))
    x = c.emit(c.op.flip(x, axis)) if back else x
    out = c.emit(c.op.cumsum(x, axis=axis, dtype=n.dtype(0), exclusive=bool(n.attr("exclusive", 0))))
    return c.op.flip(out, axis) if back else out
