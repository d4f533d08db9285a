"""Concats of a Concat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._above import above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class MergeConcats(NodePass):
    """Concat(Concat(a, b), c) -> Concat(a, b, c), along one axis."""

    name: ClassVar[str] = "merge-concats"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Concat",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        inner = [above(node, value, "Concat") for value in node.inputs]
        if not any(inner):
            raise Uninteresting("no part is a Concat")
        rank = m.rank(node.outputs[0])
        axis = m.axis(m.attr(node, "axis", 1), rank)
        parts: list[ir.Value | None] = []
        for value, part in zip(node.inputs, inner, strict=True):
            assert value is not None
            owned = part is not None and len(value.uses()) == 1 and not value.is_graph_output()
            if part is not None and owned and m.axis(m.attr(part, "axis", 1), rank) == axis:
                parts.extend(part.inputs)
                m.interior.append(part)
            else:
                parts.append(value)
        m.require(m.interior, "the inner Concat has other users or another axis")
        return op.clone(node, parts)
