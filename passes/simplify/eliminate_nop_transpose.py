"""Transposes that move nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateNopTranspose(NodePass):
    """Transpose(x, perm=[0, 1, ...]) -> x."""

    name: ClassVar[str] = "eliminate-nop-transpose"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Transpose",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x = node.inputs[0]
        perm = m.attr(node, "perm")
        if perm is None:
            perm = tuple(range(m.rank(x)))[::-1]
        if x is None or list(perm) != list(range(len(perm))):
            raise Uninteresting("it moves axes")
        return x
