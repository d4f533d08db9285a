"""Fused ops taken apart again, so that any target can be reached from any state.

The formulas are in _decompositions.py; an op without one there cannot be named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._decompositions import TABLE

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.worklist import Replacement


@dataclass(frozen=True)
class DecomposeOps(NodePass):
    """Gelu(x) -> x * 0.5 * (1 + Erf(x / sqrt(2))) and so on, for named ops or those the target has no kernel for.

    Attributes:
        ops: Op types of the standard to take apart; none: those that the target lacks.
    """

    ops: tuple[str, ...] = ()  # type: ignore[misc]

    name: ClassVar[str] = "decompose-ops"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = None
    tolerance: ClassVar[Tolerance] = "reassociates"

    def check(self) -> None:
        for op_type in self.ops:
            if op_type not in TABLE:
                hint = did_you_mean(op_type, TABLE) or f"; there are: {', '.join(sorted(TABLE))}"
                raise GraphoptError(f"decompose-ops: no decomposition of {op_type!r} is known{hint}")

    def anchors(self) -> tuple[str, ...]:
        return tuple(sorted(self.ops or TABLE))

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        if not self.ops:
            out = node.outputs[0]
            dtype = out.dtype.name if out.dtype is not None else None
            if m.ctx.target is None or m.ctx.supports(node.op_type, node.domain, dtype) is None:
                raise Uninteresting("the target has the op, or there is no target")
        m.not_quantized(node.outputs)
        return TABLE[node.op_type](op, m, node)
