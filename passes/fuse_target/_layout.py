"""Which axis of a value holds which factor of attention: batch, heads, positions, channels, seen through layout ops.

Lives here: walking up from an operand through Transpose, Reshape, Expand, Slice, Gather, Split and scalar factors, and
noting at every step how the factors lie. Not here: what is done with it (attention.py, _projections.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_scalar

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.match import Match


@dataclass(frozen=True, eq=False)
class Factor:
    """One factor of a value's elements.

    Attributes:
        name: one of "B" batch, "H" heads, "S" positions, "D" channels; "G" and the like for parts of a split factor,
            "P" for one that a selection passed.
        size: how many there are, a number or symbol.
        index: for a selection, which of them is taken.
    """

    name: str
    size: Any
    index: int | None = None


Axes = tuple[tuple[Factor, ...], ...]
"""Per axis the factors that lie in it, slow to fast; an axis of size 1 may hold none."""


@dataclass(frozen=True)
class View:
    """A value on the way up and how the factors lie in it.

    Attributes:
        value: the tensor seen here.
        axes: its layout.
        scale: product of the scalar factors between here and where the walk began.
        repeated: factors along which a later Expand repeats this value.
    """

    value: ir.Value
    axes: Axes
    scale: float = 1.0
    repeated: tuple[Factor, ...] = ()

    def lies(self, *wanted: str) -> bool:
        """Whether the axes hold exactly these factors, e.g. lies("B", "S", "HD"). Factors of size 1 lie anywhere."""
        if len(wanted) != len(self.axes):
            return False
        ones = {factor.name for axis in self.axes for factor in axis if factor.size == 1}
        return all(
            [factor.name for factor in axis if factor.size != 1] == [name for name in names if name not in ones]
            for axis, names in zip(self.axes, wanted, strict=True)
        )

    def selections(self) -> list[Factor]:
        """The factors that stand for a selection."""
        return [factor for axis in self.axes for factor in axis if factor.index is not None]


def walk(m: Match, value: ir.Value, names: Sequence[str]) -> Iterator[View]:
    """The views of `value` and of what it is made from, as long as only layout ops and scalar factors lie between.

    Args:
        m: the match, for shapes and constants.
        value: a tensor of the rank of `names`.
        names: the factor in each axis, e.g. ("B", "H", "S", "D").

    Raises:
        NoMatch: the rank differs.
    """
    dims = dims_of(m, value)
    m.require(len(dims) == len(names), f"value {value.name!r} has rank {len(dims)}, not {len(names)}")
    view = View(value, tuple((Factor(name, dim),) for name, dim in zip(names, dims, strict=True)))
    while True:
        yield view
        node = view.value.producer()
        if node is None or node.graph is not m.root.graph or (node.domain, node.op_type) not in _STEPS:
            return
        try:
            view = _STEPS[node.domain, node.op_type](m, node, view)
        except NoMatch:
            return


def pick(views: Sequence[View], position: str, outputs: str, unscaled: bool = False) -> View | None:
    """The nearest view that holds [batch, positions, outputs], or positions first."""
    for order in (("B", position, outputs), (position, "B", outputs)):
        for view in views:
            if view.lies(*order) and not (unscaled and view.scale != 1.0):
                return view
    return None


def regroup(m: Match, factors: Sequence[Factor], dims: Sequence[Any]) -> Axes:
    """Cut the factors into axes of the given sizes; a factor that ends in the middle of an axis is split.

    The parts of a split factor `H` are called `H` (the slow one) and `h`.

    Raises:
        NoMatch: the sizes do not provably fit.
    """
    todo = list(factors)
    axes: list[tuple[Factor, ...]] = []
    for dim in dims:
        if dim == 1 and not (todo and todo[0].size == 1):
            axes.append(())
            continue
        count = _run(m, todo, dim)
        if count is None:
            count = _split(m, todo, dim)
        axes.append(tuple(todo[:count]))
        del todo[:count]
    if any(factor.size != 1 for factor in todo) or not axes:
        raise NoMatch("the factors do not fill the shape")
    return (*axes[:-1], (*axes[-1], *todo))


def _run(m: Match, factors: Sequence[Factor], dim: Any) -> int | None:
    """How many leading factors make up an axis of size `dim`."""
    product: Any = 1
    for count, factor in enumerate(factors, 1):
        product = multiply(product, factor.size)
        if m.equal(product, dim):
            return count
    return None


def _split(m: Match, factors: list[Factor], dim: Any) -> int:
    """Split one factor, so that a run of leading factors makes up an axis of size `dim`; return the run's length."""
    left: Any = dim
    for position, factor in enumerate(factors):
        rest = _quotient(m, factor.size, left)
        if rest is not None and factor.index is None:
            factors[position : position + 1] = Factor(factor.name, left), Factor(factor.name.lower(), rest)
            return position + 1
        left = _quotient(m, left, factor.size)
        if left is None:
            break
    raise NoMatch(f"no run of factors has the size {dim}")


def _quotient(m: Match, a: Any, b: Any) -> Any | None:
    """a / b where b provably divides a."""
    from graphopt.analysis import dims

    if b == 0:
        return None
    quotient = dims.floor_divide(a, b)
    return quotient if m.equal(dims.multiply(quotient, b), a) else None


def dims_of(m: Match, value: ir.Value) -> tuple[Any, ...]:
    """The dims as inferred; for a graph output they say more than its declaration."""
    known = m.ctx.shapes.dims(value)
    m.require(known is not None, f"the rank of value {value.name!r} is unknown")
    assert known is not None
    return known


def multiply(a: Any, b: Any) -> Any:
    """The product of two dims, numbers or symbols."""
    from graphopt.analysis import dims

    return dims.multiply(a, b)


