"""Transposes of a Transpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass
from graphopt.passes.simplify._above import above, require_above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class MergeTransposes(NodePass):
    """Transpose(Transpose(x, p), q) -> Transpose(x, p[q]), or x when that moves nothing."""

    name: ClassVar[str] = "merge-transposes"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Transpose",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        inner = above(node, node.inputs[0], "Transpose") or require_above(m, "Transpose")
        x = inner.inputs[0]
        assert x is not None
        first, second = _perm(m, inner), _perm(m, node)
        perm = [first[axis] for axis in second]
        if perm == list(range(len(perm))):
            return x
        require_above(m, "Transpose")
        return op.Transpose(x, perm=perm)


def _perm(m: Match, node: ir.Node) -> tuple[int, ...]:
    given = m.attr(node, "perm")
    return tuple(given) if given is not None else tuple(range(m.rank(node.inputs[0])))[::-1]
