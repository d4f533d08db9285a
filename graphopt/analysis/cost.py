"""Multiply-accumulates, parameter bytes and activation bytes per node and per model.

Numbers are those of the algorithm as written (a convolution is a direct one). What cannot be told is None, never zero.
Symbolic dimensions need bindings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from graphopt.analysis.shape_attrs import attr_int, optional_input
from graphopt.ir.constants import const_tensor, nbytes
from graphopt.ir.sites import callees_first, subgraphs

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes


@dataclass(frozen=True)
class Cost:
    """Cost of one node: multiply-accumulates, bytes of its constant inputs, bytes of its outputs; None is unknown."""

    macs: int | None
    parameter_bytes: int | None
    activation_bytes: int | None


@dataclass(frozen=True)
class ModelCost:
    """Totals (a shared constant counts once), and per node of the main graph; `unknown` has nodes without a figure.

    A total is None while a node is unknown; `known_macs` is the sum of the others.
    """

    macs: int | None
    parameter_bytes: int | None
    activation_bytes: int | None
    known_macs: int
    nodes: Mapping[ir.Node, Cost]
    unknown: tuple[ir.Node, ...]


class Sizes:
    """Shapes as numbers under bindings of the symbols."""

    def __init__(self, shapes: Shapes, bindings: Mapping[str, int] | None = None) -> None:
        self.shapes = shapes
        self.bindings = bindings or {}
        self._functions: dict[tuple[str, str, str], int | None] | None = None

    def of(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape, None when a dimension is no number."""
        known = self.shapes.dims(value)
        if known is None:
            return None
        numbers = [self.shapes.evaluate(dim, self.bindings) for dim in known]
        return None if None in numbers else tuple(number for number in numbers if number is not None)

    def bytes(self, value: ir.Value) -> int | None:
        """The size in bytes; 4-bit types are packed."""
        size = self.of(value)
        if size is None or value.dtype is None or value.dtype.name == "STRING":
            return None
        try:
            return (prod(size) * value.dtype.bitwidth + 7) // 8
        except TypeError:  # strings have no bit width
            return None

    def function_macs(self, key: tuple[str, str, str]) -> int | None:
        """Multiply-accumulates of a function of the model, each counted once however often and deep it is called."""
        functions = self.shapes.model.functions
        if self._functions is None:
            self._functions = {}  # callees stand in it before they are asked for; what is missing calls itself
            for callee in callees_first(self.shapes.model):
                self._functions[callee] = _total([_macs(inner, self) for inner in functions[callee]])
        return self._functions.get(key)


Macs: TypeAlias = "Callable[[Sizes, ir.Node], int | None]"


def node_cost(node: ir.Node, shapes: Shapes, bindings: Mapping[str, int] | None = None) -> Cost:
    """The cost of one node. A Loop counts its body once per trip, an If its dearer branch."""
    return _cost(node, Sizes(shapes, bindings))


def _cost(node: ir.Node, sizes: Sizes) -> Cost:
    parameters = [
        _tensor_bytes(value) for value in node.inputs if value is not None and const_tensor(value) is not None
    ]
    outputs = [sizes.bytes(value) for value in node.outputs if value.name]
    return Cost(_macs(node, sizes), _total(parameters), _total(outputs))


def model_cost(model: ir.Model, shapes: Shapes | None = None, bindings: Mapping[str, int] | None = None) -> ModelCost:
    """Costs of the main graph's nodes (with what they contain) and their totals."""
    if shapes is None:
        from graphopt.analysis.shapes import Shapes

        shapes = Shapes(model).infer()
    sizes = Sizes(shapes, bindings)
    nodes = {
        node: _cost(node, sizes)
        for node in model.graph
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx")
    }
    costs = list(nodes.values())
    return ModelCost(
        macs=_total([cost.macs for cost in costs]),
        parameter_bytes=_total([_tensor_bytes(value) for value in _constants(model)]),
        activation_bytes=_total([cost.activation_bytes for cost in costs]),
        known_macs=sum(cost.macs or 0 for cost in costs),
        nodes=nodes,
        unknown=tuple(node for node, cost in nodes.items() if cost.macs is None or cost.activation_bytes is None),
    )


def _constants(model: ir.Model) -> list[ir.Value]:
    """Every constant of the model, once."""
    from graphopt.ir.sites import scopes

    found: dict[ir.Value, None] = {}
    for scope in scopes(model):
        if scope.function is None or scope.graph is not scope.function.graph:
            found.update(dict.fromkeys(scope.graph.initializers.values()))
        found.update(dict.fromkeys(node.outputs[0] for node in scope.graph if node.op_type == "Constant"))
    return [value for value in found if const_tensor(value) is not None]


