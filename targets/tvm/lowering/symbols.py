"""Symbolic dims of the shape analysis as TVM expressions: one TVM variable per symbol and function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.analysis import dims, polynomial
from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.polynomial import Poly
    from graphopt.analysis.shapes import Shapes


UNLIMITED = 10**9
"""No tensor has such a size."""


class DimExprs:
    """The symbols of one Relax function.

    The broadcast of two different dims is taken to be the first: operands are checked against it when they are read.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._vars: dict[str, Any] = {}

    def expr(self, dim: Dim) -> Any:
        """An int64 expression.

        Raises:
            GraphoptError: the dim is unknown, or no expression over sizes.
        """
        from tvm import tirx

        if isinstance(dim, int):
            return tirx.IntImm("int64", dim)
        poly = dims.normal_form(dim)
        if poly is None or dims.is_unknown(dim):
            raise GraphoptError(f"TVM cannot express the dim {dim}; bind it with --dim or --input-shapes")
        return self._poly(poly)

    def _poly(self, poly: Poly) -> Any:
        from tvm import tirx

        total: Any = None
        for mono, factor in sorted(poly.items()):
            term: Any = None
            for atom in mono:
                item = self._atom(atom)
                term = item if term is None else term * item
            term = tirx.IntImm("int64", factor) if term is None else term if factor == 1 else term * factor
            total = term if total is None else total + term
        return tirx.IntImm("int64", 0) if total is None else total

    def _atom(self, text: str) -> Any:
        from tvm import tirx

        call = polynomial.parse_atom(text)
        if call is None:
            both = self._shapes.broadcast_of(text)
            if both is not None:
                return self.expr(both[0])
            if text not in self._vars:
                self._vars[text] = tirx.Var(text, "int64")
            return self._vars[text]
        name, args = call
        parts = [self._poly(arg) for arg in args]
        if name == "floor":
            return tirx.floordiv(parts[0], parts[1])
        if name == "min":  # exporters write huge numbers for "to the end"; memory would be planned for them
            parts = [p for p in parts if not isinstance(p, tirx.IntImm) or p.value < UNLIMITED] or parts[:1]
        out = parts[0]
        for part in parts[1:]:
            out = tirx.max(out, part) if name == "max" else tirx.min(out, part)
        return out
