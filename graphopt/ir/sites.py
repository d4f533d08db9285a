"""Names for places: a site is (scope path, node name), printed `scope/node`.

Plans, remarks and exclusions speak in sites. Lives here: walking scopes, unique names. Not here: mutation rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.ir.attrtypes import GRAPH, GRAPHS

if TYPE_CHECKING:
    from graphopt import ir


@dataclass(frozen=True)
class Scope:
    """One graph of a model: the main graph (path ''), a subgraph ('loop_1.body') or a function ('domain::name')."""

    path: str
    graph: ir.Graph
    function: ir.Function | None = None


def has_subgraphs(node: ir.Node) -> bool:
    """Whether `subgraphs` gives anything. Walks over all nodes ask this, so it reads the dict behind the attributes."""
    for attr in node.attributes.data.values():  # noqa: SIM110 (any() makes a generator, for each of very many nodes)
        if attr.type in (GRAPH, GRAPHS):
            return True
    return False


def subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that are attributes of a node, by attribute name."""
    for name, attr in node.attributes.items():
        if attr.type == GRAPH and not attr.is_ref():
            yield name, attr.as_graph()
        elif attr.type == GRAPHS and not attr.is_ref():
            for index, graph in enumerate(attr.as_graphs()):
                yield f"{name}[{index}]", graph


def scopes(model: ir.Model, *, nested: bool = True) -> Iterator[Scope]:
    """Every graph of the model, outer before inner, main graph first.

    Args:
        model: the model.
        nested: False leaves out subgraphs, for which every node is looked at.
    """
    yield from _nested("", model.graph, None, nested)
    for function in model.functions.values():
        yield from function_scopes(function, nested=nested)


def function_scopes(function: ir.Function, *, nested: bool = True) -> Iterator[Scope]:
    """The graphs of one function, outer before inner."""
    yield from _nested(f"{function.domain}::{function.name}", function.graph, function, nested)


def callees_first(model: ir.Model) -> list[tuple[str, str, str]]:
    """The functions in an order in which none calls a later one (the standard forbids recursion)."""
    calls: dict[tuple[str, str, str], set[tuple[str, str, str]]] = {
        key: {
            called
            for scope in function_scopes(function)
            for node in scope.graph
            if (called := node.op_identifier()) in model.functions
        }
        for key, function in model.functions.items()
    }
    order: list[tuple[str, str, str]] = []
    entered: set[tuple[str, str, str]] = set()
    stack = [(key, False) for key in reversed(list(model.functions))]
    while stack:
        key, leaving = stack.pop()
        if leaving:
            order.append(key)
        elif key not in entered:
            entered.add(key)
            stack.append((key, True))
            stack.extend((callee, False) for callee in sorted(calls[key]))
    return order


def _nested(path: str, graph: ir.Graph, function: ir.Function | None, nested: bool) -> Iterator[Scope]:
    stack = [Scope(path, graph, function)]
    while stack:
        scope = stack.pop()
        yield scope
        if not nested:
            return
        inner = [
            Scope(f"{scope.path}/{node.name}.{name}".lstrip("/"), sub, function)
            for node in scope.graph
            if has_subgraphs(node)
            for name, sub in subgraphs(node)
        ]
        stack.extend(reversed(inner))


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of every graph and function."""
    for scope in scopes(model):
        yield from scope.graph


def count_nodes(model: ir.Model) -> int:
    """Number of nodes, subgraphs and functions counted."""
    return sum(len(scope.graph) for scope in scopes(model))


def name_nodes(model: ir.Model) -> int:
    """Give every unnamed or doubly named node a unique name (`op_type_N`); return how many were named."""
    named = 0
    for scope in scopes(model):
        seen: set[str] = set()
        counts: dict[str, int] = {}
        repeated = []
        for node in scope.graph:
            if not node.name or node.name in seen:
                repeated.append(node)
            else:
                seen.add(node.name)
        for node in repeated:
            base = node.name or node.op_type
            number = counts.get(base, 0)
            while f"{base}_{number}" in seen:
                number += 1
            counts[base] = number + 1
            node.name = f"{base}_{number}"
            seen.add(node.name)
            named += 1
    return named
