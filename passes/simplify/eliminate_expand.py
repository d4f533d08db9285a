"""Expands in front of an op that broadcasts anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateExpand(NodePass):
    """Add(Expand(x, s), y) -> Add(x, y), and so for other broadcasting ops, where the result has the same shape."""

    name: ClassVar[str] = "eliminate-expand"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = (
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "PRelu", "Min", "Max", "Sum", "Mean"),
        *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Where"),
    )

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        wide = [at for at, value in enumerate(node.inputs) if _expanded(value, node) is not None]
        if not wide:
            raise Uninteresting("no operand is expanded")
        for at in wide:
            source = _expanded(node.inputs[at], node)
            inputs = [*node.inputs]
            inputs[at] = source
            if self._same_result(m, node, inputs):
                return op.clone(node, inputs)
        raise NoMatch("without the Expand the result is not provably of the same shape")

    def _same_result(self, m: Match, node: ir.Node, inputs: list[ir.Value | None]) -> bool:
        shapes = m.ctx.shapes
        if node.op_type == "PRelu" and inputs[0] is not node.inputs[0]:
            return False  # its slope broadcasts to the first operand only
        known = shapes.broadcast_shapes([shapes.dims(value) for value in inputs])
        wanted = shapes.dims(node.outputs[0])
        if known is None or wanted is None or len(known) != len(wanted):
            return False
        return all(shapes.equal(a, b) for a, b in zip(known, wanted, strict=True))


def _expanded(value: ir.Value | None, node: ir.Node) -> ir.Value | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Expand" or producer.domain != "" or producer.graph is not node.graph:
        return None
    return producer.inputs[0]
