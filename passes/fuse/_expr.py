"""Reading an expression from its root upwards: the nodes it is made of, its factors, its value as a polynomial.

For fusions whose left side exporters write in many associations; fixed shapes are better written as a RewritePass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_scalar

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

T = TypeVar("T")

_MAX_NODES = 24
_MAX_DEGREE = 4


class Region:
    """The nodes of one expression below `m.root`: `node` collects them, `close` checks that they are private."""

    def __init__(self, m: Match) -> None:
        self.m = m
        self.nodes: dict[ir.Node, None] = {m.root: None}

    def copy(self) -> Region:
        made = Region(self.m)
        made.nodes = dict(self.nodes)
        return made

    def node(self, value: ir.Value | None, *ops: str) -> ir.Node:
        """The producer of `value`, taken into the region.

        Raises:
            NoMatch: it is another op, stands in another graph, or the region becomes too large.
        """
        found = self.m.producer(value, *ops)
        self.nodes[found] = None
        if len(self.nodes) > _MAX_NODES:
            raise NoMatch("the expression is too large")
        return found

    def is_made_by(self, value: ir.Value | None, *ops: str) -> bool:
        """Whether one of the ops makes the value, in the root's graph; nothing is taken into the region."""
        return producer_is(self.m, value, *ops)

    def close(self) -> None:
        """Hand the nodes to the driver as the interior of the match.

        Raises:
            NoMatch: a value inside is used outside of the region.
        """
        for node in self.nodes:
            if node is self.m.root:
                continue
            for output in node.outputs:
                if output.is_graph_output():
                    raise NoMatch(f"multiple-uses: {node.op_type} {node.name!r} is a graph output")
                if any(use.node not in self.nodes for use in output.uses()):
                    raise NoMatch(f"multiple-uses: {node.op_type} {node.name!r} has other users")
        self.m.interior = [node for node in self.nodes if node is not self.m.root]


def producer_is(m: Match, value: ir.Value | None, *ops: str) -> bool:
    """Whether a standard op of these types, in the root's graph, makes the value."""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type in ops and node.domain == "" and node.graph is m.root.graph


def number(value: ir.Value | None) -> float | None:
    """The one element of a constant scalar as a float, None for anything else."""
    element = const_scalar(value)
    return None if element is None or isinstance(element, bool) else float(element)


def keeps_shape(m: Match, constant: ir.Value | None, beside: ir.Value) -> bool:
    """Whether a one-element constant leaves the rank of `beside` as it is (a [1,1,1] would raise that of a vector)."""
    if constant is None or constant.shape is None:
        return False
    return len(constant.shape) == 0 or (beside.shape is not None and len(constant.shape) <= len(beside.shape))


def scaled(m: Match, node: ir.Node) -> tuple[ir.Value, float] | None:
    """`(x, c)` when the node computes `x * c` for a constant scalar: Mul or Div by it, or Neg."""
    if node.op_type == "Neg":
        assert node.inputs[0] is not None
        return node.inputs[0], -1.0
    if node.op_type not in ("Mul", "Div") or node.domain != "":
        return None
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    factor = number(b)
    if factor is not None and keeps_shape(m, b, a):
        if node.op_type == "Mul":
            return a, factor
        return (a, 1.0 / factor) if factor != 0 else None
    factor = number(a)
    if factor is not None and node.op_type == "Mul" and keeps_shape(m, a, b):
        return b, factor
    return None


def factors(region: Region, value: ir.Value, stops: tuple[ir.Value, ...]) -> tuple[float, list[ir.Value]]:
    """`value` as coefficient * product of values, descending through Mul, Div and Neg until one of `stops`.

    Raises:
        NoMatch: a factor is no scalar constant and not in `stops`.
    """
    if any(value is stop for stop in stops):
        return 1.0, [value]
    node = region.node(value, "Mul", "Div", "Neg")
    part = scaled(region.m, node)
    if part is not None:
        coefficient, found = factors(region, part[0], stops)
        return coefficient * part[1], found
    if node.op_type != "Mul":
        raise NoMatch(f"{node.op_type} {node.name!r} has no constant scalar operand")
    a, b = node.inputs
    assert a is not None and b is not None
    (ca, fa), (cb, fb) = factors(region, a, stops), factors(region, b, stops)
    return ca * cb, fa + fb


def polynomial(region: Region, value: ir.Value, x: ir.Value) -> dict[int, float]:
    """The coefficients by power of `value` as a polynomial in `x` with scalar coefficients.

    Raises:
        NoMatch: it is none, or of a degree over 4.
    """
    if value is x:
        return {1: 1.0}
    constant = number(value)
    if constant is not None:
        if not keeps_shape(region.m, value, x):
            raise NoMatch("a constant changes the rank")
        return {0: constant}
    node = region.node(value, "Add", "Sub", "Mul", "Div", "Neg", "Pow")
    a = node.inputs[0]
    assert a is not None
    left = polynomial(region, a, x)
    if node.op_type == "Neg":
        return {power: -c for power, c in left.items()}
    b = node.inputs[1]
    assert b is not None
    right = polynomial(region, b, x)
    if node.op_type in ("Add", "Sub"):
        sign = 1.0 if node.op_type == "Add" else -1.0
        return {power: left.get(power, 0.0) + sign * right.get(power, 0.0) for power in left.keys() | right.keys()}
    if node.op_type == "Mul":
        return _product(left, right)
    if right.keys() != {0}:
        raise NoMatch(f"{node.op_type} {node.name!r} is not by a constant")
    if node.op_type == "Div":
        if right[0] == 0:
            raise NoMatch("a division by zero")
        return {power: c / right[0] for power, c in left.items()}
    return _power(left, right[0])


