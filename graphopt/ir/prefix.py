"""The part of a model that some of its values need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.ir.sites import subgraphs

if TYPE_CHECKING:
    import onnx_ir as ir


def prefix(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy whose outputs are the named values of the main graph, with the nodes that make them; inputs stay."""
    copy = model.clone()
    there = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(there[name] for name in names)
    needed = {value.producer() for value in copy.graph.outputs}
    unneeded = []
    for node in reversed(list(copy.graph)):
        if node not in needed:
            unneeded.append(node)
            continue
        needed.update(value.producer() for value in node.inputs if value is not None)
        for _, body in subgraphs(node):
            for inner in body.all_nodes():
                needed.update(value.producer() for value in inner.inputs if value is not None)
            needed.update(value.producer() for value in body.outputs)
    for node in unneeded:
        for _, body in subgraphs(node):
            for inner in body.all_nodes():
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
        copy.graph.remove(node, safe=True)
    return copy
