"""Arithmetic and equality of tensor dimensions: integers, symbols and expressions over them.

Two dimensions are equal when their normal forms (`polynomial`) are. No computer algebra package is used: its general
simplification does not end on nested strided sizes, and it takes every symbol to be at least 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from graphopt.analysis import polynomial
from graphopt.analysis.polynomial import DATA_PREFIX, MAX_TERMS, MAX_TEXT, Poly

if TYPE_CHECKING:
    from graphopt import ir

    Dim: TypeAlias = int | ir.SymbolicDim

__all__ = ["DATA_PREFIX"]


def normal_form(dim: Dim | None) -> Poly | None:
    """The polynomial of a dimension; None when it is unknown or not an expression that the normal form covers."""
    if isinstance(dim, int):
        return polynomial.const(dim)
    text = dim.value if dim is not None else None
    return polynomial.parse(text) if text else None


def from_poly(poly: Poly) -> Dim:
    """The dimension of a polynomial: an int, a symbol in canonical text, or unknown when it grew too large."""
    value = polynomial.as_const(poly)
    return value if value is not None else _symbol(polynomial.text_of(poly) if len(poly) <= MAX_TERMS else None)


@lru_cache(maxsize=65536)
def _symbol(text: str | None) -> ir.SymbolicDim:
    from graphopt.analysis.symbol import Size

    return Size(text if text is not None and len(text) <= MAX_TEXT else None)


def symbol(name: str) -> ir.SymbolicDim:
    """The dimension that is the symbol `name` (an identifier)."""
    return _symbol(name)


def unknown() -> Dim:
    """The dimension of which nothing is known."""
    return _symbol(None)


def is_unknown(dim: Dim) -> bool:
    """Whether the dimension is nameless, as None, '' and '?' are in model files."""
    return not isinstance(dim, int) and dim.value in (None, "", "?")


def canonical(dim: Dim) -> Dim:
    """The dimension in canonical text; unknown when the normal form does not cover it."""
    if isinstance(dim, int):
        return dim
    if dim.value is not None and dim.value.isidentifier():
        return _symbol(dim.value)
    poly = normal_form(dim)
    return from_poly(poly) if poly is not None else unknown()


def _combine(a: Dim, b: Dim, op: str) -> Dim:
    left, right = normal_form(a), normal_form(b)
    if left is None or right is None:
        return unknown()
    try:
        if op == "+":
            return from_poly(polynomial.plus(left, right))
        if op == "-":
            return from_poly(polynomial.plus(left, right, -1))
        if op == "*":
            return from_poly(polynomial.times(left, right))
        if op == "//":
            return from_poly(polynomial.floor(left, right)) if right else unknown()
        return from_poly(polynomial.extreme(op, [left, right]))
    except (polynomial.Opaque, RecursionError):
        return unknown()


def add(a: Dim, b: Dim) -> Dim:
    """a + b."""
    return a + b if isinstance(a, int) and isinstance(b, int) else _combine(a, b, "+")


def subtract(a: Dim, b: Dim) -> Dim:
    """a - b."""
    return a - b if isinstance(a, int) and isinstance(b, int) else _combine(a, b, "-")


def multiply(a: Dim, b: Dim) -> Dim:
    """a * b."""
    return a * b if isinstance(a, int) and isinstance(b, int) else _combine(a, b, "*")


def floor_divide(a: Dim, b: Dim) -> Dim:
    """floor(a / b), rounded down for negative values too; unknown when b is 0."""
    return a // b if isinstance(a, int) and isinstance(b, int) and b else _combine(a, b, "//")


def ceil_divide(a: Dim, b: Dim) -> Dim:
    """ceil(a / b), in the same form as `floor((a + b - 1) / b)` where b is a number."""
    if isinstance(b, int) and b > 0:
        return floor_divide(add(a, b - 1), b)
    return multiply(floor_divide(multiply(a, -1), b), -1)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger one."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else _combine(a, b, "max")


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller one."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else _combine(a, b, "min")


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all; 1 for none."""
    out: Dim = 1
    for dim in dims:
        out = multiply(out, dim)
    return out


def equal(a: Dim, b: Dim) -> bool:
    """Whether the two are the same number for every value of their symbols. Unknown equals nothing, itself included."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if is_unknown(a) or is_unknown(b):
        return False
    if not isinstance(a, int) and not isinstance(b, int) and a.value == b.value:
        return True
    left, right = normal_form(a), normal_form(b)
    return left is not None and left == right


def nonnegative(dim: Dim) -> bool:
    """Whether the value is at least 0, given that every size is."""
    poly = normal_form(dim)
    return poly is not None and polynomial.is_nonnegative(poly)


def symbols(dim: Dim) -> frozenset[str]:
    """Names of the symbols inside; empty for an unknown dimension."""
    poly = normal_form(dim)
    return polynomial.names_of(poly) if poly else frozenset()


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """The dimension with symbols replaced by name; names that are absent stay. Unknown stays unknown."""
    if isinstance(dim, int):
        return dim
    if dim.value in values:
        return values[dim.value or ""]
    poly = normal_form(dim)
    if poly is None:
        return dim
    forms: dict[str, Poly] = {}
    for name in polynomial.names_of(poly) & values.keys():
        form = normal_form(values[name])
        if form is None:
            return unknown()
        forms[name] = form
    try:
        return from_poly(polynomial.replace(poly, forms))
    except (polynomial.Opaque, RecursionError):
        return unknown()


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int | None:
    """The number under bindings of the symbols, None when one is missing or the dimension is unknown."""
    value = substitute(dim, bindings)
    return value if isinstance(value, int) else None
