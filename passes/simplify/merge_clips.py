"""Clip and Relu in a row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass
from graphopt.passes.simplify._above import require_above

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class MergeClips(NodePass):
    """Clip(Clip(x, a, b), c, d) -> Clip(x, clip(a), clip(b)); a Relu counts as Clip(x, 0)."""

    name: ClassVar[str] = "merge-clips"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Clip", "Relu")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        inner = require_above(m, "Clip", "Relu")
        x = inner.inputs[0]
        assert x is not None
        m.require(m.opset() >= 11, "before opset 11 the bounds are attributes")
        m.not_quantized([x, node.outputs[0]])
        dtype = m.dtype(x)
        m.require(dtype.name in ("FLOAT", "DOUBLE", "FLOAT16"), f"bounds of {dtype.name} are not merged")
        limit = float(np.finfo(dtype.numpy()).max)
        low, high = _bounds(m, inner, limit)
        outer_low, outer_high = _bounds(m, node, limit)
        m.require(low <= high and outer_low <= outer_high, "a lower bound is above the upper one, or is NaN")
        low, high = (min(max(bound, outer_low), outer_high) for bound in (low, high))
        if (low, high) == (0, math.inf):
            return op.Relu(x)
        bounds = ((low, -limit), (high, limit))
        return op.Clip(
            x, *(None if at == end else op.const(np.array(at, dtype.numpy()), "bound") for at, end in bounds)
        )


def _bounds(m: Match, node: ir.Node, limit: float) -> tuple[float, float]:
    """The bounds of a Clip or Relu. Where a Clip has none it stops at the largest finite number, a Relu does not."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = m.input(1, node), m.input(2, node)
    return (
        float(m.scalar(low)) if low is not None else -limit,
        float(m.scalar(high)) if high is not None else limit,
    )
