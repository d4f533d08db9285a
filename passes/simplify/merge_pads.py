"""Pads of a Pad."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass
from graphopt.passes.simplify._above import require_above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class MergePads(NodePass):
    """Pad(Pad(x, a), b) -> Pad(x, a + b), when both add the same constant."""

    name: ClassVar[str] = "merge-pads"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Pad",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        inner = require_above(m, "Pad")
        m.require(m.opset() >= 11, "before opset 11 the pads are attributes")
        x = inner.inputs[0]
        m.require(
            all(m.attr(pad, "mode", "constant") == "constant" for pad in (node, inner)), "it repeats inner values"
        )
        value, inner_value = (_value(m, pad) for pad in (node, inner))
        m.require(value == inner_value, f"it pads with {value} around {inner_value}")
        rank = m.rank(x)
        total = _pads(m, inner, rank), _pads(m, node, rank)
        m.require(min(map(min, total)) >= 0, "a pad is negative")
        pads = op.const([a + b for a, b in zip(*total, strict=True)], "pads")
        return op.Pad(x, pads, m.input(2, node))


def _value(m: Match, node: ir.Node) -> float:
    given = m.input(2, node)
    return float(m.scalar(given)) if given is not None else 0.0


def _pads(m: Match, node: ir.Node, rank: int) -> list[int]:
    """Begins and ends for all axes."""
    given = m.ints(m.input(1, node))
    axes = [m.axis(axis, rank) for axis in m.ints(m.input(3, node))] if m.input(3, node) is not None else range(rank)
    pads = [0] * (2 * rank)
    for index, axis in enumerate(axes):
        pads[axis] += given[index]
        pads[rank + axis] += given[len(given) // 2 + index]
    return pads
