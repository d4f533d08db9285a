"""Opening an inner graph into the graph around it without two values of one name.

Sibling graphs may use the same names; what is moved gets a new name where another value has it too.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from graphopt.ir.sites import scopes, subgraphs

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context


class Names:
    """How often each value name and node name occurs in the model."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.values: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()
        for scope in scopes(ctx.model):
            self.values.update(name for value in scope.graph.inputs if (name := value.name))
            self.values.update(list(scope.graph.initializers))
            for node in scope.graph:
                self.nodes[node.name or ""] += 1
                self.values.update(name for value in node.outputs if (name := value.name))

    def make_unique(self, inner: ir.Graph) -> None:
        """Rename what stands in `inner` under a name that occurs twice."""
        for value in list(inner.initializers.values()):
            self._value(value)
        for node in inner:
            if self.nodes[node.name or ""] > 1:
                self.nodes[node.name or ""] -= 1
                node.name = self._free_node_name(node.name or node.op_type)
            for value in node.outputs:
                self._value(value)
            for _, graph in subgraphs(node):
                self.make_unique(graph)

    def _free_node_name(self, base: str) -> str:
        number = 1
        while self.nodes[f"{base}_{number}"]:
            number += 1
        self.nodes[f"{base}_{number}"] = 1
        return f"{base}_{number}"

    def _value(self, value: ir.Value) -> None:
        name = value.name or ""
        if name and self.values[name] > 1:
            self.values[name] -= 1
            value.name = self.ctx.rewriter.fresh_name(name)
