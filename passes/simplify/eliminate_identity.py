"""Identity nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateIdentity(NodePass):
    """Identity(x) -> x.

    One stays: where a graph output needs a name of its own for a value that is an input, an initializer, an outer
    value or another output.
    """

    name: ClassVar[str] = "eliminate-identity"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Identity",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x, out = node.inputs[0], node.outputs[0]
        if x is None:
            raise Uninteresting("the input is absent")
        if out.is_graph_output():
            producer = x.producer()
            movable = producer is not None and producer.graph is node.graph and not x.is_graph_output()
            m.require(movable, "it gives a graph output its name")
        return x
