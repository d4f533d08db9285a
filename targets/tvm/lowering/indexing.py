"""Rules of gathering and scattering. Indices may be negative; those out of range are clamped, never followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.table import ALL, FLOATS, NUMBERS, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any


def within(c: Lowering, index: Any, size: Any) -> Any:
    """A legal position: negative indices count from the end, and none leaves the axis."""
    tirx = c.tirx
    index = index.astype("int64")
    from_front = tirx.Select(index < 0, index + size, index)
    return tirx.max(tirx.min(from_front, size - 1), tirx.IntImm("int64", 0))


@lowers("Gather", dtypes=ALL)
def gather(c: Lowering, n: View) -> Expr:
    axis, rank = n.axis(0), n.rank(1)

    def compute(data: Any, indices: Any, out: Any) -> Any:
        def at(*i: Any) -> Any:
            chosen = within(c, indices(*i[axis : axis + rank]), data.shape[axis])
            return data(*i[:axis], chosen, *i[axis + rank :])

        return c.te_lang.compute(out, at, name="take")

    return c.te(compute, c.input(n, 0), c.input(n, 1), name="take", shape=c.out_shape(n))


@lowers("GatherElements", dtypes=ALL)
def gather_elements(c: Lowering, n: View) -> Expr:
    axis = n.axis(0)

    def compute(data: Any, indices: Any, out: Any) -> Any:
        def at(*i: Any) -> Any:
            return data(*i[:axis], within(c, indices(*i), data.shape[axis]), *i[axis + 1 :])

        return c.te_lang.compute(out, at, name="gather_elements")

    return c.te(compute, c.input(n, 0), c.input(n, 1), name="gather_elements", shape=c.out_shape(n))


def _last_dim_check(n: View) -> str | None:
    dims = n.dims(1)
    if dims and isinstance(dims[-1], int):
        return None
    return f"{n.op} whose index depth is dynamic has no lowering to TVM"


@lowers("GatherND", dtypes=ALL, check=_last_dim_check)
def gather_nd(c: Lowering, n: View) -> Expr:
    batch, dims = int(n.attr("batch_dims", 0)), n.dims(1)
    assert dims is not None and isinstance(dims[-1], int)
    depth, rows = dims[-1], len(dims) - 1

    def compute(data: Any, indices: Any, out: Any) -> Any:
        def at(*i: Any) -> Any:
            row = i[:rows]
            chosen = [within(c, indices(*row, k), data.shape[batch + k]) for k in range(depth)]
            return data(*i[:batch], *chosen, *i[rows:])

        return c.te_lang.compute(out, at, name="gather_nd")

    return c.te(compute, c.input(n, 0), c.input(n, 1), name="gather_nd", shape=c.out_shape(n))


_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "min": "min", "max": "max"}


@lowers("ScatterElements", dtypes=NUMBERS)
def scatter_elements(c: Lowering, n: View) -> Expr:
    axis, indices = n.axis(0), c.input(n, 1)
    size = c.shape(n.value(0))[axis]

    def compute(a: Any, extent: Any) -> Any:
        return c.te_lang.compute(a.shape, lambda *i: within(c, a(*i), extent), name="indices")

    legal = c.te(compute, indices, size, name="indices")
    kind = _REDUCTIONS[n.attr("reduction", "none")]
    return c.op.scatter_elements(c.input(n, 0), legal, c.input(n, 2), axis=axis, reduction=kind)


@lowers("ScatterND", dtypes=NUMBERS, check=_last_dim_check)
def scatter_nd(c: Lowering, n: View) -> Expr:
    shape, indices, tirx = c.shape(n.value(0)), c.input(n, 1), c.tirx
    dims = n.dims(1)
    assert dims is not None and isinstance(dims[-1], int)
    depth = dims[-1]

    def compute(a: Any, *sizes: Any) -> Any:
        def at(*i: Any) -> Any:
            out = within(c, a(*i), sizes[depth - 1])
            for k in reversed(range(depth - 1)):
                out = tirx.Select(i[-1] == k, within(c, a(*i), sizes[k]), out)
            return out

        return c.te_lang.compute(a.shape, at, name="indices")

    legal = c.te(compute, indices, *shape, name="indices")
    kind = _REDUCTIONS[n.attr("reduction", "none")]
    return c.op.scatter_nd(c.input(n, 0), legal, c.input(n, 2), reduction=kind)


def _one_hot_check(n: View) -> str | None:
    return None if n.out_dims() is not None else "OneHot whose depth is known only at run time has no lowering to TVM"


@lowers("OneHot", dtypes=NUMBERS, check=_one_hot_check)
def one_hot(c: Lowering, n: View) -> Expr:
    axis = int(n.attr("axis", -1))
    axis = axis + n.rank(0) + 1 if axis < 0 else axis

    def compute(indices: Any, values: Any, out: Any) -> Any:
        def at(*i: Any) -> Any:
            index = indices(*i[:axis], *i[axis + 1 :]).astype("int64")
            chosen = c.tirx.Select(index < 0, index + out[axis], index)
            return c.tirx.Select(chosen == i[axis], values(1), values(0))

        return c.te_lang.compute(out, at, name="one_hot")

    return c.te(compute, c.input(n, 0), c.input(n, 2), name="one_hot", shape=c.out_shape(n))


@lowers("ReverseSequence", dtypes=ALL)
def reverse_sequence(c: Lowering, n: View) -> Expr:
    time, batch = int(n.attr("time_axis", 0)), int(n.attr("batch_axis", 1))

    def compute(data: Any, lengths: Any) -> Any:
        def at(*i: Any) -> Any:
            length = lengths(i[batch]).astype("int64")
            place = c.tirx.Select(i[time] < length, length - 1 - i[time], i[time])
            return data(*i[:time], place, *i[time + 1 :])

        return c.te_lang.compute(data.shape, at, name="reverse_sequence")

    return c.te(compute, c.input(n, 0), c.input(n, 1), name="reverse_sequence")


def _letters(n: View) -> list[dict[str, Any]] | None:
    """The dim of each letter, by operand; None where the equation does not say them all."""
    inputs, arrow, _ = n.attr("equation").replace(" ", "").partition("->")
    if not arrow or "." in inputs:
        return None
    return [dict(zip(term, n.dims(index) or (), strict=True)) for index, term in enumerate(inputs.split(","))]


def _einsum_check(n: View) -> str | None:
    for letters in (dims := _letters(n) or []):
        for letter, size in letters.items():
            other = next((found[letter] for found in dims if found.get(letter, 1) not in (1, size)), None)
            if other is not None and size != 1:
                return f"Einsum whose sizes {size} and {other} of {letter!r} are not known to be equal has no lowering"
    return None


@lowers("Einsum", dtypes=FLOATS, check=_einsum_check)
def einsum(c: Lowering, n: View) -> Expr:
    operands = [c.input(n, index) for index in range(len(n.node.inputs))]
    inputs, arrow, output = n.attr("equation").replace(" ", "").partition("->")
    terms, dims = inputs.split(","), _letters(n) or []
    # One letter may be 1 in one term and more in another: there it is no index.
    for index, letters in enumerate(dims):
        term = terms[index]
        alone = [at for at, letter in enumerate(term) if letters[letter] == 1 and _is_larger(letter, dims)]
        if alone:
            operands[index] = c.emit(c.op.squeeze(operands[index], alone))
            terms[index] = "".join(letter for at, letter in enumerate(term) if at not in alone)
    return c.op.einsum(c.relax.Tuple(operands), ",".join(terms) + arrow + output)


def _is_larger(letter: str, dims: Sequence[Mapping[str, Any]]) -> bool:
    return any(found.get(letter, 1) != 1 for found in dims)
