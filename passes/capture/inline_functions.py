"""Calls of the model's own functions, replaced by their bodies; the functions go when nothing calls them any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from graphopt.ir.sites import Scope, callees_first, function_scopes, scopes
from graphopt.manager.base import Pass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

Key: TypeAlias = "tuple[str, str, str]"


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """f(x) -> the body of f, for every function of the model whose opsets are the model's.

    Attributes:
        max_nodes: where all bodies together would make the model larger than this, only functions with one call are
            inlined, which makes no model larger: 30 functions that call each other twice stand for 2**30 nodes.
    """

    name: ClassVar[str] = "inline-functions"
    stage: ClassVar[str] = "capture"
    level: ClassVar[int | None] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ()

    max_nodes: int = 100_000

    def run(self, model: ir.Model, ctx: Context) -> None:
        if not model.functions:
            return
        order = callees_first(model)
        fits = _inlined_size(model, order) <= self.max_nodes
        left = 0
        # Callees first, so that a body is complete when it is copied.
        for key in order:
            calls = [node for node in ctx.rewriter.index.of(*key[:2]) if node.op_identifier() == key]
            if fits or len(calls) <= 1:
                self._inline(ctx, model.functions[key], calls)
                continue
            left += 1
            reason = f"all bodies would be over {self.max_nodes} nodes (max_nodes), and this one has {len(calls)} calls"
            for node in calls:
                ctx.remarks.missed(self.name, ctx.rewriter.site(node), node.op_type, reason)
        if left:
            ctx.note(f"{left} functions with several calls stay: all bodies would be over {self.max_nodes} nodes")
        self._drop_uncalled(model, ctx, reversed(order))
        ctx.rewriter.rebuild()

    def _inline(self, ctx: Context, function: ir.Function, calls: Sequence[ir.Node]) -> None:
        used = {inner.domain for scope in function_scopes(function) for inner in scope.graph}
        for node in calls:
            site = ctx.rewriter.site(node)
            reason = _obstacle(ctx, node, function, used)
            if reason is not None:
                ctx.remarks.missed(self.name, site, node.op_type, reason)
                continue
            _Copy(ctx, node, function).run()
            ctx.remarks.applied(self.name, site, node.op_type, f"its body has {len(function)} nodes")

    def _drop_uncalled(self, model: ir.Model, ctx: Context, callers_first: Iterable[Key]) -> None:
        left = _calls(scopes(model))
        for key in callers_first:
            if left[key]:
                continue
            ctx.rewriter.count_model()
            left -= _calls(function_scopes(model.functions[key]))
            del model.functions[key]
            ctx.remarks.applied(self.name, "::".join(part for part in key if part), "function", "nothing calls it")


def _calls(where: Iterable[Scope]) -> Counter[Key]:
    return Counter(node.op_identifier() for scope in where for node in scope.graph)


def _inlined_size(model: ir.Model, order: Sequence[Key]) -> int:
    """Nodes of the main graph when every call is replaced by its body."""
    sizes: dict[Key, int] = {}

    def size(where: Iterable[Scope]) -> int:
        return sum(sizes.get(node.op_identifier(), 1) for scope in where for node in scope.graph)

    for key in order:
        sizes[key] = size(function_scopes(model.functions[key]))
    return size(scope for scope in scopes(model) if scope.function is None)


def _obstacle(ctx: Context, node: ir.Node, function: ir.Function, used: set[str]) -> str | None:
    for domain in sorted(used & set(function.opset_imports)):
        have, want = ctx.rewriter.opset(domain, node), function.opset_imports[domain]
        if domain in ctx.model.opset_imports and have != want:
            return f"the function is of opset {want} of {domain or 'ai.onnx'!r}, its caller of {have}"
    if ctx.rewriter.scope(node).function is function:
        return "the function calls itself"
    if any(value in function.inputs[len(node.inputs) :] for value in function.outputs):
        return "it returns an input that the call does not give"
    return None


class _Copy:
    """The body of a function in the place of one call."""

    def __init__(self, ctx: Context, call: ir.Node, function: ir.Function) -> None:
        self.ctx = ctx
        self.call = call
        self.function = function
        self.values: dict[ir.Value, ir.Value | None] = {}
        given = list(call.inputs) + [None] * (len(function.inputs) - len(call.inputs))
        self.values.update(zip(function.inputs, given, strict=True))

    def run(self) -> None:
        from graphopt import ir

        nodes = [self._node(node) for node in self.function]
        for domain, version in self.function.opset_imports.items():
            self.ctx.model.opset_imports.setdefault(domain, version)
        results = [self.values[value] for value in self.function.outputs]
        empty = ir.Graph([], [], nodes=[], name="body")
        self.ctx.rewriter.splice(self.call, empty, [value for value in results if value is not None], nodes)

    def _node(self, node: ir.Node) -> ir.Node:
        from graphopt import ir

        attributes = [made for attr in node.attributes.values() if (made := self._attribute(attr)) is not None]
        inputs = [None if value is None else self.values.get(value, value) for value in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes,
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            self._like(old, new)
        return copy

    def _like(self, old: ir.Value, new: ir.Value) -> None:
        new.name = self.ctx.rewriter.fresh_name(f"{self.call.name}_{old.name}") if old.name else ""
        new.type, new.shape = old.type, None
        self.values[old] = new

    def _attribute(self, attr: ir.Attr) -> ir.Attr | None:
        """The attribute with the call's value for a parameter; None where neither call nor function gives one."""
        from graphopt import ir

        if attr.is_ref():
            name = attr.ref_attr_name or ""
            given: Mapping[str, ir.Attr] = self.call.attributes
            actual = given.get(name) or self.function.attributes.get(name)
            if actual is None or (not actual.is_ref() and actual.value is None):
                return None
            if actual.is_ref():
                return ir.RefAttr(attr.name, actual.ref_attr_name or "", actual.type)
            return ir.Attr(attr.name, actual.type, actual.value)
        if attr.type == ir.AttributeType.GRAPH:
            return ir.Attr(attr.name, attr.type, self._graph(attr.as_graph()))
        if attr.type == ir.AttributeType.GRAPHS:
            return ir.Attr(attr.name, attr.type, tuple(self._graph(graph) for graph in attr.as_graphs()))
        return attr

    def _graph(self, graph: ir.Graph) -> ir.Graph:
        from graphopt import ir

        inputs = [self._value(value) for value in graph.inputs]
        constants = [self._value(value) for value in graph.initializers.values()]
        nodes = [self._node(node) for node in graph]
        outputs = [self.values[value] for value in graph.outputs]
        return ir.Graph(
            inputs,
            [value for value in outputs if value is not None],
            nodes=nodes,
            initializers=constants,
            opset_imports=dict(graph.opset_imports),
            name=graph.name,
        )

    def _value(self, old: ir.Value) -> ir.Value:
        from graphopt import ir

        new = ir.Value(const_value=old.const_value)
        self._like(old, new)
        new.shape = old.shape
        return new
