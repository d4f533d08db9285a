"""Shape ops that keep the shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateNopReshape(NodePass):
    """Reshape(x) -> x, and so for Flatten, Squeeze, Unsqueeze, Expand and Tile, where the shape stays the same."""

    name: ClassVar[str] = "eliminate-nop-reshape"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x, out = node.inputs[0], node.outputs[0]
        before, after = m.ctx.shapes.dims(x), m.ctx.shapes.dims(out)
        if x is None or before is None or after is None:
            raise Uninteresting("a rank is unknown")
        if len(before) != len(after) or any(_differ(a, b) for a, b in zip(before, after, strict=True)):
            raise Uninteresting("the shape changes")
        if not m.same_shape(x, out):
            raise NoMatch(f"{[*map(str, before)]} and {[*map(str, after)]} are not provably the same shape")
        return x


def _differ(a: object, b: object) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b
