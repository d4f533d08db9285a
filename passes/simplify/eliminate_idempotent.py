"""Ops applied twice, and ops that undo each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


# f(f(x)) = f(x)
_IDEMPOTENT = frozenset({"Relu", "Abs", "Ceil", "Floor", "Round", "Sign"})
# f(f(x)) = x
_INVOLUTION = frozenset({"Neg", "Not", "BitwiseNot"})


class EliminateIdempotent(NodePass):
    """Floor(Floor(x)) -> Floor(x), Neg(Neg(x)) -> x: the second op has nothing to do, or undoes the first."""

    name: ClassVar[str] = "eliminate-idempotent"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = tuple(sorted(_IDEMPOTENT | _INVOLUTION))

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x = node.inputs[0]
        inner = x.producer() if x is not None else None
        if inner is None or inner.domain != "" or inner.graph is not node.graph:
            raise Uninteresting("no op in front of it")
        assert x is not None
        if node.op_type in _INVOLUTION and inner.op_type == node.op_type:
            source = inner.inputs[0]
            assert source is not None
            return source
        if node.op_type in _IDEMPOTENT and inner.op_type == node.op_type:
            return x
        raise Uninteresting(f"{inner.op_type} in front of it")
