"""Polynomials with integer coefficients over symbols, `floor`, `max` and `min`: the normal form of dimensions.

A monomial is a sorted tuple of atoms, an atom is a symbol or the canonical text of a function of polynomials. The
public arithmetic on dimensions is `dims`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import gcd
from typing import TypeAlias

Monomial: TypeAlias = tuple[str, ...]
Poly: TypeAlias = dict[Monomial, int]

# Longer expressions become fresh symbols: nothing useful is proved about them and arithmetic on them is slow.
MAX_TEXT = 400
MAX_TERMS = 64

# Symbols that stand for unknown elements of integer tensors start so. Unlike sizes they may be negative.
DATA_PREFIX = "_v"

_TOKEN = re.compile(r"\s*(?:(\d+)|([^\W\d][\w.]*)|(//|\*\*|[-+*/%(),]))")


class Opaque(Exception):
    """The text is no expression that the normal form covers, or it grew too large."""


# ---- polynomials ---------------------------------------------------------------------------------------------------


def const(value: int) -> Poly:
    """The constant polynomial."""
    return {(): value} if value else {}


def as_const(poly: Poly) -> int | None:
    """The number when the polynomial is constant."""
    if not poly:
        return 0
    return poly[()] if len(poly) == 1 and () in poly else None


def plus(a: Poly, b: Poly, factor: int = 1) -> Poly:
    """a + factor * b."""
    out = dict(a)
    for mono, coef in b.items():
        total = out.get(mono, 0) + factor * coef
        if total:
            out[mono] = total
        else:
            out.pop(mono, None)
    return out


def times(a: Poly, b: Poly) -> Poly:
    """a * b.

    Raises:
        Opaque: the product has too many terms.
    """
    if len(a) * len(b) > MAX_TERMS * 4:
        raise Opaque
    out: Poly = {}
    for mono_a, coef_a in a.items():
        for mono_b, coef_b in b.items():
            mono = tuple(sorted(mono_a + mono_b)) if mono_a and mono_b else mono_a or mono_b
            out[mono] = out.get(mono, 0) + coef_a * coef_b
    return {mono: coef for mono, coef in out.items() if coef}


def _content(poly: Poly) -> int:
    return gcd(*poly.values()) if poly else 0


def _without(poly: Poly, atom: str) -> Poly:
    """The polynomial divided by an atom that every monomial has."""
    return {_over(mono, (atom,)) or (): coef for mono, coef in poly.items()}


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
        quotient = plus(quotient, term)
        rest = plus(rest, times(term, den), -1)
    return None


def text_of(poly: Poly) -> str:
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


def floor(num: Poly, den: Poly) -> Poly:
    """The polynomial of `floor(num / den)`."""
    exact = _exact(num, den)
    if exact is not None:
        return exact
    divisor = as_const(den)
    if divisor is None:
        common = [atom for atom in dict.fromkeys(sorted(den)[0]) if all(atom in m for m in (*num, *den))]
        for atom in common:
            num, den = _without(num, atom), _without(den, atom)
        content = gcd(_content(num), _content(den))
        num = {m: c // content for m, c in num.items()}
        den = {m: c // content for m, c in den.items()}
        if common and as_const(den) is not None:
            return floor(num, den)
        return {(f"floor(({text_of(num)})/({text_of(den)}))",): 1}
    if divisor == 0:
        raise Opaque
    if divisor < 0:
        num, divisor = {m: -c for m, c in num.items()}, -divisor
    whole = {m: c // divisor for m, c in num.items() if c // divisor}
    rest = {m: c % divisor for m, c in num.items() if c % divisor}
    constant = rest.pop((), 0)
    if not rest:
        return whole
    # floor((g*X + c) / (g*q)) = floor((X + floor(c/g)) / q)
    shared = gcd(_content(rest), divisor)
    inner = plus({m: c // shared for m, c in rest.items()}, const(constant // shared))
    nested = _nested_floor(inner)
    if nested is not None:
        # floor((floor(n/d) + c) / q) = floor((n + c*d) / (d*q))
        return plus(whole, floor(nested[0], const(nested[1] * (divisor // shared))))
    return plus(whole, {(f"floor(({text_of(inner)})/{divisor // shared})",): 1})


def ceiling(num: Poly, den: Poly) -> Poly:
    """The polynomial of `ceil(num / den)`."""
    divisor = as_const(den)
    if divisor is not None and divisor > 0:
        return floor(plus(num, const(divisor - 1)), den)
    return plus({}, floor(plus({}, num, -1), den), -1)


def _nested_floor(poly: Poly) -> tuple[Poly, int] | None:
    """Numerator and divisor of `floor(n/d) + c` as one quotient, None for anything else."""
    mono = next((m for m in poly if m), ())
    if len(mono) != 1 or poly[mono] != 1 or len(poly) - (() in poly) != 1:
        return None
    atom = parse_atom(mono[0])
    divisor = as_const(atom[1][1]) if atom and atom[0] == "floor" else None
    if atom is None or divisor is None:
        return None
    return plus(atom[1][0], const(poly.get((), 0) * divisor)), divisor


def extreme(name: str, args: Iterable[Poly]) -> Poly:
    """The polynomial of `max(...)` or `min(...)`, without the arguments that another one dominates."""
    sign = 1 if name == "max" else -1
    flat: list[Poly] = []
    for arg in args:
        mono = next(iter(arg)) if len(arg) == 1 else ()
        nested = parse_atom(mono[0]) if len(mono) == 1 and arg[mono] == 1 else None
        flat.extend(nested[1] if nested and nested[0] == name else [arg])
    kept: list[Poly] = []
    for arg in flat:
        if any(is_nonnegative(plus(other, arg, -1), sign) for other in kept):
            continue
        kept = [other for other in kept if not is_nonnegative(plus(arg, other, -1), sign)]
        kept.append(arg)
    if len(kept) == 1:
        return kept[0]
    return {(f"{name}({', '.join(sorted(text_of(arg) for arg in kept))})",): 1}


@lru_cache(maxsize=16384)
def parse_atom(text: str) -> tuple[str, list[Poly]] | None:
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
    atom = parse_atom(text)
    if atom is None:
        return not text.startswith(DATA_PREFIX)
    name, args = atom
    if name == "max":
        return any(is_nonnegative(arg) for arg in args)
    return all(is_nonnegative(arg) for arg in args)


def is_nonnegative(poly: Poly, sign: int = 1) -> bool:
    """Whether `sign * poly >= 0` follows from every size being at least 0."""
    return all(sign * coef >= 0 and all(_atom_nonnegative(atom) for atom in mono) for mono, coef in poly.items())


# ---- text to polynomial --------------------------------------------------------------------------------------------


class _Parser:
    """Recursive descent over `+ - * / // % **`, `floor`, `ceiling`, `max`, `min`, `mod`; quotients stay pairs."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise Opaque
        text = text.rstrip()
        self.tokens: list[str] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise Opaque
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
            raise Opaque

    def parse(self) -> Poly:
        value = _integral(self.rational())
        if self.token:
            raise Opaque
        return value

    def rational(self) -> tuple[Poly, Poly]:
        num, den = self.term()
        while self.token in ("+", "-"):
            factor = 1 if self.take() == "+" else -1
            other_num, other_den = self.term()
            if den == other_den:
                num = plus(num, other_num, factor)
            else:
                num = plus(times(num, other_den), times(other_num, den), factor)
                den = times(den, other_den)
        return num, den

    def term(self) -> tuple[Poly, Poly]:
        num, den = self.power()
        while self.token in ("*", "/", "//", "%"):
            op = self.take()
            other_num, other_den = self.power()
            if op == "*":
                num, den = times(num, other_num), times(den, other_den)
                continue
            if not other_num:
                raise Opaque
            if op == "/":
                num, den = times(num, other_den), times(den, other_num)
            elif op == "//":
                num, den = floor(times(num, other_den), times(den, other_num)), const(1)
            else:
                num, den = _modulo(_integral((num, den)), _integral((other_num, other_den))), const(1)
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
        exponent = as_const(_integral(self.power()))
        if exponent is None or not 0 <= exponent <= 8:
            raise Opaque
        out_num, out_den = const(1), const(1)
        for _ in range(exponent):
            out_num, out_den = times(out_num, num), times(out_den, den)
        return out_num, out_den

    def primary(self) -> tuple[Poly, Poly]:
        token = self.take()
        if token == "(":
            value = self.rational()
            self.expect(")")
            return value
        if token.isdigit():
            return const(int(token)), const(1)
        if not (token[:1].isalpha() or token[:1] == "_"):
            raise Opaque
        if self.token != "(":
            return {(token,): 1}, const(1)
        return self.call(token.lower()), const(1)

    def call(self, name: str) -> Poly:
        self.take()
        args = [self.rational()]
        while self.token == ",":
            self.take()
            args.append(self.rational())
        self.expect(")")
        if name == "floor" and len(args) == 1:
            return floor(*args[0])
        if name == "ceiling" and len(args) == 1:
            return ceiling(*args[0])
        if name in ("max", "min"):
            return extreme(name, [_integral(arg) for arg in args])
        if name == "mod" and len(args) == 2:
            return _modulo(_integral(args[0]), _integral(args[1]))
        raise Opaque


