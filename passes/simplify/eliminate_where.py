"""Where whose choice is known or makes no difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.constants import const_array
from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateWhere(NodePass):
    """Where(all true, x, y) -> x, Where(all false, x, y) -> y, Where(c, x, x) -> x, where the shape stays."""

    name: ClassVar[str] = "eliminate-where"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Where",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        condition, x, y = node.inputs
        if x is not y:
            picked = _same_choice(m, condition)
            if picked is None:
                raise Uninteresting("the condition is not known to be the same everywhere")
            x = x if picked else y
        assert x is not None
        m.require(m.same_shape(x, node.outputs[0]), "the other operands broadcast it, or may")
        return x


def _same_choice(m: Match, condition: ir.Value | None) -> bool | None:
    """True or False when the condition is that everywhere, None when it is mixed, empty or unknown."""
    known = m.ctx.shapes.values(condition)
    if known is None:
        array = const_array(condition, m.ctx.max_bytes)
        if array is None or not array.size:
            return None
        return True if array.all() else None if array.any() else False
    return bool(known[0]) if known and all(isinstance(item, int) and item == known[0] for item in known) else None
