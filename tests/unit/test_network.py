"""The networkx form: sites, data edges, captures, and the ways in and out of a body."""

from __future__ import annotations

import networkx
import onnx_ir as ir

from graphopt.analysis.network import to_networkx

HEAD = '<ir_version: 10, opset_import: ["": 21]>\n'


def test_edges_of_every_kind() -> None:
    model = ir.from_onnx_text(
        HEAD
        + """g (float[2] x, bool c) => (float[2] y) {
        [first] t = Relu (x)
        [loop] y = Loop (n, c, t) < body = b (int64 i, bool go, float[2] h) => (bool on, float[2] k) {
            [same] on = Identity (go) \n [add] k = Add (h, t) }> }""".replace("(n, c, t)", "(, c, t)")
    )
    graph = to_networkx(model)
    assert set(graph.nodes) == {"first", "loop", "loop.body/same", "loop.body/add"}
    edges = {(a, b, key): data["kind"] for a, b, key, data in graph.edges(keys=True, data=True)}
    assert edges == {
        ("first", "loop", "t"): "data",
        ("first", "loop.body/add", "t"): "capture",
        ("loop", "loop.body/same", "go"): "argument",
        ("loop", "loop.body/add", "h"): "argument",
        ("loop.body/same", "loop", "on"): "result",
        ("loop.body/add", "loop", "k"): "result",
    }
    assert graph.nodes["loop.body/add"]["scope"] == "loop.body"
    assert graph.nodes["first"]["node"] is model.graph[0]


def test_one_edge_per_value_and_reader() -> None:
    model = ir.from_onnx_text(HEAD + "g (float[2] x) => (float[2] y) { [a] t, m = Dropout (x) \n [b] y = Add (t, t) }")
    graph = to_networkx(model)
    assert list(graph.edges(keys=True)) == [("a", "b", "t")]
    assert networkx.is_directed_acyclic_graph(graph)


def test_unnamed_nodes_have_sites() -> None:
    model = ir.from_onnx_text(HEAD + "g (float[2] x) => (float[2] y) { t = Relu (x) \n y = Relu (t) }")
    for node in model.graph:
        node.name = None
    assert list(to_networkx(model).edges()) == [("Relu#0", "Relu#1")]