def _tensor_bytes(value: ir.Value | None) -> int | None:
    tensor = const_tensor(value)
    return None if tensor is None else nbytes(tensor)


def _total(parts: Sequence[int | None]) -> int | None:
    return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)


def _macs(node: ir.Node, sizes: Sizes) -> int | None:
    if node.domain in ("", "ai.onnx"):
        if node.op_type in ("If", "Loop", "Scan"):
            return _control(node, sizes)
        rule = STANDARD.get(node.op_type)
        return 0 if rule is None else rule(sizes, node)
    if node.op_identifier() in sizes.shapes.model.functions:
        return sizes.function_macs(node.op_identifier())
    if node.domain == "com.microsoft.nchwc":  # ONNX Runtime's blocked layout; channels are padded to whole blocks
        return _conv(1)(sizes, node) if node.op_type == "Conv" else 0
    if node.domain != "com.microsoft":
        return None
    rule = MICROSOFT.get(node.op_type)
    if rule is not None:
        return rule(sizes, node)
    return 0 if node.op_type in _WITHOUT_MACS else None


def _control(node: ir.Node, sizes: Sizes) -> int | None:
    bodies = [_total([_macs(inner, sizes) for inner in graph]) for _, graph in subgraphs(node)]
    if node.op_type == "If" or all(body == 0 for body in bodies):
        return None if None in bodies else max(body or 0 for body in bodies)
    if node.op_type == "Loop":
        limit = sizes.shapes.values(node.inputs[0])
        trips = None if limit is None else sizes.shapes.evaluate(limit[0], sizes.bindings)
    else:
        first = sizes.of(node.inputs[-1])
        axes = node.attributes.get("scan_input_axes")
        trips = first[axes.as_ints()[-1] if axes is not None else 0] if first else None
    return None if trips is None or bodies[0] is None else trips * bodies[0]


# ---- per op --------------------------------------------------------------------------------------------------------


def _conv(weight: int) -> Macs:
    """Output elements x (input channels per group x kernel). Weight is (M, C/group, kernel...)."""

    def macs(sizes: Sizes, node: ir.Node) -> int | None:
        out, w = sizes.of(node.outputs[0]), sizes.of(node.inputs[weight])
        return None if out is None or w is None else prod(out) * prod(w[1:])

    return macs


def _conv_transpose(sizes: Sizes, node: ir.Node) -> int | None:
    """Input elements x (output channels per group x kernel). Weight is (C, M/group, kernel...)."""
    x, w = sizes.of(node.inputs[0]), sizes.of(node.inputs[1])
    return None if x is None or w is None else prod(x) * prod(w[1:])


def _matmul(sizes: Sizes, node: ir.Node) -> int | None:
    """Output elements x the contracted dimension of A (transposed by Gemm and FusedMatMul)."""
    if attr_int(node, "transBatchA", 0):
        return None
    out, a = sizes.of(node.outputs[0]), sizes.of(node.inputs[0])
    if out is None or not a:
        return None
    return prod(out) * a[-2 if attr_int(node, "transA", 0) and len(a) > 1 else -1]


def _matmul_nbits(sizes: Sizes, node: ir.Node) -> int | None:
    out = sizes.of(node.outputs[0])
    return None if out is None else prod(out) * attr_int(node, "K", 0)


def _einsum(sizes: Sizes, node: ir.Node) -> int | None:
    """The product of all index sizes, once per multiplication; 0 for one operand."""
    operands = [sizes.of(value) for value in node.inputs]
    if len(operands) < 2:
        return 0
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    extent: dict[str, int] = {}
    for term, size in zip(terms, operands, strict=True):
        if size is None:
            return None
        if "..." in term:
            named = len(term) - 3
            letters = [f".{len(size) - named - i}" for i in range(len(size) - named)]
            at = term.index("...")
            indices = [*term[:at], *letters, *term[at + 3 :]]
        else:
            indices = [*term]
        for index, dim in zip(indices, size, strict=True):
            extent[index] = max(extent.get(index, 1), dim)
    return prod(extent.values()) * (len(operands) - 1)


def _recurrent(sizes: Sizes, node: ir.Node) -> int | None:
    """Steps x batch x (input weights + recurrent weights). X is (steps, batch, input), or batch first."""
    x, w, r = (sizes.of(node.inputs[index]) for index in range(3))
    return None if x is None or w is None or r is None else x[0] * x[1] * (prod(w) + prod(r))


