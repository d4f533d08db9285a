"""Chains of ops that only change the shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._above import above
from graphopt.passes.simplify._target_shape import target_shape

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

_SHAPERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class MergeReshapes(NodePass):
    """Reshape(Reshape(x, s), t) -> Reshape(x, t), and so for chains with Flatten, Squeeze, Unsqueeze; or x."""

    name: ClassVar[str] = "merge-reshapes"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = _SHAPERS

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        chain = _chain(node)
        if not chain:
            raise Uninteresting("no shape op in front of it")
        out = node.outputs[0]
        for inner in reversed(chain):
            source = inner.inputs[0]
            assert source is not None
            if m.same_shape(source, out):
                return source
        owned = chain
        for index, inner in enumerate(chain):
            if len(inner.outputs[0].uses()) != 1 or inner.outputs[0].is_graph_output():
                owned = chain[:index]
                break
        if not owned:
            m.sole_use(chain[0].outputs[0])
        reason: NoMatch | None = None
        for end in range(len(owned), 0, -1):
            m.interior = owned[:end]
            try:
                return _merged(op, m, node, owned[:end])
            except NoMatch as miss:
                reason = reason or miss
        assert reason is not None
        raise reason


def _chain(node: ir.Node) -> list[ir.Node]:
    """The shape ops above `node`, nearest first."""
    chain: list[ir.Node] = []
    inner = above(node, node.inputs[0], *_SHAPERS)
    while inner is not None:
        chain.append(inner)
        inner = above(node, inner.inputs[0], *_SHAPERS)
    return chain


def _merged(op: Builder, m: Match, node: ir.Node, chain: list[ir.Node]) -> ir.Value:
    source, kinds = chain[-1].inputs[0], {node.op_type, *(inner.op_type for inner in chain)}
    assert source is not None
    if node.op_type == "Reshape" and _without_copies(m, node):
        return op.clone(node, [source, node.inputs[1]])
    if kinds in ({"Squeeze"}, {"Unsqueeze"}):
        return _same_kind(op, m, node, chain[0])
    m.require(m.opset() >= 5, "before opset 5 the shape of a Reshape is an attribute")
    inferring = any(step.op_type == "Reshape" and _says_infer(m, step) for step in (node, *chain))
    shape = target_shape(m, source, node.outputs[0], infer=inferring)
    return op.Reshape(source, op.const(shape, "shape"))


def _without_copies(m: Match, node: ir.Node) -> bool:
    """Whether the shape operand is known to hold no 0 that copies a dim of the input."""
    if m.opset() < 5:
        return False
    if m.attr(node, "allowzero", 0):
        return True
    known = m.ctx.shapes.values(node.inputs[1])
    return known is not None and all(isinstance(item, int) and item != 0 for item in known)


def _says_infer(m: Match, node: ir.Node) -> bool:
    known = m.ctx.shapes.values(m.input(1, node))
    return known is not None and any(isinstance(item, int) and item == -1 for item in known)


def _same_kind(op: Builder, m: Match, node: ir.Node, inner: ir.Node) -> ir.Value:
    """Squeeze(Squeeze(x, a), b) or Unsqueeze(Unsqueeze(x, a), b) as one, for the first two of the chain."""
    m.interior = [inner]
    x = inner.inputs[0]
    first, second = m.axes(inner), m.axes(node)
    if first is None or second is None:
        raise NoMatch("a Squeeze has no axes")
    if node.op_type == "Squeeze":
        rank = m.rank(x)
        gone = {m.axis(axis, rank) for axis in first}
        left = [axis for axis in range(rank) if axis not in gone]
        axes = gone | {left[m.axis(axis, len(left))] for axis in second}
    else:
        rank = m.rank(x) + len(first) + len(second)
        new = {m.axis(axis, rank) for axis in second}
        left = [axis for axis in range(rank) if axis not in new]
        axes = new | {left[m.axis(axis, len(left))] for axis in first}
    if m.opset() < 13:
        return op.node(node.op_type, x, axes=sorted(axes))
    return op.node(node.op_type, x, op.const(sorted(axes), "axes"))
