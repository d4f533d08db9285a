"""Reshape and Expand whose shape is computed at run time, though a constant says the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._target_shape import target_shape

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class SimplifyShapeOperand(NodePass):
    """Reshape(x, computed) -> Reshape(x, [0, 12, -1]), Expand(x, computed) -> Expand(x, [1, 12]): by copying dims."""

    name: ClassVar[str] = "simplify-shape-operand"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Reshape", "Expand")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x, shape = node.inputs[0], m.input(1)
        if x is None or shape is None or m.is_const(shape):
            raise Uninteresting("the shape is constant")
        if node.op_type == "Expand":
            return op.Expand(x, op.const(_expand_shape(m, node), "shape"))
        known = m.ctx.shapes.values(shape)
        infer = known is not None and any(isinstance(item, int) and item == -1 for item in known)
        return op.Reshape(x, op.const(target_shape(m, x, node.outputs[0], infer=infer), "shape"))


def _expand_shape(m: Match, node: ir.Node) -> list[int]:
    """1 where the input has the dim already, else the static size."""
    before, after = m.ctx.shapes.dims(node.inputs[0]), m.ctx.shapes.dims(node.outputs[0])
    if before is None or after is None:
        raise NoMatch("a rank is unknown")
    padded = [1] * (len(after) - len(before)) + list(before)
    out: list[int] = []
    for have, want in zip(padded, after, strict=True):
        if m.equal(have, want):
            out.append(1)
        elif isinstance(want, int):
            out.append(want)
        else:
            raise NoMatch(f"it makes the symbolic dim {want} out of {have}")
    return out
