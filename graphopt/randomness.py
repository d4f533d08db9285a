"""Which outputs of a model are random: nothing to compare there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.ir.optable import RANDOM_OPS
from graphopt.ir.sites import subgraphs

if TYPE_CHECKING:
    from graphopt import ir


def random_outputs(model: ir.Model) -> frozenset[str]:
    """Names of the graph outputs that depend on an op whose results are random."""
    tainted: set[int] = set()
    for node in model.graph:
        inside = list(_inside(model, node))
        is_random = any(item.op_type in RANDOM_OPS or _trains(item) for item in inside)
        sources = [value for item in inside for value in item.inputs if value is not None]
        if is_random or any(id(value) in tainted for value in sources):
            tainted.update(id(value) for value in node.outputs)
    return frozenset(value.name or "" for value in model.graph.outputs if id(value) in tainted)


def _inside(model: ir.Model, node: ir.Node) -> Iterator[ir.Node]:
    """A node, and the nodes of its subgraphs and of the functions that are called there, each function once."""
    stack, called = [node], set()
    while stack:
        item = stack.pop()
        yield item
        for _, graph in subgraphs(item):
            stack.extend(graph)
        name = item.op_identifier()
        if name in model.functions and name not in called:
            called.add(name)
            stack.extend(model.functions[name])


def _trains(node: ir.Node) -> bool:
    return node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