def _product(left: dict[int, float], right: dict[int, float]) -> dict[int, float]:
    made: dict[int, float] = {}
    for p, c in left.items():
        for q, d in right.items():
            made[p + q] = made.get(p + q, 0.0) + c * d
    if max(made) > _MAX_DEGREE:
        raise NoMatch("the polynomial's degree is too high")
    return made


def _power(base: dict[int, float], exponent: float) -> dict[int, float]:
    if exponent not in (1.0, 2.0, 3.0, 4.0):
        raise NoMatch(f"a power of {exponent}")
    made = base
    for _ in range(int(exponent) - 1):
        made = _product(made, base)
    return made


def is_near(m: Match, there: float, wanted: float, like: ir.Value) -> bool:
    """Whether a number made of a few constants of `like`'s type is `wanted`, up to their roundings."""
    name = like.dtype.name if like.dtype is not None else ""
    precision = {"FLOAT16": 4e-3, "BFLOAT16": 3e-2}.get(name, 1e-6)
    return abs(there - wanted) <= precision * max(abs(wanted), 1e-30)


def is_polynomial(m: Match, there: dict[int, float], wanted: dict[int, float], like: ir.Value) -> bool:
    """Whether two polynomials agree up to the rounding of their constants."""
    powers = there.keys() | wanted.keys()
    return all(is_near(m, there.get(p, 0.0), wanted.get(p, 0.0), like) for p in powers)


def read_gated(
    m: Match, bells: tuple[str, ...], read_gate: Callable[[Region, ir.Value, ir.Value], tuple[float, T]]
) -> tuple[ir.Value, T, float]:
    """Read the root as `c * x * gate(x)` in any association: x, what `read_gate` found, and c with the gate's factor.

    Args:
        m: The match; its interior is set.
        bells: Ops of which one must stand within five nodes above the root; cheap check for a node of no interest.
        read_gate: Reads the gate as a function of x; returns its factor and what the rule wants to know of it.

    Raises:
        Uninteresting: no such op is near, or the product goes on. NoMatch: it is another expression.
    """
    from graphopt.manager.worklist import Uninteresting

    if not is_near_op(m, m.root, bells, 5):
        raise Uninteresting(f"no {' or '.join(bells)} near")
    root = m.root.outputs[0]
    m.require(m.is_float(root), "not of floats")
    leaves = list(dict.fromkeys(_leaves(m, m.root, 4)))
    reason, furthest = "no factor is the function of another", 1
    for gate in leaves:
        for x in leaves:
            if x is gate:
                continue
            region = Region(m)
            try:
                factor, found = read_gate(region, gate, x)
                c, product = factors(region, root, (x, gate))
                if len(product) != 2 or product[0] is product[1]:
                    raise NoMatch("not a product of two factors")
                if not is_near(m, c * factor, 1.0, x) and _goes_on(m):
                    raise Uninteresting("part of a larger product")
                region.close()
            except NoMatch as miss:
                if isinstance(miss, Uninteresting):
                    raise
                if len(region.nodes) >= furthest:
                    reason, furthest = str(miss), len(region.nodes)
                continue
            return x, found, 1.0 if is_near(m, c * factor, 1.0, x) else c * factor
    raise NoMatch(reason)


def times(op: Builder, value: ir.Value, factor: float) -> ir.Value:
    """`value * factor`, without a node for a factor of one."""
    return value if factor == 1 else op.Mul(value, factor)


def _goes_on(m: Match) -> bool:
    """Whether the root is multiplied on by a constant, so that a scalar factor may still come."""
    uses = list(m.root.outputs[0].uses())
    return len(uses) == 1 and scaled(m, uses[0].node) is not None


def is_near_op(
    m: Match, node: ir.Node, ops: tuple[str, ...], depth: int, through: tuple[str, ...] = ("Mul", "Div", "Add", "Neg")
) -> bool:
    """Whether one of `ops` stands above the node, at most `depth` nodes up, with only ops of `through` in between."""
    for value in node.inputs:
        inner = value.producer() if value is not None else None
        if inner is None or inner.graph is not m.root.graph:
            continue
        if inner.op_type in ops:
            return True
        if depth > 1 and inner.op_type in through and is_near_op(m, inner, ops, depth - 1, through):
            return True
    return False


def _leaves(m: Match, node: ir.Node, depth: int) -> Iterator[ir.Value]:
    """Every non-constant value in the tree of Mul, Div and Neg below the node, inner products included."""
    for value in node.inputs:
        if value is None or number(value) is not None:
            continue
        yield value
        if depth > 1 and producer_is(m, value, "Mul", "Div", "Neg"):
            inner = value.producer()
            assert inner is not None
            yield from _leaves(m, inner, depth - 1)
