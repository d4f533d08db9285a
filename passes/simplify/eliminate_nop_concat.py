"""Concat and Split of one part, and empty parts of a Concat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateNopConcat(NodePass):
    """Concat(x) -> x; Split(x) into one part -> x; Concat(x, empty, y) -> Concat(x, y)."""

    name: ClassVar[str] = "eliminate-nop-concat"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Concat", "Split")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        parts = [value for value in node.inputs if value is not None]
        if node.op_type == "Split":
            if len(node.outputs) != 1:
                raise Uninteresting("several parts")
            return parts[0]
        if len(parts) == 1:
            return parts[0]
        axis = m.attr(node, "axis", 1)
        rank = max((len(value.shape) for value in parts if value.shape is not None), default=0)
        kept = [value for value in parts if not _is_empty(value, axis, rank)]
        if len(kept) == len(parts):
            raise Uninteresting("no part is empty")
        m.require(kept, "all parts are empty")
        return kept[0] if len(kept) == 1 else op.clone(node, kept)


def _is_empty(value: ir.Value, axis: int, rank: int) -> bool:
    if value.shape is None or len(value.shape) != rank or not -rank <= axis < rank:
        return False
    return value.shape[axis] == 0
