"""Transposes and scalar factors taken into com.microsoft FusedMatMul."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.constants import const_scalar
from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.worklist import Replacement

MS = "com.microsoft"


class FuseMatMul(NodePass):
    """alpha * (transpose(a) @ transpose(b)) -> FusedMatMul(a, b, alpha, transA, transB).

    The transposes swap the last two axes. Level 3: ONNX Runtime's own optimizer does the same at load, so it gains
    nodes, not time.
    """

    name: ClassVar[str] = "fuse-matmul"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = 3
    tolerance: ClassVar[Tolerance] = "reassociates"
    after: ClassVar[tuple[str, ...]] = ("fuse-attention", "fuse-rotary-embedding")
    ops: ClassVar[tuple[str, ...]] = ("MatMul", "Mul", "Div")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        if node.op_type == "MatMul":
            return self._transposes(op, m, node)
        return self._factor(op, m, node)

    def _transposes(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        if not any(_is_transpose(operand) for operand in node.inputs):
            raise Uninteresting("no transpose in front")
        operands, flags = [], []
        for operand in node.inputs:
            assert operand is not None
            source = _untransposed(m, operand) if _is_transpose(operand) else None
            operands.append(operand if source is None else source)
            flags.append(1 if source is not None else None)
        m.require(any(flags), "the transposes do more than swap the last two axes")
        m.require(all(m.rank(operand) >= 2 for operand in node.inputs), "an operand has rank 1")
        m.not_quantized(operands)
        m.supports("FusedMatMul", MS, like=operands[0])
        return op.FusedMatMul(*operands, _domain=MS, transA=flags[0], transB=flags[1])

    def _factor(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        for data, factor in ((0, 1), (1, 0)):
            product, number = node.inputs[data], const_scalar(node.inputs[factor])
            made = product.producer() if product is not None else None
            if made is None or not number or made.graph is not node.graph or (node.op_type == "Div" and data == 1):
                continue
            if (made.domain, made.op_type) not in (("", "MatMul"), (MS, "FusedMatMul")):
                continue
            assert product is not None
            m.sole_use(product)
            m.require(m.same_shape(product, node.outputs[0]), "the factor raises the rank")
            m.not_quantized(made.inputs)
            m.supports("FusedMatMul", MS, like=product)
            m.interior = [made]
            alpha = m.attr(made, "alpha", 1.0) * (number if node.op_type == "Mul" else 1.0 / number)
            kept: dict[str, Any] = {name: attr for name, attr in made.attributes.items() if name != "alpha"}
            return op.node("FusedMatMul", *made.inputs, _domain=MS, alpha=alpha, **kept)
        raise Uninteresting("no product is scaled here")


def _is_transpose(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.domain == "" and node.op_type == "Transpose"


def _untransposed(m: Match, value: ir.Value) -> ir.Value | None:
    """What a transpose of the last two axes transposes; None for another one."""
    node = m.producer(value, "Transpose")
    rank = m.rank(value)
    swap = (*range(rank - 2), rank - 1, rank - 2)
    return node.inputs[0] if tuple(m.attr(node, "perm", tuple(reversed(range(rank))))) == swap else None
