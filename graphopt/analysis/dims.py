"""Arithmetic and equality of tensor dimensions: integers, symbols and expressions over them.

A dimension's normal form is a polynomial with integer coefficients; `floor`, `max` and `min` are atoms of it in normal
form themselves. No computer algebra package is used: its general simplification does not end on nested strided sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from graphopt import ir

    Dim: TypeAlias = int | ir.SymbolicDim

Monomial: TypeAlias = tuple[str, ...]
Poly: TypeAlias = dict[Monomial, int]

# Longer expressions become fresh symbols: nothing useful is proved about them and arithmetic on them is slow.
MAX_TEXT = 400
MAX_TERMS = 64

# Symbols that stand for unknown elements of integer tensors start so. Unlike sizes they may be negative.
DATA_PREFIX = "_v"

_TOKEN = re.compile(r"\s*(?:(\d+)|([^\W\d][\w.]*)|(//|\*\*|[-+*/%(),]))")


class _Opaque(Exception):
    """The text is no expression that the normal form covers."""


# ---- polynomials ---------------------------------------------------------------------------------------------------


def _const(value: int) -> Poly:
    return {(): value} if value else {}


def _as_const(poly: Poly) -> int | None:
    if not poly:
        return 0
    return poly[()] if len(poly) == 1 and () in poly else None


def _plus(a: Poly, b: Poly, factor: int = 1) -> Poly:
    out = dict(a)
    for mono, coef in b.items():
        total = out.get(mono, 0) + factor * coef
        if total:
            out[mono] = total
        else:
            out.pop(mono, None)
    return out


def _times(a: Poly, b: Poly) -> Poly:
    if len(a) * len(b) > MAX_TERMS * 4:
        raise _Opaque
    out: Poly = {}
    for mono_a, coef_a in a.items():
        for mono_b, coef_b in b.items():
            mono = tuple(sorted(mono_a + mono_b)) if mono_a and mono_b else mono_a or mono_b
            out[mono] = out.get(mono, 0) + coef_a * coef_b
    return {mono: coef for mono, coef in out.items() if coef}


def _content(poly: Poly) -> int:
    return gcd(*poly.values()) if poly else 0


def _order(mono: Monomial) -> tuple[int, Monomial]:
    return (len(mono), mono)


def _over(mono: Monomial, divisor: Monomial) -> Monomial | None:
    """The quotient of two monomials, None when it is no monomial."""
    rest = list(mono)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _exact(num: Poly, den: Poly) -> Poly | None:
    """`num / den` when it is a polynomial with integer coefficients (long division by leading monomials)."""
    if not den:
        return None
    lead = max(den, key=_order)
    quotient: Poly = {}
    rest = num
    for _ in range(MAX_TERMS):
        if not rest:
            return quotient
        top = max(rest, key=_order)
        mono = _over(top, lead)
        if mono is None or rest[top] % den[lead]:
            return None
        term = {mono: rest[top] // den[lead]}
        quotient = _plus(quotient, term)
        rest = _plus(rest, _times(term, den), -1)
    return None


def _text(poly: Poly) -> str:
    """The canonical text. It has no `**`: onnx_ir's own parser reads `-N**2` as `(-N)**2`."""
    parts: list[str] = []
    for mono in sorted(poly, key=lambda m: (-len(m), m)):
        coef = poly[mono]
        body = "*".join(mono)
        if not mono:
            body = str(abs(coef))
        elif abs(coef) != 1:
            body = f"{abs(coef)}*{body}"
        parts.append(("-" if coef < 0 else "") + body if not parts else (" - " if coef < 0 else " + ") + body)
    return "".join(parts) or "0"


# ---- atoms ---------------------------------------------------------------------------------------------------------


