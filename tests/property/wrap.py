"""Puts a whole graph into the branches of an If, the body of a Loop or a function, with captures.

Not here: what the graph computes.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.random import Generator
from onnx import GraphProto, NodeProto, TensorProto, helper
from property.draft import Draft, made_in, names_of, rename


def _body(random: Generator, draft: Draft, nodes: list[NodeProto], outputs: list[str], name: str) -> GraphProto:
    """A body that holds the nodes and, of the weights that only they read, some as its own initializers."""
    infos = [helper.make_tensor_value_info(item, draft.types[item], None) for item in outputs]
    return helper.make_graph(nodes, name, [], infos, [])


def _split(random: Generator, draft: Draft) -> tuple[list[NodeProto], list[NodeProto]] | None:
    """Nodes that stay outside, and those that go into the body; a prefix stays, often an empty one."""
    if not draft.nodes or any(name not in draft.types for node in draft.nodes for name in node.output if name):
        return None
    cut = int(random.integers(len(draft.nodes))) if random.random() < 0.4 else 0
    return draft.nodes[:cut], draft.nodes[cut:]


def _results(draft: Draft, inside: list[NodeProto]) -> list[str]:
    made = {name for node in inside for name in node.output}
    return [name for name in draft.outputs if name in made]


def into_if(random: Generator, draft: Draft) -> None:
    """y = graph(x)  ->  y = If(flag) { graph(x) } else { the same graph again }."""
    parts = _split(random, draft)
    if parts is None:
        return
    outside, inside = parts
    results = _results(draft, inside)
    if not results:
        return
    flag = draft.input(draft.fresh("flag"), TensorProto.BOOL, [])
    branches = []
    for number in range(2):
        names = {name: f"{name}@{number}" for name in made_in(inside)}
        nodes = copy.deepcopy(inside)
        for node in nodes:
            rename(node, names)
            node.name = ""
        draft.types.update({new: draft.types[old] for old, new in names.items() if old in draft.types})
        branch = _body(random, draft, nodes, [names[item] for item in results], f"branch{number}")
        if random.random() < 0.3:
            _own_weights(draft, branch, inside, number)
        branches.append(branch)
    outside.append(helper.make_node("If", [flag], results, then_branch=branches[0], else_branch=branches[1]))
    draft.nodes = outside


def _own_weights(draft: Draft, branch: GraphProto, inside: list[NodeProto], number: int) -> None:
    names = {
        name: f"{name}@own{number}"
        for node in inside
        for name in names_of(node)
        if name in draft.weights and name not in draft.inputs
    }
    for name, new in names.items():
        tensor = copy.deepcopy(draft.weights[name])
        tensor.name = new
        branch.initializer.append(tensor)
    for node in branch.node:
        rename(node, names)


def into_loop(random: Generator, draft: Draft) -> None:
    """y = graph(x)  ->  Loop over two trips that stacks graph(x) of each trip; some of it carried along."""
    parts = _split(random, draft)
    if parts is None:
        return
    outside, inside = parts
    results = _results(draft, inside)
    if not results:
        return
    names = {name: f"{name}@l" for name in made_in(inside)}
    for node in inside:
        rename(node, names)
        node.name = ""
    draft.types.update({new: draft.types[old] for old, new in names.items() if old in draft.types})
    trips, go = draft.weight(np.int64(2), "trips"), draft.weight(np.bool_(True), "go")
    body = _body(random, draft, inside, [names[item] for item in results], "body")
    inner_go, step = draft.fresh("go"), draft.fresh("i")
    body.input.extend(
        [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(inner_go, TensorProto.BOOL, []),
        ]
    )
    again = draft.fresh("again")
    body.node.append(helper.make_node("Identity", [inner_go], [again]))
    body.output.insert(0, helper.make_tensor_value_info(again, TensorProto.BOOL, []))
    outside.append(helper.make_node("Loop", [trips, go], results, body=body))
    draft.nodes = outside


def into_function(random: Generator, draft: Draft) -> None:
    """y = graph(x)  ->  y = local.f(x, captured...), with the weights as Constant nodes of the function."""
    parts = _split(random, draft)
    if parts is None:
        return
    outside, inside = parts
    results = _results(draft, inside)
    if not results or any(attribute.HasField("g") for node in inside for attribute in node.attribute):
        return
    made = made_in(inside)
    read = list(dict.fromkeys(name for node in inside for name in names_of(node) if name not in made))
    own = [name for name in read if name in draft.weights and name not in draft.inputs and random.random() < 0.8]
    constants = [helper.make_node("Constant", [], [name], value=draft.weights[name]) for name in own]
    given = [name for name in read if name not in own]
    imports = [helper.make_opsetid(domain, version) for domain, version in draft.imports.items()]
    draft.functions.append(helper.make_function("local", "f", given, results, [*constants, *inside], imports))
    draft.imports["local"] = 1
    times = 2 if random.random() < 0.3 else 1
    outside.append(helper.make_node("f", given, results, domain="local"))
    if times == 2:
        twins = [draft.fresh("twin") for _ in results]
        outside.append(helper.make_node("f", given, twins, domain="local"))
        draft.outputs += twins
        draft.types.update(zip(twins, (draft.types[item] for item in results), strict=True))
    draft.nodes = outside
