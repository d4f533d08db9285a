"""Reading a normalisation upwards from its division: deviations, mean square, epsilon, and casts around it.

Shared by the rules for LayerNormalization, RMSNormalization and InstanceNormalization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.passes.fuse._expr import Region, keeps_shape, number, producer_is

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.match import Match

DIVISIONS = ("Div", "Mul")


@dataclass(frozen=True)
class Normalized:
    """`value` is x, centered when `centered`, over the root of its mean square plus epsilon along `axes` (sorted)."""

    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    centered: bool
    mean: ir.Value | None = None


def read_normalized(region: Region, value: ir.Value) -> Normalized:
    """Read `value` as (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon), or as the same without the mean.

    Casts from a narrow float type to float32 and back around the whole are taken in: the fused ops compute so inside.

    Raises:
        NoMatch: it is something else.
    """
    m = region.m
    outer: ir.DataType | None = None
    if producer_is(m, value, "Cast"):
        outer = m.dtype(value)
        inner = region.node(value, "Cast").inputs[0]
        assert inner is not None
        value = inner
    found = _read_division(region, value)
    x = found.x
    if outer is not None:
        cast = region.node(x, "Cast")
        source = cast.inputs[0]
        assert source is not None
        if m.dtype(source) != outer or m.dtype(x).name != "FLOAT" or not outer.is_floating_point():
            raise NoMatch("the casts around the normalisation are not to float32 and back")
        return Normalized(source, found.axes, found.epsilon, found.centered)
    return found


def _read_division(region: Region, value: ir.Value) -> Normalized:
    m = region.m
    node = region.node(value, *DIVISIONS)
    a, b = node.inputs
    assert a is not None and b is not None
    if node.op_type == "Div":
        return _read_root(region, a, b, inverse=False)
    for deviation, inverse in ((a, b), (b, a)):
        if producer_is(m, inverse, "Reciprocal", "Div", "Pow"):
            return _read_root(region, deviation, inverse, inverse=True)
    raise NoMatch("not a product with one over a square root")


def _read_root(region: Region, deviation: ir.Value | None, root: ir.Value, *, inverse: bool) -> Normalized:
    """`root` is sqrt(mean square + epsilon), or one over it; the mean square of `deviation` where that is given."""
    m = region.m
    half = 0.5
    if inverse and producer_is(m, root, "Reciprocal"):
        root = _first(region.node(root, "Reciprocal"))
    elif inverse and producer_is(m, root, "Div"):
        division = region.node(root, "Div")
        if number(division.inputs[0]) != 1 or division.inputs[1] is None:
            raise NoMatch("not one over a square root")
        root = division.inputs[1]
    elif inverse:
        half = -0.5
    if half > 0 and producer_is(m, root, "Sqrt"):
        variance = _first(region.node(root, "Sqrt"))
    else:
        power = region.node(root, "Pow")
        if number(power.inputs[1]) != half:
            raise NoMatch(f"a power of {number(power.inputs[1])}, not {half}")
        variance = _first(power)
    return _read_variance(region, deviation, variance)


def _read_variance(region: Region, deviation: ir.Value | None, value: ir.Value) -> Normalized:
    m = region.m
    add = region.node(value, "Add")
    mean, epsilon = _with_constant(m, add)
    square, axes = _mean(region, mean)
    squared = square_of(region, square)
    if deviation is not None and squared is not deviation:
        raise NoMatch("the mean square is not that of the value that is divided")
    if producer_is(m, squared, "Sub"):
        return _centered(region, squared, axes, epsilon)
    return Normalized(squared, axes, epsilon, centered=False)


def _centered(region: Region, deviation: ir.Value, axes: tuple[int, ...], epsilon: float) -> Normalized:
    inner = region.copy()
    try:
        x, mean = inner.node(deviation, "Sub").inputs
        source, other = _mean(inner, mean)
        assert x is not None
        if source is not x or other != axes:
            raise NoMatch("what is subtracted is not the mean along the same axes")
    except NoMatch:
        # Any difference may be normalised by its root mean square.
        return Normalized(deviation, axes, epsilon, centered=False)
    region.nodes = inner.nodes
    return Normalized(x, axes, epsilon, centered=True, mean=mean)


def read_scaled_root(region: Region, value: ir.Value) -> tuple[Normalized, ir.Value | None]:
    """Read `d * (r * scale)`, r one over the root: what is normalised and the scale (None: 1).

    Raises:
        NoMatch: it is something else.
    """
    product = region.node(value, "Mul")
    for deviation, other in (product.inputs, product.inputs[::-1]):
        assert deviation is not None and other is not None
        try:
            inner = region.copy()
            found, scale = _read_inverse(inner, deviation, other)
        except NoMatch:
            continue
        region.nodes = inner.nodes
        return found, scale
    raise NoMatch("not a product with a scaled one over a square root")


def read_affine(region: Region, product: ir.Value, rest: ir.Value) -> tuple[Normalized, ir.Value | None, ir.Value]:
    """Read `x * q + (bias - mean * q)`, q = r * scale, r one over the root: what is normalised, the scale, the bias.

    Raises:
        NoMatch: it is something else.
    """
    times, less = region.node(product, "Mul"), region.node(rest, "Sub")
    bias, shift = less.inputs
    shifted = region.node(shift, "Mul")
    for x, q in (times.inputs, times.inputs[::-1]):
        mean = next((v for v in shifted.inputs if v is not q), None)
        if q is None or bias is None or not any(v is q for v in shifted.inputs):
            continue
        found, scale = _read_inverse(region, None, q)
        if found.centered and found.x is x and found.mean is mean:
            return found, scale, bias
    raise NoMatch("not x * q + (bias - mean * q)")


def _read_inverse(region: Region, deviation: ir.Value | None, q: ir.Value) -> tuple[Normalized, ir.Value | None]:
    """Read q as one over the root, or as that times a scale."""
    m = region.m
    choices: list[tuple[ir.Value | None, ir.Value | None]] = [(q, None)]
    if producer_is(m, q, "Mul"):
        a, b = region.node(q, "Mul").inputs
        choices = [(a, b), (b, a)]
    for root, scale in choices:
        if root is not None and producer_is(m, root, "Reciprocal", "Div", "Pow"):
            return _read_root(region, deviation, root, inverse=True), scale
    raise NoMatch("no one over a square root")


def _with_constant(m: Match, add: ir.Node) -> tuple[ir.Value, float]:
    for value, constant in (add.inputs, add.inputs[::-1]):
        epsilon = number(constant)
        if epsilon is not None and value is not None and epsilon >= 0 and keeps_shape(m, constant, value):
            return value, epsilon
    raise NoMatch("no constant epsilon is added")


def _mean(region: Region, value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]]:
    """The source and the sorted axes of a ReduceMean that keeps its dims."""
    node = region.node(value, "ReduceMean")
    m = region.m
    m.require(m.attr(node, "keepdims", 1) == 1, "ReduceMean drops its axes")
    axes = m.axes(node)
    source = _first(node)
    rank = m.rank(source)
    if not axes:
        raise NoMatch("ReduceMean without axes")
    return source, tuple(sorted(m.axis(axis, rank) for axis in axes))


def square_of(region: Region, value: ir.Value | None) -> ir.Value:
    """The value whose square this is: Pow(v, 2) or Mul(v, v)."""
    node = region.node(value, "Pow", "Mul")
    a, b = node.inputs
    if a is None or (b is not a if node.op_type == "Mul" else number(b) != 2):
        raise NoMatch(f"{node.op_type} {node.name!r} is no square")
    return a


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value
