"""Which outputs of a model are random: nothing to compare there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.optable import RANDOM_OPS

if TYPE_CHECKING:
    from graphopt import ir


def random_outputs(model: ir.Model) -> frozenset[str]:
    """Names of the graph outputs that depend on an op whose results are random."""
    tainted: set[int] = set()
    for node in model.graph:
        inner = [item for graph in _inner_graphs(node) for item in graph.all_nodes()]
        function = model.functions.get(node.op_identifier())
        inner += list(function.all_nodes()) if function is not None else []
        is_random = any(item.op_type in RANDOM_OPS or _trains(item) for item in (node, *inner))
        sources = [value for item in (node, *inner) for value in item.inputs if value is not None]
        if is_random or any(id(value) in tainted for value in sources):
            tainted.update(id(value) for value in node.outputs)
    return frozenset(value.name or "" for value in model.graph.outputs if id(value) in tainted)


def _inner_graphs(node: ir.Node) -> list[ir.Graph]:
    return [item.as_graph() for item in node.attributes.values() if item.type.name == "GRAPH"]


def _trains(node: ir.Node) -> bool:
    return node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
