"""The symbolic dimension that inference puts on values: an `ir.SymbolicDim` whose arithmetic is that of `dims`.

The inference package computes with Python operators, so its rules get the normal form instead of sympy. Importing
this module imports onnx_ir; `dims` does so on first use.
"""

from __future__ import annotations

from typing import Any

from graphopt import ir
from graphopt.analysis import dims


class Size(ir.SymbolicDim):
    """A symbol or expression in canonical text, or unknown (value None)."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        return dims.add(self, other)

    def __radd__(self, other: Any) -> Any:
        return dims.add(other, self)

    def __sub__(self, other: Any) -> Any:
        return dims.subtract(self, other)

    def __rsub__(self, other: Any) -> Any:
        return dims.subtract(other, self)

    def __mul__(self, other: Any) -> Any:
        return dims.multiply(self, other)

    def __rmul__(self, other: Any) -> Any:
        return dims.multiply(other, self)

    def __neg__(self) -> Any:
        return dims.multiply(self, -1)

    def __floordiv__(self, other: Any) -> Any:
        return dims.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return dims.floor_divide(other, self)

    def __mod__(self, other: Any) -> Any:
        return dims.subtract(self, dims.multiply(other, dims.floor_divide(self, other)))

    def __truediv__(self, other: Any) -> Any:
        return Quotient(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return Quotient(other, self)

    def __floor__(self) -> Any:
        return self

    def __ceil__(self) -> Any:
        return self

    def __trunc__(self) -> Any:
        return self if dims.nonnegative(self) else dims.unknown()


class Quotient:
    """An exact quotient of dimensions, of use only through `math.floor`, `math.ceil` and `//`."""

    def __init__(self, numerator: Any, denominator: Any) -> None:
        self.numerator = numerator
        self.denominator = denominator

    def __floor__(self) -> Any:
        return dims.floor_divide(self.numerator, self.denominator)

    def __ceil__(self) -> Any:
        return dims.ceil_divide(self.numerator, self.denominator)

    def __floordiv__(self, other: Any) -> Any:
        return dims.floor_divide(self.numerator, dims.multiply(self.denominator, other))