def _floor(num: Poly, den: Poly) -> Poly:
    """The polynomial of `floor(num / den)`."""
    exact = _exact(num, den)
    if exact is not None:
        return exact
    divisor = _as_const(den)
    if divisor is None:
        common = [atom for atom in dict.fromkeys(min(den, key=_order)) if all(atom in m for m in (*num, *den))]
        for atom in common:
            num = {_over(m, (atom,)) or (): c for m, c in num.items()}
            den = {_over(m, (atom,)) or (): c for m, c in den.items()}
        content = gcd(_content(num), _content(den))
        num = {m: c // content for m, c in num.items()}
        den = {m: c // content for m, c in den.items()}
        if common and _as_const(den) is not None:
            return _floor(num, den)
        return {(f"floor(({_text(num)})/({_text(den)}))",): 1}
    if divisor == 0:
        raise _Opaque
    if divisor < 0:
        num, divisor = {m: -c for m, c in num.items()}, -divisor
    whole = {m: c // divisor for m, c in num.items() if c // divisor}
    rest = {m: c % divisor for m, c in num.items() if c % divisor}
    constant = rest.pop((), 0)
    if not rest:
        return whole
    # floor((g*X + c) / (g*q)) = floor((X + floor(c/g)) / q)
    shared = gcd(_content(rest), divisor)
    inner = _plus({m: c // shared for m, c in rest.items()}, _const(constant // shared))
    nested = _nested_floor(inner)
    if nested is not None:
        # floor((floor(n/d) + c) / q) = floor((n + c*d) / (d*q))
        num, den = nested
        return _plus(whole, _floor(num, {(): den * (divisor // shared)}))
    return _plus(whole, {(f"floor(({_text(inner)})/{divisor // shared})",): 1})


def _nested_floor(poly: Poly) -> tuple[Poly, int] | None:
    """Numerator and divisor of `floor(n/d) + c` as one quotient, None for anything else."""
    mono = next((m for m in poly if m), ())
    if len(mono) != 1 or poly[mono] != 1 or len(poly) - (() in poly) != 1:
        return None
    atom = _atom(mono[0])
    divisor = _as_const(atom[1][1]) if atom and atom[0] == "floor" else None
    if atom is None or divisor is None:
        return None
    return _plus(atom[1][0], _const(poly.get((), 0) * divisor)), divisor


def _extreme(name: str, args: Iterable[Poly]) -> Poly:
    """The polynomial of `max(...)` or `min(...)`, without the arguments that another one dominates."""
    sign = 1 if name == "max" else -1
    flat: list[Poly] = []
    for arg in args:
        mono = next(iter(arg)) if len(arg) == 1 else ()
        nested = _atom(mono[0]) if len(mono) == 1 and arg[mono] == 1 else None
        flat.extend(nested[1] if nested and nested[0] == name else [arg])
    kept: list[Poly] = []
    for arg in flat:
        if any(_is_nonnegative(_plus(other, arg, -1), sign) for other in kept):
            continue
        kept = [other for other in kept if not _is_nonnegative(_plus(arg, other, -1), sign)]
        kept.append(arg)
    if len(kept) == 1:
        return kept[0]
    return {(f"{name}({', '.join(sorted(_text(arg) for arg in kept))})",): 1}


@lru_cache(maxsize=16384)
def _atom(text: str) -> tuple[str, list[Poly]] | None:
    """Function and arguments of an atom, None for a plain symbol. `floor` has numerator and denominator."""
    if not text.endswith(")"):
        return None
    parser = _Parser(text)
    name = parser.take()
    parser.expect("(")
    args = [parser.rational()]
    while parser.token == ",":
        parser.take()
        args.append(parser.rational())
    if name == "floor":
        return name, [args[0][0], args[0][1]]
    return name, [num for num, _ in args]


def _atom_nonnegative(text: str) -> bool:
    atom = _atom(text)
    if atom is None:
        return not text.startswith(DATA_PREFIX)
    name, args = atom
    if name == "max":
        return any(_is_nonnegative(arg) for arg in args)
    return all(_is_nonnegative(arg) for arg in args)


def _is_nonnegative(poly: Poly, sign: int = 1) -> bool:
    """Whether `sign * poly >= 0` follows from every size being at least 0."""
    return all(sign * coef >= 0 and all(_atom_nonnegative(atom) for atom in mono) for mono, coef in poly.items())


# ---- text to polynomial --------------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent over `+ - * / // % **`, `floor`, `ceiling`, `max`, `min`, `mod`; quotients stay pairs."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise _Opaque
        text = text.rstrip()
        self.tokens: list[str] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise _Opaque
            self.tokens.append(found.group(found.lastindex or 0))
            at = found.end()
        self.at = 0

    @property
    def token(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else ""

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise _Opaque

    def parse(self) -> Poly:
        value = _integral(self.rational())
        if self.token:
            raise _Opaque
        return value

    def rational(self) -> tuple[Poly, Poly]:
        num, den = self.term()
        while self.token in ("+", "-"):
            factor = 1 if self.take() == "+" else -1
            other_num, other_den = self.term()
            if den == other_den:
                num = _plus(num, other_num, factor)
            else:
                num = _plus(_times(num, other_den), _times(other_num, den), factor)
                den = _times(den, other_den)
        return num, den

    def term(self) -> tuple[Poly, Poly]:
        num, den = self.power()
        while self.token in ("*", "/", "//", "%"):
            op = self.take()
            other_num, other_den = self.power()
            if op == "*":
                num, den = _times(num, other_num), _times(den, other_den)
                continue
            if not other_num:
                raise _Opaque
            if op == "/":
                num, den = _times(num, other_den), _times(den, other_num)
            elif op == "//":
                num, den = _floor(_times(num, other_den), _times(den, other_num)), _const(1)
            else:
                num, den = _modulo(_integral((num, den)), _integral((other_num, other_den))), _const(1)
        return num, den

    def power(self) -> tuple[Poly, Poly]:
        if self.token == "-":
            self.take()
            num, den = self.power()
            return {m: -c for m, c in num.items()}, den
        num, den = self.primary()
        if self.token != "**":
            return num, den
        self.take()
        exponent = _as_const(_integral(self.power()))
        if exponent is None or not 0 <= exponent <= 8:
            raise _Opaque
        out_num, out_den = _const(1), _const(1)
        for _ in range(exponent):
            out_num, out_den = _times(out_num, num), _times(out_den, den)
        return out_num, out_den

    def primary(self) -> tuple[Poly, Poly]:
        token = self.take()
        if token == "(":
            value = self.rational()
            self.expect(")")
            return value
        if token.isdigit():
            return _const(int(token)), _const(1)
        if not (token[:1].isalpha() or token[:1] == "_"):
            raise _Opaque
        if self.token != "(":
            return {(token,): 1}, _const(1)
        return self.call(token.lower()), _const(1)

    def call(self, name: str) -> Poly:
        self.take()
        args = [self.rational()]
        while self.token == ",":
            self.take()
            args.append(self.rational())
        self.expect(")")
        if name == "floor" and len(args) == 1:
            return _floor(*args[0])
        if name == "ceiling" and len(args) == 1:
            num, den = args[0]
            return _plus({}, _floor({m: -c for m, c in num.items()}, den), -1)
        if name in ("max", "min"):
            return _extreme(name, [_integral(arg) for arg in args])
        if name == "mod" and len(args) == 2:
            return _modulo(_integral(args[0]), _integral(args[1]))
        raise _Opaque


def _integral(value: tuple[Poly, Poly]) -> Poly:
    quotient = _exact(*value)
    if quotient is None:
        raise _Opaque
    return quotient


def _modulo(a: Poly, b: Poly) -> Poly:
    return _plus(a, _times(b, _floor(a, b)), -1)


@lru_cache(maxsize=65536)
def _parse(text: str) -> Poly | None:
    if text.isidentifier():
        return {(text,): 1}
    try:
        return _Parser(text).parse()
    except (_Opaque, RecursionError):
        return None


# ---- public --------------------------------------------------------------------------------------------------------


def normal_form(dim: Dim | None) -> Poly | None:
    """The polynomial of a dimension; None when it is unknown or not an expression that the normal form covers."""
    if isinstance(dim, int):
        return _const(dim)
    text = dim.value if dim is not None else None
    return _parse(text) if text else None


def from_poly(poly: Poly) -> Dim:
    """The dimension of a polynomial: an int, a symbol in canonical text, or unknown when it grew too large."""
    value = _as_const(poly)
    return value if value is not None else _symbol(_text(poly) if len(poly) <= MAX_TERMS else None)


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
            return from_poly(_plus(left, right))
        if op == "-":
            return from_poly(_plus(left, right, -1))
        if op == "*":
            return from_poly(_times(left, right))
        if op == "//":
            return from_poly(_floor(left, right)) if right else unknown()
        return from_poly(_extreme(op, [left, right]))
    except (_Opaque, RecursionError):
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
    """ceil(a / b)."""
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
    return poly is not None and _is_nonnegative(poly)


def symbols(dim: Dim) -> frozenset[str]:
    """Names of the symbols inside; empty for an unknown dimension."""
    poly = normal_form(dim)
    return _names(poly) if poly else frozenset()


def _names(poly: Poly) -> frozenset[str]:
    out: set[str] = set()
    for mono in poly:
        for text in mono:
            atom = _atom(text)
            out.update([text] if atom is None else (name for arg in atom[1] for name in _names(arg)))
    return frozenset(out)


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """The dimension with symbols replaced by name; names that are absent stay. Unknown stays unknown."""
    if isinstance(dim, int):
        return dim
    if dim.value in values:
        return values[dim.value or ""]
    poly = normal_form(dim)
    if poly is None:
        return dim
    try:
        return from_poly(_replace(poly, values))
    except (_Opaque, RecursionError):
        return unknown()


def _replace(poly: Poly, values: Mapping[str, Dim]) -> Poly:
    out: Poly = {}
    for mono, coef in poly.items():
        term = _const(coef)
        for text in mono:
            term = _times(term, _replace_atom(text, values))
        out = _plus(out, term)
    return out


def _replace_atom(text: str, values: Mapping[str, Dim]) -> Poly:
    atom = _atom(text)
    if atom is None:
        new = normal_form(values[text]) if text in values else {(text,): 1}
        if new is None:
            raise _Opaque
        return new
    name, args = atom
    new_args = [_replace(arg, values) for arg in args]
    if name == "floor":
        if not new_args[1]:
            raise _Opaque
        return _floor(*new_args)
    return _extreme(name, new_args)


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int | None:
    """The number under bindings of the symbols, None when one is missing or the dimension is unknown."""
    value = substitute(dim, bindings)
    return value if isinstance(value, int) else None
