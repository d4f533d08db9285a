"""The model as a networkx graph: nodes are node sites, edges are values.

Not here: queries over the graph; callers use networkx for these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.sites import Scope, scopes, subgraphs

if TYPE_CHECKING:
    import networkx

    from graphopt import ir


def to_networkx(model: ir.Model) -> networkx.MultiDiGraph:
    """Every node of every scope, with an edge per use of a value.

    Nodes are sites (`scope/name`) with attributes `node`, `op_type`, `domain`, `scope`. Edges are keyed by value name
    with attributes `value` and `kind`: `data` within a scope, `capture` into a subgraph, `argument` from a node to the
    readers of its body's inputs, `result` from the producer of a body's output to the node that owns the body.
    Unnamed nodes are `op_type#position`.
    """
    import networkx

    graph = networkx.MultiDiGraph()
    sites: dict[ir.Node, str] = {}
    owners: dict[ir.Value, str] = {}
    all_scopes = list(scopes(model))
    for scope in all_scopes:
        for position, node in enumerate(scope.graph):
            sites[node] = _site(scope, node, position)
            graph.add_node(sites[node], node=node, op_type=node.op_type, domain=node.domain, scope=scope.path)
            for _, body in subgraphs(node):
                owners.update(dict.fromkeys(body.inputs, sites[node]))
    for scope in all_scopes:
        for node in scope.graph:
            _add_uses(graph, node, sites, owners, scope)
            for _, body in subgraphs(node):
                for value in body.outputs:
                    producer = value.producer()
                    if producer is not None:
                        graph.add_edge(sites[producer], sites[node], key=value.name, value=value, kind="result")
    return graph


def _add_uses(
    graph: networkx.MultiDiGraph, node: ir.Node, sites: dict[ir.Node, str], owners: dict[ir.Value, str], scope: Scope
) -> None:
    for value in dict.fromkeys(value for value in node.inputs if value is not None):
        producer = value.producer()
        if producer is not None:
            kind = "data" if graph.nodes[sites[producer]]["scope"] == scope.path else "capture"
            graph.add_edge(sites[producer], sites[node], key=value.name, value=value, kind=kind)
        elif value in owners:
            graph.add_edge(owners[value], sites[node], key=value.name, value=value, kind="argument")


def _site(scope: Scope, node: ir.Node, position: int) -> str:
    return f"{scope.path}/{node.name or f'{node.op_type}#{position}'}".lstrip("/")
