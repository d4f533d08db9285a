"""Chains of constants: two MatMul by constant weights, two additions, two multiplications by constants.

Only where the merged constant is not larger than what it replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._linear import ACTIVATIONS, rounded

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


@dataclass(frozen=True)
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
        m.require(m.rank(v) == 2 and m.rank(w) == 2 and m.rank(x) >= 2, "not a chain of matrices")
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


@dataclass(frozen=True)
class FoldConstantChain(NodePass):
    """(x + a) + b -> x + (a + b) and (x * a) * b -> x * (a * b), for constants; also with - and /."""

    name: ClassVar[str] = "fold-constant-chain"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Add", "Sub", "Mul", "Div")
    # Linear ops take the constants one by one, which keeps more of the model's structure.
    after: ClassVar[tuple[str, ...]] = (*ACTIVATIONS, "fuse-conv-scale", "fuse-conv-bias", "fuse-matmul-scale")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        value, outer = _split(m, node)
        kinds = ("Add", "Sub") if node.op_type in ("Add", "Sub") else ("Mul", "Div")
        inner_node = value.producer()
        if (
            inner_node is None
            or inner_node.op_type not in kinds
            or inner_node.domain != ""
            or inner_node.graph is not node.graph
        ):
            raise Uninteresting("not a chain")
        x, inner = _split(m, inner_node)
        m.require(m.is_float(x), "integers wrap and divide in another way")
        m.sole_use(value)
        m.not_quantized([x, value, node.outputs[0]])
        pair = []
        for constant, at in ((inner, inner_node), (outer, node)):
            array = m.const(constant).astype("float64")
            if at.op_type == "Div":
                m.require((array != 0).all(), "a division by zero")
            pair.append(-array if at.op_type == "Sub" else 1.0 / array if at.op_type == "Div" else array)
        with np.errstate(all="ignore"):
            exact = pair[0] + pair[1] if kinds[0] == "Add" else pair[0] * pair[1]
        m.require(exact.size <= max(pair[0].size, pair[1].size), "the merged constant would be larger than both")
        m.interior = [inner_node]
        return op.node(kinds[0], x, rounded(op, m, exact, inner))


def _split(m: Match, node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The value and the constant beside it, where `value op constant` is meant."""
    a, b = node.inputs
    assert a is not None and b is not None
    if m.is_const(b) and not m.is_const(a):
        return a, b
    if m.is_const(a) and not m.is_const(b) and node.op_type in ("Add", "Mul"):
        return b, a
    raise Uninteresting("no constant operand on that side")
