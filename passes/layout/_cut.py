"""Which nodes to do on permuted data so that the fewest Transposes are left: a minimum cut.

Each node is on one of two sides, as it is or permuted; a value that is made on one side and used on the other costs one
Transpose. Not here: the graph of the model (sink_transposes.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

AS_IS = "as is"
PERMUTED = "permuted"

_NEVER = 1 << 100
"""Capacity of an edge that is never cut."""


@dataclass
class Problem:
    """Values with the side of their maker and users: AS_IS, PERMUTED or any other key, a node to decide on."""

    room: dict[Hashable, dict[Hashable, int]] = field(default_factory=dict)
    """What still fits through each edge; the reverse edges are there too."""
    values: int = 0

    def value(self, maker: Hashable, users: Iterable[Hashable], cost: int) -> None:
        """A value that costs `cost` when one of its users is on the other side than its maker."""
        users = list(users)
        self.values += 1
        leaving, entering = ("leaving", self.values), ("entering", self.values)
        if maker != AS_IS:
            self._edge(maker, leaving, cost)
            for user in users:
                self._edge(leaving, user, _NEVER)
        if maker != PERMUTED:
            self._edge(entering, maker, cost)
            for user in users:
                self._edge(user, entering, _NEVER)

    def _edge(self, start: Hashable, end: Hashable, capacity: int) -> None:
        if start == AS_IS or end == PERMUTED:
            return  # no flow comes from the sink or goes to the source
        forward, backward = self.room.setdefault(start, {}), self.room.setdefault(end, {})
        forward[end] = forward.get(end, 0) + capacity
        backward.setdefault(start, 0)

    def solve(self) -> tuple[int, set[Hashable]]:
        """The least cost, and the smallest set of nodes to permute that reaches it.

        Shortest augmenting paths (Edmonds and Karp 1972): there is one per Transpose or so, and a graph library would
        take longer to import than this to run.
        """
        flow = 0
        while True:
            came_from = self._search()
            if AS_IS not in came_from:
                return flow, set(came_from)
            path: list[Hashable] = [AS_IS]
            while path[-1] != PERMUTED:
                path.append(came_from[path[-1]])
            steps = list(zip(path[1:], path, strict=False))
            amount = min(self.room[start][end] for start, end in steps)
            for start, end in steps:
                self.room[start][end] -= amount
                self.room[end][start] += amount
            flow += amount

    def _search(self) -> dict[Hashable, Hashable]:
        """What the source still reaches, breadth first, each with where it was reached from."""
        came_from: dict[Hashable, Hashable] = {PERMUTED: None}
        waiting: deque[Hashable] = deque([PERMUTED])
        while waiting and AS_IS not in came_from:
            here = waiting.popleft()
            for there, room in self.room.get(here, {}).items():
                if room > 0 and there not in came_from:
                    came_from[there] = here
                    waiting.append(there)
        return came_from
