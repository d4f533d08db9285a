"""Transposes that only move axes of size 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._target_shape import target_shape

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class RewriteTransposeAsReshape(NodePass):
    """Transpose(x) -> Reshape(x), where the axes with more than one element keep their order: no data moves."""

    name: ClassVar[str] = "rewrite-transpose-as-reshape"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("eliminate-nop-transpose", "merge-transposes")
    ops: ClassVar[tuple[str, ...]] = ("Transpose",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x = node.inputs[0]
        if x is None or x.shape is None or not any(dim == 1 for dim in x.shape):
            raise Uninteresting("no axis has size 1")
        rank = len(x.shape)
        perm = m.attr(node, "perm") or tuple(range(rank))[::-1]
        moved = [axis for axis in perm if x.shape[axis] != 1]
        if moved != sorted(moved):
            raise Uninteresting("it moves axes with several elements")
        m.require(m.opset() >= 5, "before opset 5 the shape of a Reshape is an attribute")
        shape = target_shape(m, x, node.outputs[0], infer=False)
        return op.Reshape(x, op.const(shape, "shape"))
