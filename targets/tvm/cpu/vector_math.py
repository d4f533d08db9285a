"""Exponentials and their relatives as polynomials, which vectors evaluate lane by lane.

LLVM calls the scalar C library once per lane for them. Single precision only; errors are a few ulp:

    exp                Cephes' expf: 2**n times a polynomial of degree 6 on [-ln(2)/2, ln(2)/2]
    tanh, erf          rational functions of degree 13/6 and 13/8 on a clamped argument, as in Eigen
    sigmoid            1 / (1 + exp(-x))

NaN stays NaN; exp is 0 below -87.3, where floats are no longer normal, and infinity beyond the largest float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm_ffi import structural_map

from graphopt.targets.tvm.cpu.loops import Expr

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# From the smallest normal result to beyond the largest finite one, which 2**127 * 2 overflows.
_EXP_RANGE = (-87.33654, 89.0)
_TANH = (
    9.0,
    (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)
_ERF = (
    4.0,
    (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02),
)


def use_polynomials(function: Any) -> Any:
    """The function with calls of the operators above replaced."""

    def replace(call: Any) -> Any:
        make = _REPLACEMENTS.get(getattr(call.op, "name", ""))
        return make(call.args[0]) if make is not None and str(call.ty.dtype) == "float32" else call

    return function.with_body(structural_map(function.body, [(tvm.ir.Call, replace)]))


def exp(x: Expr) -> Expr:
    """e**x."""

    def body(x: Expr) -> Expr:
        clamped = tirx.max(tirx.min(x, _f(_EXP_RANGE[1])), _f(_EXP_RANGE[0]))
        return _let("n", tirx.floor(clamped * _f(1.44269504088896341) + _f(0.5)), lambda n: scaled(x, clamped, n))

    def scaled(x: Expr, clamped: Expr, n: Expr) -> Expr:
        reduced = clamped - n * _f(0.693359375) - n * _f(-2.12194440e-4)
        # 2**n in two factors: n is 128 where results are largest, and 2**128 alone is no float.
        half = tirx.Var("h", "int32")
        powers = [tirx.reinterpret("float32", (part + 127) << 23) for part in (half, n.astype("int32") - half)]
        value = _let("r", reduced, lambda r: (_horner(_EXP, r) * r * r + r + _f(1.0)) * powers[0] * powers[1])
        value = tirx.Let(half, n.astype("int32") >> 1, value)
        return tirx.Select(x >= _f(_EXP_RANGE[0]), value, tirx.Select(x < _f(0.0), _f(0.0), x))

    return _let("x", x, body)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x)."""
    return _f(1.0) / (_f(1.0) + exp(_f(0.0) - x))


def _rational(shape: tuple[float, Sequence[float], Sequence[float]]) -> Callable[[Expr], Expr]:
    limit, numerator, denominator = shape

    def clamp(x: Expr) -> Expr:
        return _let("c", tirx.max(_f(-limit), tirx.min(_f(limit), x)), quotient)

    def quotient(c: Expr) -> Expr:
        return _let("s", c * c, lambda s: c * _horner(numerator, s) / _horner(denominator, s))

    return clamp


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    value: Expr = _f(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _f(coefficient)
    return value


def _let(name: str, value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    var = tirx.Var(name, "float32")
    return tirx.Let(var, value, body(var))


def _f(value: float) -> Expr:
    return tirx.const(value, "float32")


_REPLACEMENTS: dict[str, Callable[[Expr], Expr]] = {
    "tirx.exp": exp,
    "tirx.sigmoid": sigmoid,
    "tirx.tanh": _rational(_TANH),
    "tirx.erf": _rational(_ERF),
}