def _attention(sizes: Sizes, node: ir.Node) -> int | None:
    """Standard Attention: Q and K/V as (batch, heads, length, head) or (batch, length, heads x head)."""
    q, k, v = (sizes.of(node.inputs[index]) for index in range(3))
    if q is None or k is None or v is None:
        return None
    past = optional_input(node, 4)
    before = sizes.of(past) if past is not None else (0, 0, 0, 0)
    if before is None:
        return None
    if len(q) == 4:
        return q[0] * q[1] * q[2] * (k[2] + before[2]) * (q[3] + v[3])
    heads, shared = attr_int(node, "q_num_heads", 1), attr_int(node, "kv_num_heads", 1)
    return q[0] * q[1] * (k[1] + before[2]) * (q[2] + v[2] // shared * heads)


def _packed_attention(past_input: int) -> Macs:
    """com.microsoft Attention: x (batch, length, input), weight (input, q + k + v), past (2, batch, heads, ...)."""

    def macs(sizes: Sizes, node: ir.Node) -> int | None:
        x, w = sizes.of(node.inputs[0]), sizes.of(node.inputs[1])
        past = optional_input(node, past_input)
        before = sizes.of(past) if past is not None else (0, 0, 0, 0, 0)
        if x is None or w is None or before is None:
            return None
        hidden = node.attributes.get("qkv_hidden_sizes")
        q, _, v = hidden.as_ints() if hidden is not None else (w[1] // 3,) * 3
        return x[0] * x[1] * (prod(w) + (x[1] + before[3]) * (q + v))

    return macs


def _multi_head(sizes: Sizes, node: ir.Node) -> int | None:
    """com.microsoft MultiHeadAttention: q (batch, length, hidden) or packed in 5 dimensions; k and v in 3 or 4."""
    q, out = sizes.of(node.inputs[0]), sizes.of(node.outputs[0])
    key, past = optional_input(node, 1), optional_input(node, 6)
    k, before = sizes.of(key), (sizes.of(past) if past is not None else (0, 0, 0, 0))
    if q is None or out is None or before is None or (key is not None and k is None):
        return None
    length = q[1] if k is None else k[2] if len(k) == 4 else k[1]
    width = q[2] if len(q) == 3 else q[2] * q[4]
    return q[0] * q[1] * (length + before[2]) * (width + out[2])


def _group_query(sizes: Sizes, node: ir.Node) -> int | None:
    """com.microsoft GroupQueryAttention; attends to the length of present_key, which may be a larger buffer."""
    out = sizes.of(node.outputs[0])
    present = sizes.of(node.outputs[1]) if len(node.outputs) > 1 else None
    if out is None or present is None:
        return None
    return 2 * out[0] * out[1] * present[2] * out[2]


def _unknown(sizes: Sizes, node: ir.Node) -> int | None:
    """An op whose count depends on its algorithm."""
    return None


STANDARD: dict[str, Macs] = {
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    "Einsum": _einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "Attention": _attention,
    **dict.fromkeys(("DFT", "DeformConv", "Det", "STFT", "SequenceMap"), _unknown),
}

MICROSOFT: dict[str, Macs] = {
    **dict.fromkeys(("FusedConv", "NhwcFusedConv"), _conv(1)),
    "QLinearConv": _conv(3),
    **dict.fromkeys(("DynamicQuantizeMatMul", "FusedGemm", "FusedMatMul", "FusedMatMulActivation"), _matmul),
    **dict.fromkeys(("MatMulIntegerToFloat", "QGemm", "TransposeMatMul"), _matmul),
    **dict.fromkeys(("MatMulNBits", "MatMulFpQ4", "MatMulBnb4"), _matmul_nbits),
    "DynamicQuantizeLSTM": _recurrent,
    "Attention": _packed_attention(4),
    "QAttention": _packed_attention(8),
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
}

_ELEMENTWISE = (
    "BiasAdd BiasGelu BiasSoftmax DequantizeLinear EmbedLayerNormalization FastGelu GatherBlockQuantized "
    "Gelu GroupNorm LayerNormalization NhwcMaxPool QEmbedLayerNormalization QLinearAdd QLinearAveragePool "
    "QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid "
    "QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu RotaryEmbedding SimplifiedLayerNormalization "
    "SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization"
)
_WITHOUT_MACS = frozenset(_ELEMENTWISE.split())
