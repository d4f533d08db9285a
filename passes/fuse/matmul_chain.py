"""Two MatMul by constant weights in a row, where the merged weight is not larger than what it replaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass
from graphopt.passes.fuse._linear import rounded

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


class FoldMatMulChain(RewritePass):
    """MatMul(MatMul(x, v) + b, w) -> MatMul(x, v @ w) + b @ w, for constants, when v @ w is not larger."""

    name: ClassVar[str] = "fold-matmul-chain"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, v: Any, w: Any, b: Any = None) -> Any:
        inner = op.MatMul(x, v)
        return [op.MatMul(inner, w), op.MatMul(op.Add(inner, b), w)]

    def rewrite(self, op: Builder, m: Match, x: ir.Value, v: ir.Value, w: ir.Value, b: ir.Value | None) -> ir.Value:
        m.require(m.is_const(v) and m.is_const(w) and (b is None or m.is_const(b)), "not all weights are constant")
        m.require(m.rank(v) == 2 and m.rank(w) == 2, "the weights are not matrices")
        m.require(m.is_float(v), "the chain does not compute with floats")
        rows, inner = m.shape(v)
        columns = m.shape(w)[1]
        m.require(
            rows * columns <= inner * (rows + columns),
            f"the product would be larger: {rows}x{columns} for {rows}x{inner} and {inner}x{columns}",
        )
        m.require(len(v.uses()) == 1 and len(w.uses()) == 1, "a weight has other users")
        if b is not None:
            m.require(m.shape(b) == (inner,), "the bias is not one number per column")
        m.not_quantized([x, v, w, *m.root.outputs])
        right = m.const(w).astype("float64")
        made = op.MatMul(x, rounded(op, m, m.const(v).astype("float64") @ right, w))
        return made if b is None else op.Add(made, rounded(op, m, m.const(b).astype("float64") @ right, b))
