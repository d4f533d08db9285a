"""A graph while it is being made: nodes, inputs, initializers and outputs as protos that may still change.

Not here: which graphs are made (blocks.py, splice.py) and how they are run (harness.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 21
Dims = list[int | str | None] | None
Dim = tuple[int, int]
Shape = tuple[Dim, ...]
"""A dim is a pair of sizes, one per binding of the symbols (harness.BINDINGS); static when both are the same."""


@dataclass
class Draft:
    """What a graph consists of. `types` and `shapes` have the values whose type or shape is known."""

    nodes: list[NodeProto] = field(default_factory=list)
    inputs: dict[str, ValueInfoProto] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    weights: dict[str, TensorProto] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    imports: dict[str, int] = field(default_factory=lambda: {"": OPSET})
    counter: int = 0

    def fresh(self, hint: str = "v") -> str:
        """A name that nothing else has: no block uses names with a tilde."""
        self.counter += 1
        return f"{hint}~{self.counter}"

    def add(
        self, op: str, inputs: list[str], kind: int | None = None, name: str | None = None, **attributes: object
    ) -> str:
        """Append a node with one output of element type `kind` (that of its first input when not given)."""
        output = name or self.fresh(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        known = kind if kind is not None else self.types.get(inputs[0]) if inputs else None
        if known is not None:
            self.types[output] = known
        return output

    def input(self, name: str, kind: int, dims: Dims) -> str:
        """A graph input; dims None is an unknown rank."""
        self.inputs[name] = helper.make_tensor_value_info(name, kind, dims)
        self.types[name] = kind
        return name

    def weight(self, array: np.ndarray, hint: str = "w") -> str:
        """An initializer."""
        name = self.fresh(hint)
        self.weights[name] = numpy_helper.from_array(np.asarray(array), name)
        self.types[name] = self.weights[name].data_type
        return name

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.weights[name])

    def model(self) -> ModelProto:
        """The model; outputs are typed, their shapes left open."""
        outputs = [
            helper.make_tensor_value_info(name, self.types.get(name, TensorProto.FLOAT), None) for name in self.outputs
        ]
        graph = helper.make_graph(self.nodes, "g", list(self.inputs.values()), outputs, list(self.weights.values()))
        imports = [helper.make_opsetid(domain, version) for domain, version in self.imports.items()]
        return helper.make_model(graph, opset_imports=imports, functions=self.functions, ir_version=10)


def names_of(node: NodeProto) -> Iterator[str]:
    """Every name that a node reads, its bodies included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from (output.name for output in inner.output)
            for item in inner.node:
                yield from names_of(item)


def rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename values in a node and its bodies, in place."""
    for side in (node.input, node.output):
        for index, name in enumerate(side):
            side[index] = names.get(name, name)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            rename_graph(inner, names)


def rename_graph(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values in a graph and the bodies in it, in place."""
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.name = names.get(item.name, item.name)
    for node in graph.node:
        rename(node, names)


def made_in(nodes: list[NodeProto]) -> set[str]:
    """Every value name that the nodes or the bodies in them define."""
    found: set[str] = set()
    for node in nodes:
        found.update(name for name in node.output if name)
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                found.update(item.name for item in (*inner.input, *inner.initializer))
                found |= made_in(list(inner.node))
    return found


def drop_dead(draft: Draft) -> None:
    """Remove nodes, weights and inputs that no output needs."""
    needed = set(draft.outputs)
    kept: list[NodeProto] = []
    for node in reversed(draft.nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(names_of(node))
    draft.nodes = kept[::-1]
    draft.weights = {name: tensor for name, tensor in draft.weights.items() if name in needed}
    draft.inputs = {name: info for name, info in draft.inputs.items() if name in needed}
