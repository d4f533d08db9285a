"""A residual sum and the norm behind it: in one node where its kernel is faster, apart where it is slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array
from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse_target._norms import Norm, find_norm

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.worklist import Replacement

MS = "com.microsoft"
_NAMES = {True: "SkipLayerNormalization", False: "SkipSimplifiedLayerNormalization"}


class _FuseSkipNorm(NodePass):
    """What the two kinds share. A sum with other users is replaced first, at its own place; then the norm itself."""

    stage: ClassVar[str] = "fuse-target"
    tolerance: ClassVar[Tolerance] = "reassociates"
    centred: ClassVar[bool]

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        if node.op_type == "Add":
            return self._at_sum(op, m, node)
        norm = find_norm(m, node)
        if norm.centred != self.centred:
            raise Uninteresting("the other kind of norm")
        done = _existing(norm)
        if done is not None:
            return done
        add = m.producer(norm.source, "Add")
        if len(add.outputs[0].uses()) > _uses_in_norm(norm, node) or add.outputs[0].is_graph_output():
            raise NoMatch("the sum has other users; it is replaced first")
        m.interior = [add, *norm.nodes]
        return _emit(op, m, add, norm, 1)

    def _at_sum(self, op: Builder, m: Match, add: ir.Node) -> Replacement:
        norm = _norm_behind(m, add)
        if norm.centred != self.centred:
            raise Uninteresting("the other kind of norm")
        for value in (norm.scale, norm.bias):
            m.require(value is None or value.producer() is None, "the norm's parameters are made after the sum")
        return _emit(op, m, add, norm, 4)[3]


@dataclass(frozen=True)
class FuseSkipLayerNorm(_FuseSkipNorm):
    """LayerNormalization(x + skip [+ bias]) -> SkipLayerNormalization(x, skip, ...), whose 4th output is the sum.

    On request only: on the CPU the fused kernel takes 4 times as long as an Add and a LayerNormalization.
    """

    name: ClassVar[str] = "fuse-skip-layer-norm"
    level: ClassVar[int | None] = None
    ops: ClassVar[tuple[str, ...]] = ("Add", "LayerNormalization")
    centred: ClassVar[bool] = True


@dataclass(frozen=True)
class FuseSkipRMSNorm(_FuseSkipNorm):
    """RMSNormalization(x + skip [+ bias]) -> SkipSimplifiedLayerNormalization(x, skip, ...); output 4 is the sum."""

    name: ClassVar[str] = "fuse-skip-rms-norm"
    level: ClassVar[int | None] = 2
    ops: ClassVar[tuple[str, ...]] = ("Add", "RMSNormalization", "Mul", "Div")
    centred: ClassVar[bool] = False


class KeepResidualSum(NodePass):
    """LayerNormalization(Add(x, skip)) -> LayerNormalization(Sum(x, skip)), the same numbers.

    ONNX Runtime fuses the Add at load into SkipLayerNormalization, whose CPU kernel takes 4 times as long as the two;
    a Sum it leaves alone.
    """

    name: ClassVar[str] = "keep-residual-sum"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = 2
    after: ClassVar[tuple[str, ...]] = ("fuse-attention", "fuse-skip-rms-norm")
    ops: ClassVar[tuple[str, ...]] = ("LayerNormalization",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        source = m.input(0, node)
        add = source.producer() if source is not None else None
        if source is None or add is None or add.domain != "" or add.op_type != "Add" or add.graph is not node.graph:
            raise Uninteresting("no sum in front")
        m.require(m.ctx.has_quirk("slow-skip-layer-norm"), "the target fuses the sum without loss, or not at all")
        m.sole_use(source)
        m.require(m.rank(source) == 3 and m.is_float(source), "the runtime fuses only sums of rank 3")
        for value in (*add.inputs, source):
            m.require(value is None or not _in_qdq_group(value), "the sum belongs to a quantize/dequantize group")
        m.require(len(node.outputs) == 1, "mean or deviation is asked for")
        m.interior = [add]
        return op.clone(node, [op.Sum(*add.inputs), *node.inputs[1:]])


def _in_qdq_group(value: ir.Value) -> bool:
    """Whether a runtime may make an integer op of what is beside the value; DynamicQuantizeLinear only reads it."""
    producer = value.producer()
    near = [use.node for use in value.uses()] + ([producer] if producer is not None else [])
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in near)


def _uses_in_norm(norm: Norm, last: ir.Node) -> int:
    inside = {id(node) for node in (last, *norm.nodes)}
    return sum(id(use.node) in inside for use in norm.source.uses())


def _norm_behind(m: Match, add: ir.Node) -> Norm:
    """A normalization of a sum that has other users too."""
    total = add.outputs[0]
    users = [use.node for use in total.uses()]
    if len(users) < 2 and not total.is_graph_output():
        raise Uninteresting("no other users")
    for user in users:
        for last in _last_nodes(user):
            try:
                norm = find_norm(m, last)
            except NoMatch:
                continue
            if norm.source is total and (total.is_graph_output() or len(users) > _uses_in_norm(norm, last)):
                return norm
    raise Uninteresting("no normalization of this sum")


def _last_nodes(user: ir.Node) -> list[ir.Node]:
    if user.op_type in ("LayerNormalization", "RMSNormalization"):
        return [user]
    if user.op_type in ("Mul", "Div"):
        return [*(use.node for use in user.outputs[0].uses() if use.node.op_type == "Mul"), user]
    return []


def _existing(norm: Norm) -> ir.Value | None:
    """The first output of a fused node whose sum is what is normalized here, with the same parameters."""
    made = norm.source.producer()
    if made is None or made.domain != MS or made.op_type != _NAMES[norm.centred] or norm.source.index() != 3:
        return None
    inputs = [*made.inputs, None, None][:4]
    scale, bias = inputs[2], inputs[3] if norm.centred else None
    epsilon = made.attributes.get("epsilon")
    if epsilon is None or epsilon.value != _float32(norm.epsilon) or bias is not norm.bias:
        return None
    return made.outputs[0] if scale is norm.scale or (norm.scale is None and _is_ones(scale)) else None


def _is_ones(value: ir.Value | None) -> bool:
    array = const_array(value)
    return array is not None and bool((array == 1).all())


def _float32(number: float) -> float:
    import numpy as np

    return float(np.float32(number))


def _emit(op: Builder, m: Match, add: ir.Node, norm: Norm, outputs: int) -> tuple[ir.Value, ...]:
    first, skip = add.inputs[0], add.inputs[1]
    assert first is not None and skip is not None
    name = _NAMES[norm.centred]
    m.supports(name, MS, like=first)
    m.not_quantized((first, skip))
    m.require(norm.epsilon >= 0, "epsilon is negative, which the kernel refuses")
    rank, width = m.rank(norm.source), m.dims(norm.source)[-1]
    m.require(rank in (2, 3), f"the sum has rank {rank}")
    first, skip = _ordered(m, first, skip, norm)
    for parameter in (norm.scale, norm.bias):
        fits = parameter is None or (m.rank(parameter) == 1 and m.equal(m.dims(parameter)[0], width))
        m.require(fits, "the norm's parameters broadcast")
    scale = norm.scale
    if scale is None:
        import numpy as np

        scale = op.const(np.ones(m.dim(norm.source, -1), m.dtype(norm.source).numpy()), "ones")
    first, skip, bias = _take_bias(m, first, skip)
    parameters = [scale, norm.bias, bias] if norm.centred else [scale, bias]
    made = op.node(name, first, skip, *parameters, _domain=MS, _outputs=outputs, epsilon=_float32(norm.epsilon))
    if outputs == 1:
        return (made,)
    for unused in made[1:3]:  # mean and deviation: absent
        unused.name = ""
    return made


def _ordered(m: Match, first: ir.Value, skip: ir.Value, norm: Norm) -> tuple[ir.Value, ir.Value]:
    """The operand of full shape, then the other, which a layer norm may repeat over the batch."""
    if m.same_shape(first, skip):
        return first, skip
    for full, other in ((first, skip), (skip, first)):
        if norm.centred and m.rank(full) == m.rank(other) == 3:
            rows, wanted = m.dims(other), m.dims(full)
            if rows[0] == 1 and all(m.equal(a, b) for a, b in zip(rows[1:], wanted[1:], strict=True)):
                return full, other
    raise NoMatch("the sum broadcasts")


def _take_bias(m: Match, first: ir.Value, skip: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Either operand without the constant 1-D bias that a linear layer just added to it."""
    for value, other in ((first, skip), (skip, first)):
        node = value.producer()
        if (
            node is None
            or node.domain != ""
            or node.op_type != "Add"
            or len(value.uses()) != 1
            or node.graph is not m.root.graph
        ):
            continue
        for product, bias in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            if bias is None or product is None or not m.is_const(bias) or bias.producer() is not None:
                continue
            if m.rank(bias) == 1 and m.same_shape(product, value) and m.equal(m.dims(bias)[0], m.dims(value)[-1]):
                return product, other, bias
    return first, skip, None
