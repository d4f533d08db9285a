"""Common subexpressions: nodes that compute the same, and initializers that hold the same.

One walk in program order per graph; an inner graph sees what outer graphs have computed before it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.constants import nbytes
from graphopt.ir.optable import QUANTIZED_OPS, RANDOM_OPS
from graphopt.ir.sites import has_subgraphs, subgraphs
from graphopt.manager.base import Pass
from graphopt.passes.simplify._content import same_content, sketch

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

_DOMAINS = frozenset({"", "ai.onnx.ml"})
_ATTRIBUTE_BYTES = 4096
"""Tensors in attributes are compared up to this size."""

_META = "graphopt.passes.cse"


class CSE(Pass):
    """f(x), f(x) -> one f(x); equal initializers -> one. Bit patterns decide: -0.0 is not 0.0, NaNs are as their bits.

    Random ops, quantize/dequantize nodes, control flow and ops of unknown domains stay as they are.
    """

    name: ClassVar[str] = "cse"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("fold-constants",)
    needs: ClassVar[tuple[str, ...]] = ()

    def run(self, model: ir.Model, ctx: Context) -> None:
        _merge_initializers(self, ctx)
        _Walk(self, ctx).graph(model.graph, [])
        for function in model.functions.values():
            _Walk(self, ctx).graph(function.graph, [])


class _Walk:
    def __init__(self, item: CSE, ctx: Context) -> None:
        self.item = item
        self.ctx = ctx
        self.nested = ctx.rewriter.index.has_subgraphs

    def graph(self, graph: ir.Graph, outer: list[dict[Hashable, ir.Node]]) -> None:
        seen: dict[Hashable, ir.Node] = {}
        tables = [seen, *outer]
        for node in graph:
            if self.nested and has_subgraphs(node):
                for _, inner in subgraphs(node):
                    self.graph(inner, tables)
            key = _key(node)
            if key is None:
                continue
            first = next((table[key] for table in tables if key in table), None)
            if first is None:
                seen[key] = node
            elif not self._merge(node, first):
                # An output that cannot be merged may still stand for later nodes of this graph.
                seen.setdefault(key, node)

    def _merge(self, node: ir.Node, first: ir.Node) -> bool:
        rewriter = self.ctx.rewriter
        if first.graph is not node.graph and _is_second_cast(first):
            return False
        pairs = [
            (old, new)
            for old, new in zip(node.outputs, first.outputs, strict=True)
            if old.uses() or old.is_graph_output()
        ]
        for old, new in pairs:
            # An output of an inner graph must be made in it: nothing is won by an Identity of the outer value.
            if not new.name or (old.is_graph_output() and (first.graph is not node.graph or new.is_graph_output())):
                return False
        site, op = rewriter.site(node), node.op_type
        for old, new in pairs:
            rewriter.merge(old, new, node)
        if node.graph is not None and pairs:
            rewriter.erase(node)
            self.ctx.remarks.applied(self.item.name, site, op, f"computes the same as {first.name!r}")
        return True


def _is_second_cast(node: ir.Node) -> bool:
    """Whether it casts what was cast: ONNX Runtime makes one of the two and forgets that an inner graph reads it."""
    above = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
    return above is not None and above.op_type == "Cast"


def _key(node: ir.Node) -> Hashable:
    """What the node computes; None where it may not be merged."""
    if node.domain not in _DOMAINS or node.op_type in RANDOM_OPS or node.op_type in QUANTIZED_OPS:
        return None
    if node.op_type == "Dropout" and len(node.inputs) > 2:  # it may be training
        return None
    attributes: tuple[Hashable, ...] = ()
    if node.attributes:
        parts = [_attribute(attr) for attr in node.attributes.values()]
        if None in parts:
            return None
        attributes = tuple(sorted(parts, key=lambda part: part[0]))  # type: ignore[index]
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return (node.op_type, node.domain, tuple(map(id, inputs)), attributes, len(node.outputs))


def _attribute(attr: ir.Attr) -> tuple[str, Hashable] | None:
    import struct

    if attr.is_ref():
        return (attr.name, f"@{attr.ref_attr_name}")
    kind = attr.type.name
    if kind == "FLOAT":
        return (attr.name, struct.pack("d", attr.value))
    if kind == "FLOATS":
        return (attr.name, struct.pack(f"{len(attr.value)}d", *attr.value))
    if kind in ("INT", "STRING"):
        return (attr.name, attr.value)
    if kind in ("INTS", "STRINGS"):
        return (attr.name, tuple(attr.value))
    if kind == "TENSOR" and nbytes(attr.value) <= _ATTRIBUTE_BYTES:
        tensor = attr.value
        return (attr.name, (tensor.dtype.name, tuple(tensor.shape.numpy()), _bytes(tensor)))
    return None


def _bytes(tensor: ir.TensorProtocol) -> bytes:
    return repr(tensor.numpy().tolist()).encode() if tensor.dtype.name == "STRING" else tensor.tobytes()


def _merge_initializers(item: CSE, ctx: Context) -> None:
    """Equal initializers of one graph, or of a graph and those around it, become one."""
    groups: dict[Hashable, list[ir.Value]] = {}
    parents = _parents(ctx)
    for scope in ctx.rewriter.scopes():
        for name, value in list(scope.graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or value.is_graph_input() or value.is_graph_output() or not value.uses():
                continue
            if nbytes(tensor) > ctx.max_bytes or tensor.dtype.name == "STRING" or _is_rewritten(value, tensor):
                continue
            earlier = groups.setdefault(_sketch(value, tensor), [])
            for other in earlier:
                if _sees(scope.graph, other.graph, parents) and same_content(other.const_value, tensor):
                    user = next(iter(value.uses())).node
                    ctx.rewriter.merge(value, other, user)
                    ctx.rewriter.drop_initializer(scope.graph, name)
                    ctx.remarks.applied(item.name, name, "initializer", f"holds the same as {other.name!r}")
                    break
            else:
                earlier.append(value)


def _is_rewritten(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """int8 codes or their zero point: ONNX Runtime may make uint8 of them, and fails where two nodes share them."""
    return tensor.dtype.name == "INT8" and any(
        use.node.op_type == "DequantizeLinear" and use.idx in (0, 2) for use in value.uses()
    )


def _sketch(value: ir.Value, tensor: ir.TensorProtocol) -> Hashable:
    """The sketch, kept with the value: reading a weight may copy it, and this pass runs in every round."""
    kept = value.meta.get(_META)
    if kept is None or kept[0] is not tensor:
        kept = value.meta[_META] = (tensor, sketch(tensor))
    return kept[1]


def _parents(ctx: Context) -> dict[int, ir.Graph | None]:
    """The graph around each inner graph, by id."""
    found: dict[int, ir.Graph | None] = {}
    if not ctx.rewriter.index.has_subgraphs:
        return found
    for scope in ctx.rewriter.scopes():
        found.setdefault(id(scope.graph), None)
        for node in scope.graph:
            if has_subgraphs(node):
                for _, inner in subgraphs(node):
                    found[id(inner)] = scope.graph
    return found


def _sees(inner: ir.Graph, outer: ir.Graph | None, parents: dict[int, ir.Graph | None]) -> bool:
    at: ir.Graph | None = inner
    while at is not None:
        if at is outer:
            return True
        at = parents.get(id(at))
    return False