def _flat(axes: Axes) -> list[Factor]:
    return [factor for axis in axes for factor in axis]


def _source(node: ir.Node) -> ir.Value:
    value = node.inputs[0] if node.inputs else None
    if value is None:
        raise NoMatch(f"{node.op_type} has no input")
    return value


def _transpose(m: Match, node: ir.Node, view: View) -> View:
    rank = len(view.axes)
    perm = m.attr(node, "perm", tuple(reversed(range(rank))))
    axes: list[tuple[Factor, ...]] = [()] * rank
    for to, source in enumerate(perm):
        axes[source] = view.axes[to]
    return View(_source(node), tuple(axes), view.scale, view.repeated)


def _reshape(m: Match, node: ir.Node, view: View) -> View:
    source = _source(node)
    return View(source, regroup(m, _flat(view.axes), dims_of(m, source)), view.scale, view.repeated)


def _expand(m: Match, node: ir.Node, view: View) -> View:
    source = _source(node)
    dims = dims_of(m, source)
    missing = len(view.axes) - len(dims)
    m.require(missing >= 0, "Expand lowers the rank")
    gone = [factor for axis in view.axes[:missing] for factor in axis]
    axes: list[tuple[Factor, ...]] = []
    for axis, dim in zip(view.axes[missing:], dims, strict=True):
        if dim == 1 and any(factor.size != 1 for factor in axis):
            gone.extend(axis)
            axes.append(())
        else:
            size: Any = 1
            for factor in axis:
                size = multiply(size, factor.size)
            m.require(m.equal(size, dim), "Expand may repeat along an axis of unknown size")
            axes.append(axis)
    return View(source, tuple(axes), view.scale, (*view.repeated, *(factor for factor in gone if factor.size != 1)))


def _gather(m: Match, node: ir.Node, view: View) -> View:
    """Gather of one constant index: the axis it removes comes back as a selection."""
    source, index = _source(node), m.input(1, node)
    dims = m.dims(source)
    axis = m.axis(m.attr(node, "axis", 0), len(dims))
    m.require(index is not None and index.shape is not None, "the index has no known rank")
    assert index is not None and index.shape is not None
    taken, size = int(m.scalar(index)), m.dim(source, axis)
    m.require(-size <= taken < size, "the index is out of range")
    chosen = (Factor("P", size, taken % size),)
    if len(index.shape) == 0:
        return View(source, (*view.axes[:axis], chosen, *view.axes[axis:]), view.scale, view.repeated)
    m.require(len(index.shape) == 1 and _is_one(view.axes[axis]), "Gather takes more than one index")
    return View(source, (*view.axes[:axis], chosen, *view.axes[axis + 1 :]), view.scale, view.repeated)


def _slice(m: Match, node: ir.Node, view: View) -> View:
    starts, ends = m.ints(m.input(1, node)), m.ints(m.input(2, node))
    axes = m.axes(node, 3)
    steps = m.ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else (1,)
    m.require(len(starts) == 1 and steps == (1,), "Slice takes several axes or steps")
    axis = m.axis(axes[0] if axes else 0, len(view.axes))
    size = m.dim(_source(node), axis)
    start = min(max(starts[0] + size if starts[0] < 0 else starts[0], 0), size)
    end = min(max(ends[0] + size if ends[0] < 0 else ends[0], 0), size)
    return _selected(_source(node), view, axis, start, end - start, size)


def _split_node(m: Match, node: ir.Node, view: View) -> View:
    source = _source(node)
    axis = m.axis(m.attr(node, "axis", 0), len(view.axes))
    size = m.dim(source, axis)
    lengths = [m.dim(output, axis) for output in node.outputs]
    position = view.value.index()
    assert position is not None
    return _selected(source, view, axis, sum(lengths[:position]), lengths[position], size)


def _selected(source: ir.Value, view: View, axis: int, start: int, length: int, size: int) -> View:
    """One of `size / length` equal pieces along an axis."""
    if length <= 0 or start % length or size % length:
        raise NoMatch("the slices are not equal pieces")
    if length == size:
        return View(source, view.axes, view.scale, view.repeated)
    inside = () if _is_one(view.axes[axis]) else view.axes[axis]
    chosen = (Factor("P", size // length, start // length), *inside)
    return View(source, (*view.axes[:axis], chosen, *view.axes[axis + 1 :]), view.scale, view.repeated)


def _is_one(axis: Sequence[Factor]) -> bool:
    return all(factor.size == 1 for factor in axis)


def _scaled(m: Match, node: ir.Node, view: View) -> View:
    """Mul and Div by a scalar constant."""
    for data, factor in ((0, 1), (1, 0)):
        number = const_scalar(node.inputs[factor])
        source = node.inputs[data]
        if number is None or source is None or (node.op_type == "Div" and data == 1):
            continue
        m.require(m.is_float(source) and m.rank(source) == len(view.axes), "the factor changes the rank")
        m.require(number not in (0, 0.0), "the factor is 0")
        scale = view.scale * number if node.op_type == "Mul" else view.scale / number
        return View(source, view.axes, scale, view.repeated)
    raise NoMatch(f"{node.op_type} by something that is no constant scalar")


def _identity(m: Match, node: ir.Node, view: View) -> View:
    return View(_source(node), view.axes, view.scale, view.repeated)


_STEPS = {
    ("", "Transpose"): _transpose,
    ("", "Reshape"): _reshape,
    ("", "Unsqueeze"): _reshape,
    ("", "Squeeze"): _reshape,
    ("", "Flatten"): _reshape,
    ("", "Expand"): _expand,
    ("", "Gather"): _gather,
    ("", "Slice"): _slice,
    ("", "Split"): _split_node,
    ("", "Mul"): _scaled,
    ("", "Div"): _scaled,
    ("", "Identity"): _identity,
}
