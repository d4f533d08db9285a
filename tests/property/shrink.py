"""Makes a failing graph small: fewer outputs, fewer nodes, inner values as inputs, as long as the failure stays.

Not here: what a failure is; `still_fails` decides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import onnx
from onnx import ModelProto, helper
from property.draft import names_of
from property.harness import make_feeds, outputs

_TRIES = 300


def shrink(proto: ModelProto, still_fails: Callable[[ModelProto], bool]) -> ModelProto:
    """The smallest graph found by greedy cuts."""
    tries = 0
    progress = True
    while progress:
        progress = False
        for candidate in _smaller(proto):
            tries += 1
            if tries > _TRIES:
                return proto
            if still_fails(candidate):
                proto, progress = candidate, True
                break
    return proto


def _smaller(proto: ModelProto) -> Iterator[ModelProto]:
    """Candidates, the boldest first."""
    graph = proto.graph
    if len(graph.output) > 1:
        for index in range(len(graph.output)):
            made = copy.deepcopy(proto)
            del made.graph.output[index]
            yield _without_dead(made)
    shapes = _shapes(proto)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if index < len(graph.node) - 1 and all(name in shapes for name in node.output if name):
            yield _cut(proto, index, shapes)
    for index, node in enumerate(graph.node):
        # The last nodes: their inputs become the outputs.
        if all(name in {item.name for item in graph.output} for name in node.output if name):
            made = copy.deepcopy(proto)
            kept = [item for item in made.graph.output if item.name not in node.output]
            new = [
                name
                for name in dict.fromkeys(names_of(node))
                if name in shapes and any(name in other.output for other in graph.node)
            ]
            del made.graph.output[:]
            del made.graph.node[index]
            made.graph.output.extend(kept)
            there = {item.name for item in kept}
            made.graph.output.extend(_info(name, shapes, known=False) for name in new if name not in there)
            if len(made.graph.output):
                yield _without_dead(made)


def _cut(proto: ModelProto, index: int, shapes: dict[str, tuple]) -> ModelProto:
    """Node `index` is gone and what it made is given."""
    made = copy.deepcopy(proto)
    node = made.graph.node[index]
    names = [name for name in node.output if name]
    outputs_left = [item for item in made.graph.output if item.name not in names]
    del made.graph.node[index]
    del made.graph.output[:]
    made.graph.output.extend(outputs_left)
    made.graph.input.extend(_info(name, shapes, known=True) for name in names)
    return _without_dead(made)


def _info(name: str, shapes: dict[str, tuple], known: bool) -> onnx.ValueInfoProto:
    kind, dims = shapes[name]
    return helper.make_tensor_value_info(name, kind, dims if known else None)


def _without_dead(proto: ModelProto) -> ModelProto:
    graph = proto.graph
    needed = {item.name for item in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(names_of(node))
    kept = [copy.deepcopy(node) for node in reversed(nodes)]
    del graph.node[:]
    graph.node.extend(kept)
    for table in (graph.input, graph.initializer):
        rest = [copy.deepcopy(item) for item in table if item.name in needed]  # type: ignore[attr-defined]
        del table[:]  # type: ignore[arg-type]
        table.extend(rest)  # type: ignore[arg-type]
    return proto


def _shapes(proto: ModelProto) -> dict[str, tuple]:
    """Element type and dims (symbolic where the two bindings differ) of every inner tensor of the main graph."""
    probe = copy.deepcopy(proto)
    names = [name for node in probe.graph.node for name in node.output if name]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        both = outputs(probe.SerializeToString(), [make_feeds(proto, 0), make_feeds(proto, 1)])
    except Exception:  # sequences or values without a type: cut nothing
        return {}
    found: dict[str, tuple] = {}
    for name, first, second in zip(names, *both, strict=True):
        if isinstance(first, list) or first is None or first.ndim != second.ndim or first.dtype.kind == "O":
            continue
        pairs = {(2, 5): "N", (3, 4): "M"}
        dims = [a if a == b else pairs.get((a, b)) for a, b in zip(first.shape, second.shape, strict=True)]
        if None not in dims and first.dtype.kind not in "iu":
            found[name] = (helper.np_dtype_to_tensor_dtype(first.dtype), dims)
    return found
