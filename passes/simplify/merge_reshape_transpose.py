"""A Transpose between two reshapes, the first of which only joins neighbouring dims."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.analysis import dims
from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._above import above
from graphopt.passes.simplify._target_shape import target_shape

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

    Dims = tuple[int | ir.SymbolicDim, ...]

_SHAPERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class MergeReshapeTranspose(NodePass):
    """Reshape(Transpose(Reshape(x))) -> Transpose(x), or -> Reshape(Transpose(x)): joined dims move as one block."""

    name: ClassVar[str] = "merge-reshape-transpose"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("merge-reshapes", "merge-transposes")
    ops: ClassVar[tuple[str, ...]] = _SHAPERS

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        transpose = above(node, node.inputs[0], "Transpose")
        first = above(node, transpose.inputs[0], *_SHAPERS) if transpose is not None else None
        if transpose is None or first is None:
            raise Uninteresting("not a Transpose between two reshapes")
        m.sole_use(transpose.outputs[0])
        m.sole_use(first.outputs[0])
        m.interior = [transpose, first]
        x = first.inputs[0]
        assert x is not None
        groups = _groups(m, m.dims(x), m.dims(first.outputs[0]))
        given = m.attr(transpose, "perm") or tuple(range(len(groups)))[::-1]
        perm = [axis for group in given for axis in groups[group]]
        moved = op.Transpose(x, perm=perm) if perm != sorted(perm) else x
        if m.same_shape(moved, node.outputs[0]):
            return moved
        return op.Reshape(moved, op.const(target_shape(m, moved, node.outputs[0], infer=False), "shape"))


def _groups(m: Match, before: Dims, after: Dims) -> list[list[int]]:
    """For each dim of `after`, the neighbouring axes of `before` whose product it is.

    Raises:
        NoMatch: some dim is no such product.
    """
    groups: list[list[int]] = []
    at = 0
    for want in after:
        group: list[int] = []
        size: int | ir.SymbolicDim = 1
        while not m.equal(size, want):
            if at == len(before):
                raise NoMatch(f"{[*map(str, after)]} does not join neighbouring dims of {[*map(str, before)]}")
            size = dims.multiply(size, before[at])
            group.append(at)
            at += 1
        groups.append(group)
    # What is left has size 1 in total, or the shapes would not hold equally many elements.
    if groups:
        groups[-1].extend(range(at, len(before)))
    elif before:
        raise NoMatch("a scalar has no dims to join")
    return groups
