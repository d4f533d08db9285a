"""com.microsoft ops taken apart into standard ones, so that any target can be reached from a fused model.

Lives here: the pass and the ops without attention in them; those are in _decompose_attention.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass
from graphopt.passes.fuse_target import _decompose_attention as attention

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.worklist import Replacement

    Rule = Callable[[Builder, Match, ir.Node], Replacement]


class DecomposeContribOps(NodePass):
    """A com.microsoft op that this package emits -> the standard ops it stands for."""

    name: ClassVar[str] = "decompose-contrib-ops"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = None
    tolerance: ClassVar[Tolerance] = "reassociates"
    domain: ClassVar[str] = "com.microsoft"

    def anchors(self) -> tuple[str, ...]:
        return tuple(RULES)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        m.require(m.opset() >= 20, f"the model is of opset {m.opset()}, the standard ops need 20")
        values = RULES[node.op_type](op, m, node)
        made = [values] if not isinstance(values, Sequence) else list(values)
        return made + [None] * (len(node.outputs) - len(made))


def _skip_layer_norm(op: Builder, m: Match, node: ir.Node) -> Replacement:
    total = _total(op, m, node, 4)
    scale, bias = m.input(2, node), m.input(3, node)
    normal = op.LayerNormalization(total, scale, bias, axis=-1, epsilon=m.attr(node, "epsilon", 1e-12))
    return [normal, None, None, total][: max(len(node.outputs), 1)]


def _skip_rms_norm(op: Builder, m: Match, node: ir.Node) -> Replacement:
    total = _total(op, m, node, 3)
    square = op.ReduceMean(op.Mul(total, total), [-1], keepdims=1)
    normal = op.Div(total, op.Sqrt(op.Add(square, m.attr(node, "epsilon", 1e-12))))
    return [op.Mul(normal, m.input(2, node)), None, None, total][: max(len(node.outputs), 1)]


def _total(op: Builder, m: Match, node: ir.Node, bias_slot: int) -> ir.Value:
    total = op.Add(node.inputs[0], node.inputs[1])
    bias = m.input(bias_slot, node)
    return total if bias is None else op.Add(total, bias)


def _bias_gelu(op: Builder, m: Match, node: ir.Node) -> Replacement:
    return op.Gelu(op.Add(node.inputs[0], node.inputs[1]))


def _fast_gelu(op: Builder, m: Match, node: ir.Node) -> Replacement:
    bias = m.input(1, node)
    return op.Gelu(op.Add(node.inputs[0], bias) if bias is not None else node.inputs[0], approximate="tanh")


def _quick_gelu(op: Builder, m: Match, node: ir.Node) -> Replacement:
    x, alpha = node.inputs[0], m.attr(node, "alpha", 1.702)
    return op.Mul(x, op.Sigmoid(x if alpha == 1.0 else op.Mul(x, float(alpha))))


def _fused_matmul(op: Builder, m: Match, node: ir.Node) -> Replacement:
    m.require(not m.attr(node, "transBatchA", 0) and not m.attr(node, "transBatchB", 0), "batch axes are transposed")
    operands = []
    for value, flag in zip(node.inputs, ("transA", "transB"), strict=True):
        if m.attr(node, flag, 0):
            rank = m.rank(value)
            m.require(rank >= 2, "an operand has rank 1")
            value = op.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(value)
    product, alpha = op.MatMul(*operands), float(m.attr(node, "alpha", 1.0))
    return product if alpha == 1.0 else op.Mul(product, alpha)


def _fused_conv(op: Builder, m: Match, node: ir.Node) -> Replacement:
    kept = _without(node, "activation", "activation_params")
    made = op.node("Conv", *node.inputs[:3], **kept)
    residual = m.input(3, node)
    made = made if residual is None else op.Add(made, residual)
    return _activated(op, made, m.attr(node, "activation", ""), m.attr(node, "activation_params", ()))


def _fused_gemm(op: Builder, m: Match, node: ir.Node) -> Replacement:
    names = ("activation", "activation_alpha", "activation_beta", "activation_gamma")
    made = op.node("Gemm", *node.inputs, **_without(node, *names))
    name = m.attr(node, "activation", "")
    alpha = m.attr(node, "activation_alpha", {"LeakyRelu": 0.01, "HardSigmoid": 0.2}.get(name, 0.0))
    return _activated(op, made, name, (alpha, m.attr(node, "activation_beta", 0.5)))


def _without(node: ir.Node, *names: str) -> dict[str, Any]:
    return {name: attr for name, attr in node.attributes.items() if name not in names}


def _activated(op: Builder, value: ir.Value, name: str, parameters: Sequence[float]) -> ir.Value:
    if name == "":
        return value
    if name in ("Relu", "Tanh", "Sigmoid"):
        return op.node(name, value)
    if name == "LeakyRelu":
        return op.LeakyRelu(value, alpha=parameters[0])
    if name == "HardSigmoid":
        return op.HardSigmoid(value, alpha=parameters[0], beta=parameters[1])
    if name == "Clip":
        return op.Clip(value, float(parameters[0]), float(parameters[1]))
    raise NoMatch(f"activation {name!r} is not known")


RULES: dict[str, Rule] = {
    "Attention": attention.attention,
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "GroupQueryAttention": attention.group_query,
    "MultiHeadAttention": attention.multi_head,
    "QuickGelu": _quick_gelu,
    "RotaryEmbedding": attention.rotary,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
}
"""How each op is taken apart; a fused op that a pass emits has its entry here."""
