"""Dropout at inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateDropout(NodePass):
    """Dropout(x) -> x, when it does not train and nothing reads its mask."""

    name: ClassVar[str] = "eliminate-dropout"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Dropout",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> list[ir.Value | None]:
        x = node.inputs[0]
        training = m.input(2)
        m.require(m.opset() >= 7, "before opset 7 an attribute switches training")
        if training is not None:
            m.require(m.ints(training) == (0,), "training_mode is on")
        return [x, *(None for _ in node.outputs[1:])]
