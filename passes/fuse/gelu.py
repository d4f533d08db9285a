"""Gelu from its parts, in whatever order an exporter multiplied them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass
from graphopt.passes.fuse._expr import Region, is_near, is_polynomial, number, polynomial, read_gated, scaled, times

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

_TANH = {1: math.sqrt(2 / math.pi), 3: math.sqrt(2 / math.pi) * 0.044715}


class FuseGelu(NodePass):
    """x * 0.5 * (1 + erf(x / sqrt(2))) -> Gelu(x).

    With tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)) in place of the erf it is Gelu(x, approximate="tanh").
    Another factor than 0.5 becomes a multiplication behind it.
    """

    name: ClassVar[str] = "fuse-gelu"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x, kind, factor = read_gated(m, ("Erf", "Tanh"), _read_gate)
        m.supports("Gelu", like=x)
        return times(op, op.Gelu(x, approximate="tanh" if kind == "Tanh" else None), factor)


def _read_gate(region: Region, gate: ir.Value, x: ir.Value) -> tuple[float, str]:
    """The gate as c * (1 + erf(x / sqrt 2)), or with tanh: 2c, and which.

    Raises:
        NoMatch: it is another function of x.
    """
    m = region.m
    bell, c = _one_plus(region, gate)
    kind = bell.op_type
    argument = bell.inputs[0]
    assert argument is not None
    wanted = {1: math.sqrt(0.5)} if kind == "Erf" else _TANH
    if not is_polynomial(m, polynomial(region, argument, x), wanted, x):
        raise NoMatch(f"the argument of {kind} is not that of a Gelu")
    return 2.0 * c, kind


def _one_plus(region: Region, gate: ir.Value) -> tuple[ir.Node, float]:
    """The Erf or Tanh node and c, for a gate c + c * erf(...)."""
    m = region.m
    add = region.node(gate, "Add")
    for summand, constant in (add.inputs, add.inputs[::-1]):
        c = number(constant)
        if c is None or summand is None:
            continue
        inner, factor = summand, 1.0
        if region.is_made_by(summand, "Mul", "Div", "Neg"):
            part = scaled(m, region.node(summand, "Mul", "Div", "Neg"))
            if part is not None:
                inner, factor = part
        if region.is_made_by(inner, "Erf", "Tanh") and is_near(m, factor, c, inner):
            return region.node(inner, "Erf", "Tanh"), c
    raise NoMatch("the gate is not 1 + erf or 1 + tanh")
