"""MatMul made into Gemm where both operands are matrices: with a bias, and with transposed operands.

Operands of other ranks are left as they are: Gemm takes matrices only, and C must broadcast to its result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


class FuseMatMulAdd(RewritePass):
    """MatMul(a, b) + c -> Gemm(a, b, c), for matrices a and b, and c that broadcasts to the product."""

    name: ClassVar[str] = "fuse-matmul-add"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, a: Any, b: Any, c: Any) -> Any:
        return op.Add(op.MatMul(a, b, _as="matmul"), c)

    def rewrite(self, op: Builder, m: Match, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        product = m["matmul"].outputs[0]
        m.require(m.rank(a) == 2 and m.rank(b) == 2, "Gemm needs matrices")
        m.require(m.is_float(a), "Gemm is used for floats only")
        m.require(
            m.rank(c) <= 2 and m.ctx.shapes.broadcasts_to(c, product),
            f"{list(map(str, m.dims(c)))} does not broadcast to the product",
        )
        m.not_quantized([a, b, c, *m.root.outputs])
        m.supports("Gemm", like=a)
        return op.Gemm(a, b, c)


class FuseGemmAdd(RewritePass):
    """Gemm(a, b) + c -> Gemm(a, b, c), for a Gemm without bias and c that broadcasts to the product."""

    name: ClassVar[str] = "fuse-gemm-add"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, a: Any, b: Any, c: Any) -> Any:
        return op.Add(op.Gemm(a, b, _as="gemm"), c)

    def rewrite(self, op: Builder, m: Match, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        gemm = m["gemm"]
        m.require(
            m.rank(c) <= 2 and m.ctx.shapes.broadcasts_to(c, gemm.outputs[0]),
            f"{list(map(str, m.dims(c)))} does not broadcast to the product",
        )
        m.not_quantized([a, b, c, *m.root.outputs])
        return op.clone(gemm, [a, b, c], beta=1.0)


class FuseGemmTranspose(RewritePass):
    """Gemm(Transpose(a), b, c) -> Gemm(a, b, c) with transA turned over; the same for b, and for MatMul of matrices."""

    name: ClassVar[str] = "fuse-gemm-transpose"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, a: Any, b: Any, c: Any = None) -> Any:
        ta, tb = op.Transpose(a, _as="ta"), op.Transpose(b, _as="tb")
        return [
            op.node(ops, left, right, *more, _as="gemm")
            for ops, more in (("Gemm", (c,)), ("MatMul", ()))
            for left, right in ((ta, tb), (ta, b), (a, tb))
        ]

    def rewrite(self, op: Builder, m: Match, a: ir.Value, b: ir.Value, c: ir.Value | None) -> ir.Value:
        gemm = m["gemm"]
        m.require(m.rank(a) == 2 and m.rank(b) == 2, "not the transpose of a matrix")
        m.require(m.is_float(a), "Gemm is used for floats only")
        flips = {}
        for label, name in (("ta", "transA"), ("tb", "transB")):
            if m.has(label):
                m.require(tuple(m.attr(label, "perm", (1, 0))) == (1, 0), "the Transpose keeps the order")
            flips[name] = int(bool(m.attr(gemm, name, 0))) ^ int(m.has(label))
        m.not_quantized([a, b, *gemm.inputs, *gemm.outputs])
        if gemm.op_type == "Gemm":
            return op.clone(gemm, [a, b, c], **flips)
        m.require(m.opset() >= 11, "Gemm needs a bias before opset 11")
        m.supports("Gemm", like=a)
        return op.Gemm(a, b, **flips)
