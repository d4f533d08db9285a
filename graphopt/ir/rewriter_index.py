"""Where each op stands: an index from (domain, op type) to nodes, in the order they joined the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from graphopt.ir.sites import has_subgraphs

if TYPE_CHECKING:
    from graphopt import ir


class OpIndex:
    """Kept by the Rewriter as nodes come and go, so that a pass meets only the ops it asks for."""

    def __init__(self, graphs: Iterable[ir.Graph]) -> None:
        self._nodes: dict[tuple[str, str], dict[ir.Node, None]] = {}
        self._with_subgraphs: set[ir.Node] = set()
        for graph in graphs:
            for node in graph:
                self.add(node)

    def add(self, node: ir.Node) -> None:
        self._nodes.setdefault((node.domain, node.op_type), {})[node] = None
        if has_subgraphs(node):
            self._with_subgraphs.add(node)

    def remove(self, node: ir.Node) -> None:
        self._nodes.get((node.domain, node.op_type), {}).pop(node, None)
        self._with_subgraphs.discard(node)

    def of(self, domain: str, *op_types: str) -> list[ir.Node]:
        """The nodes of these ops now, as a list that survives mutation."""
        return [node for op_type in op_types for node in self._nodes.get((domain, op_type), ())]

    @property
    def has_subgraphs(self) -> bool:
        """Whether a node of the model has any."""
        return bool(self._with_subgraphs)

    def has(self, op_types: Collection[str]) -> bool:
        """Whether there is a node of one of these types, of whatever domain."""
        return any(op_type in op_types for (_, op_type), nodes in self._nodes.items() if nodes)

    def count(self) -> int:
        """How many nodes the model has, subgraphs and functions counted."""
        return sum(map(len, self._nodes.values()))

    def ops(self) -> dict[tuple[str, str], int]:
        """How many nodes of each (domain, op type) there are."""
        return {key: len(nodes) for key, nodes in self._nodes.items() if nodes}
