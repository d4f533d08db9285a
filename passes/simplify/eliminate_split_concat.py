"""Parts that are joined and parted again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._above import above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateSplitConcat(NodePass):
    """Concat(Split(x)) -> x; Split(Concat(a, b)) -> a, b; Slice of the one part a of Concat(a, b) -> a."""

    name: ClassVar[str] = "eliminate-split-concat"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Concat", "Split", "Slice")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value | list[ir.Value | None]:
        if node.op_type == "Concat":
            return _joined_again(m, node)
        inner = above(node, node.inputs[0], "Concat")
        if inner is None:
            raise Uninteresting("no Concat in front of it")
        return _parted_again(m, node, inner) if node.op_type == "Split" else _one_part(m, node, inner)


def _joined_again(m: Match, node: ir.Node) -> ir.Value:
    split = above(node, node.inputs[0], "Split")
    if split is None or list(node.inputs) != list(split.outputs):
        raise Uninteresting("not all parts of a Split in their order")
    x = split.inputs[0]
    assert x is not None
    rank = m.rank(x)
    same = m.axis(m.attr(node, "axis", 1), rank) == m.axis(m.attr(split, "axis", 0), rank)
    m.require(same, "Split and Concat go along different axes")
    return x


def _parted_again(m: Match, node: ir.Node, concat: ir.Node) -> list[ir.Value | None]:
    rank = m.rank(concat.outputs[0])
    axis = m.axis(m.attr(concat, "axis", 1), rank)
    m.require(m.axis(m.attr(node, "axis", 0), rank) == axis, "Concat and Split go along different axes")
    m.require(len(node.outputs) == len(concat.inputs), "they do not have the same parts")
    for part, output in zip(concat.inputs, node.outputs, strict=True):
        sizes = m.dims(part)[axis], m.dims(output)[axis]
        m.require(m.equal(*sizes), f"a part of size {sizes[0]} is taken as {sizes[1]}")
    return list(concat.inputs)


def _one_part(m: Match, node: ir.Node, concat: ir.Node) -> ir.Value:
    rank = m.rank(concat.outputs[0])
    axis = m.axis(m.attr(concat, "axis", 1), rank)
    m.require(m.opset() >= 10, "before opset 10 the bounds are attributes")
    axes = m.ints(m.input(3)) if m.input(3) is not None else tuple(range(len(m.ints(m.input(1)))))
    m.require([m.axis(a, rank) for a in axes] == [axis], "it cuts along another axis than the Concat joins")
    m.require(m.input(4) is None or m.ints(m.input(4)) == (1,), "its step is not 1")
    (start,), (end,) = m.ints(m.input(1)), m.ints(m.input(2))
    sizes = [m.dim(part, axis) for part in concat.inputs]
    total = sum(sizes)
    start, end, _ = slice(start, end).indices(total)
    at = 0
    for part, size in zip(concat.inputs, sizes, strict=True):
        if (at, at + size) == (start, end) and size:
            assert part is not None
            return part
        at += size
    raise NoMatch("it takes more or less than one part")