def _integral(value: tuple[Poly, Poly]) -> Poly:
    quotient = _exact(*value)
    if quotient is None:
        raise Opaque
    return quotient


def _modulo(a: Poly, b: Poly) -> Poly:
    return plus(a, times(b, floor(a, b)), -1)


@lru_cache(maxsize=65536)
def parse(text: str) -> Poly | None:
    """The polynomial of a text, None when the normal form does not cover it. Treat the result as read-only."""
    if text.isidentifier():
        return {(text,): 1}
    try:
        return _Parser(text).parse()
    except (Opaque, RecursionError):
        return None


# ---- symbols ----------------------------------------------------------------------------------------------------


def names_of(poly: Poly) -> frozenset[str]:
    """Every symbol, also inside atoms."""
    out: set[str] = set()
    for mono in poly:
        for text in mono:
            atom = parse_atom(text)
            out.update([text] if atom is None else (name for arg in atom[1] for name in names_of(arg)))
    return frozenset(out)


def replace(poly: Poly, values: Mapping[str, Poly]) -> Poly:
    """The polynomial with symbols replaced by polynomials.

    Raises:
        Opaque: a divisor became zero, or the result grew too large.
    """
    out: Poly = {}
    for mono, coef in poly.items():
        term = const(coef)
        for text in mono:
            term = times(term, _replace_atom(text, values))
        out = plus(out, term)
    return out


def _replace_atom(text: str, values: Mapping[str, Poly]) -> Poly:
    atom = parse_atom(text)
    if atom is None:
        return values.get(text, {(text,): 1})
    name, args = atom
    new_args = [replace(arg, values) for arg in args]
    if name == "floor":
        if not new_args[1]:
            raise Opaque
        return floor(*new_args)
    return extreme(name, new_args)
