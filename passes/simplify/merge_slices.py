"""Slices of a Slice."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass
from graphopt.passes.simplify._above import require_above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

Cut = tuple[int, int, int]
"""start, end, step of one axis."""


class MergeSlices(NodePass):
    """Slice(Slice(x, a), b) -> Slice(x, a and b), for constant bounds."""

    name: ClassVar[str] = "merge-slices"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Slice",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        inner = require_above(m, "Slice")
        m.require(m.opset() >= 10, "before opset 10 the bounds are attributes")
        x = inner.inputs[0]
        assert x is not None
        cuts = _cuts(m, inner)
        for axis, cut in _cuts(m, node).items():
            cuts[axis] = _composed(cuts[axis], cut, x, axis) if axis in cuts else cut
        axes = sorted(cuts)
        columns = [[cuts[axis][at] for axis in axes] for at in range(3)]
        steps = [op.const(columns[2], "steps")] if any(step != 1 for step in columns[2]) else []
        bounds = [
            op.const(columns[0], "starts"),
            op.const(columns[1], "ends"),
            op.const(axes, "axes"),
        ]
        return op.Slice(x, *bounds, *steps)


_TOP = 2**63 - 1
"""The largest bound; sums and products of bounds stop there."""


def _cuts(m: Match, node: ir.Node) -> dict[int, Cut]:
    starts, ends = m.ints(m.input(1, node)), m.ints(m.input(2, node))
    axes = m.ints(m.input(3, node)) if m.input(3, node) is not None else tuple(range(len(starts)))
    steps = m.ints(m.input(4, node)) if m.input(4, node) is not None else (1,) * len(starts)
    rank = m.rank(node.inputs[0])
    names = [m.axis(axis, rank) for axis in axes]
    m.require(len(set(names)) == len(names), "an axis is named twice")
    return dict(zip(names, zip(starts, ends, steps, strict=True), strict=True))


def _composed(first: Cut, second: Cut, x: ir.Value, axis: int) -> Cut:
    """x[first][second] along one axis as one cut; both steps must be positive."""
    (s1, e1, t1), (s2, e2, t2) = first, second
    if t1 < 0 or t2 < 0:
        raise NoMatch("a step is negative")
    dim = x.shape[axis] if x.shape is not None else None
    if isinstance(dim, int):
        s1, e1, _ = slice(s1, e1, t1).indices(dim)
        s2, e2, _ = slice(s2, e2, t2).indices(len(range(s1, e1, t1)))
    elif min(s1, e1, s2, e2) < 0:
        raise NoMatch("a bound counts from the end of a dim that is not static")
    start = min(s1 + s2 * t1, _TOP)
    return start, max(start, min(e1, s1 + e2 * t1)), min(t1 * t2, _TOP)
