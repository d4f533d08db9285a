"""Calls of the model's own functions, replaced by their bodies; the functions go when nothing calls them any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.sites import scopes
from graphopt.manager.base import Pass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context


class InlineFunctions(Pass):
    """f(x) -> the body of f, for every function of the model whose opsets are the model's."""

    name: ClassVar[str] = "inline-functions"
    stage: ClassVar[str] = "capture"
    level: ClassVar[int | None] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ()

    def run(self, model: ir.Model, ctx: Context) -> None:
        if not model.functions:
            return
        # Callees first, so that a body is complete when it is copied.
        for key in _callees_first(model):
            self._inline(model, ctx, model.functions[key])
        for key in list(model.functions):
            if not _calls(model, key):
                ctx.rewriter.count_model()
                del model.functions[key]
                ctx.remarks.applied(self.name, "::".join(part for part in key if part), "function", "nothing calls it")
        ctx.rewriter.rebuild()

    def _inline(self, model: ir.Model, ctx: Context, function: ir.Function) -> None:
        for node in _calls(model, function.identifier()):
            site = ctx.rewriter.site(node)
            reason = _obstacle(model, ctx, node, function)
            if reason is not None:
                ctx.remarks.missed(self.name, site, node.op_type, reason)
                continue
            _Copy(ctx, node, function).run()
            ctx.remarks.applied(self.name, site, node.op_type, f"its body has {len(function)} nodes")


def _calls(model: ir.Model, key: tuple[str, str, str]) -> list[ir.Node]:
    return [node for scope in scopes(model) for node in scope.graph if node.op_identifier() == key]


def _callees_first(model: ir.Model) -> list[tuple[str, str, str]]:
    """The functions in an order in which none calls a later one (the standard forbids recursion)."""
    order: list[tuple[str, str, str]] = []
    state: dict[tuple[str, str, str], bool] = {}
    calls: dict[tuple[str, str, str], set[tuple[str, str, str]]] = {key: set() for key in model.functions}
    for scope in scopes(model):
        if scope.function is not None:
            calls[scope.function.identifier()].update(
                key for node in scope.graph if (key := node.op_identifier()) in model.functions
            )
    stack = [(key, False) for key in reversed(list(model.functions))]
    while stack:
        key, leaving = stack.pop()
        if leaving:
            order.append(key)
        elif key not in state:
            state[key] = True
            stack.append((key, True))
            stack.extend((callee, False) for callee in sorted(calls[key]))
    return order


def _obstacle(model: ir.Model, ctx: Context, node: ir.Node, function: ir.Function) -> str | None:
    used = {inner.domain for scope in scopes(model) if scope.function is function for inner in scope.graph}
    for domain in sorted(used & set(function.opset_imports)):
        have, want = ctx.rewriter.opset(domain, node), function.opset_imports[domain]
        if domain in model.opset_imports and have != want:
            return f"the function is of opset {want} of {domain or 'ai.onnx'!r}, its caller of {have}"
    if any(inner is node for scope in scopes(model) if scope.function is function for inner in scope.graph):
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
