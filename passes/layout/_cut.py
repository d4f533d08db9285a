"""Which nodes to do on permuted data so that the fewest Transposes are left: a minimum cut.

Each node is on one of two sides, as it is or permuted; a value that is made on one side and used on the other costs one
Transpose. Not here: the graph of the model (sink_transposes.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

AS_IS = "as is"
PERMUTED = "permuted"


@dataclass
class Problem:
    """Values with the side of their maker and users: AS_IS, PERMUTED or any other key, a node to decide on."""

    edges: list[tuple[Hashable, Hashable, int | None]] = field(default_factory=list)
    values: int = 0

    def value(self, maker: Hashable, users: Iterable[Hashable], cost: int) -> None:
        """A value that costs `cost` when one of its users is on the other side than its maker."""
        users = list(users)
        self.values += 1
        leaving, entering = ("leaving", self.values), ("entering", self.values)
        if maker != AS_IS:
            self.edges.append((maker, leaving, cost))
            self.edges.extend((leaving, user, None) for user in users if user != PERMUTED)
        if maker != PERMUTED:
            self.edges.append((entering, maker, cost))
            self.edges.extend((user, entering, None) for user in users if user != AS_IS)

    def solve(self) -> tuple[int, set[Hashable]]:
        """The least cost, and the smallest set of nodes to permute that reaches it."""
        import networkx as nx
        from networkx.algorithms.flow import dinitz

        graph = nx.DiGraph()
        graph.add_nodes_from((AS_IS, PERMUTED))
        for start, end, capacity in self.edges:
            if capacity is None:
                graph.add_edge(start, end)
            elif graph.has_edge(start, end):
                graph[start][end]["capacity"] += capacity
            else:
                graph.add_edge(start, end, capacity=capacity)
        residual = dinitz(graph, PERMUTED, AS_IS)
        reached: set[Hashable] = {PERMUTED}
        stack: list[Hashable] = [PERMUTED]
        while stack:
            for neighbour, edge in residual[stack.pop()].items():
                if neighbour not in reached and edge["flow"] < edge["capacity"]:
                    reached.add(neighbour)
                    stack.append(neighbour)
        return int(residual.graph["flow_value"]), reached
