"""Which nodes to do on permuted data so that the fewest Transposes are left: a minimum cut.

Each node is on one of two sides, as it is or permuted; a value that is made on one side and used on the other costs one
Transpose. Not here: the graph of the model (sink_transposes.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

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

        Blocking flows on shortest paths (Dinitz 1970). A graph library would take longer to import than this to run.
        """
        flow = 0
        while True:
            level = self._levels()
            if AS_IS not in level:
                return flow, set(level)
            rest = {key: list(edges) for key, edges in self.room.items()}
            while pushed := self._push(level, rest):
                flow += pushed

    def _levels(self) -> dict[Hashable, int]:
        """What the source still reaches, with its distance."""
        level: dict[Hashable, int] = {PERMUTED: 0}
        waiting: deque[Hashable] = deque([PERMUTED])
        while waiting:
            here = waiting.popleft()
            for there, room in self.room.get(here, {}).items():
                if room > 0 and there not in level:
                    level[there] = level[here] + 1
                    waiting.append(there)
        return level

    def _push(self, level: dict[Hashable, int], rest: dict[Hashable, list[Hashable]]) -> int:
        """Send flow along one shortest path; 0 when there is none left. `rest` holds the edges not yet given up."""
        path: list[Hashable] = [PERMUTED]
        while path[-1] != AS_IS:
            here = path[-1]
            while rest[here]:
                there = rest[here][-1]
                if self.room[here][there] > 0 and level.get(there) == level[here] + 1:
                    path.append(there)
                    break
                rest[here].pop()
            else:
                path.pop()
                if not path:
                    return 0
                rest[path[-1]].pop()
        steps = list(pairwise(path))
        amount = min(self.room[start][end] for start, end in steps)
        for start, end in steps:
            self.room[start][end] -= amount
            self.room[end][start] += amount
        return amount
