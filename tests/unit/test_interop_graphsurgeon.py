"""onnx-graphsurgeon both ways on awkward graphs and real models, and passes written on a gs.Graph."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from graphopt.errors import GraphoptError, MissingDependency, PassError
from graphopt.frontends.onnx import prepare
from graphopt.interop.graphsurgeon import GraphSurgeonPass, from_graphsurgeon, to_graphsurgeon
from graphopt.ir.hash import structural_hash
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import Pipeline
from graphopt.manager.runner import run

gs = pytest.importorskip("onnx_graphsurgeon")
sys.path.insert(0, str(Path(__file__).parent))
from graphs import AWKWARD  # noqa: E402

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w, float[3] b>
{ m = MatMul(x, w)  a = Add(m, b)  y = Relu(a) }
"""


def example() -> Any:
    model = prepare(from_text(TEXT), "example")
    model.metadata_props["author"] = "someone"
    for node in model.graph:
        node.metadata_props["layer"] = node.op_type
    return model


@pytest.mark.parametrize("name", sorted(AWKWARD))
def test_awkward_graphs_survive_both_ways(name: str) -> None:
    model = prepare(AWKWARD[name](), name)
    before = structural_hash(model)
    graph = to_graphsurgeon(model)
    assert structural_hash(from_graphsurgeon(graph)) == before
    assert structural_hash(from_graphsurgeon(graph.copy(), like=model)) == before
    assert structural_hash(model) == before


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["ppocr-cls", "silero-vad", "silero-vad-half", "magika", "light-squeezenet"])
def test_zoo_models_survive_both_ways(name: str) -> None:
    import graphopt
    from graphopt import models

    model = graphopt.load(models.fetch(name))
    assert structural_hash(from_graphsurgeon(to_graphsurgeon(model))) == structural_hash(model)


def test_weights_are_shared_until_they_are_read() -> None:
    model = example()
    graph = to_graphsurgeon(model)
    back = from_graphsurgeon(graph)
    assert back.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    constant = graph.tensors()["w"]
    constant.values[:] = 0
    assert not from_graphsurgeon(graph).graph.initializers["w"].const_value.numpy().any()
    assert model.graph.initializers["w"].const_value.numpy().any()


def test_like_lends_what_graphsurgeon_cannot_hold() -> None:
    model = example()
    graph = to_graphsurgeon(model)
    assert from_graphsurgeon(graph).metadata_props == {}
    back = from_graphsurgeon(graph, like=model)
    assert back.metadata_props == {"author": "someone"}
    assert [node.metadata_props["layer"] for node in back.graph] == ["MatMul", "Add", "Relu"]


def test_graphsurgeons_own_exporter_takes_the_graph() -> None:
    import onnx

    proto = gs.export_onnx(to_graphsurgeon(example()))
    onnx.checker.check_model(proto)
    assert [item.name for item in proto.graph.initializer] == ["w", "b"]


# -- invalid graphs ---------------------------------------------------------------------------------------------


def _dangling(graph: Any) -> None:
    graph.nodes[1].inputs[0] = gs.Variable("ghost", np.float32, [3])


def _twice(graph: Any) -> None:
    graph.nodes.append(gs.Node("Relu", "again", inputs=[graph.inputs[0]], outputs=[gs.Variable("m")]))


def _no_value(graph: Any) -> None:
    graph.nodes[0].attrs["what"] = object()


def _wrong_type(graph: Any) -> None:
    softmax = gs.Node("Softmax", "s", {"axis": "last"}, [graph.inputs[0]], [gs.Variable("s_out")])
    graph.nodes.append(softmax)


def _cycle(graph: Any) -> None:
    graph.nodes[0].inputs[0] = graph.nodes[1].outputs[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_dangling, "uses tensor 'ghost', which no node of the graph makes"),
        (_twice, "two things in graph 'main' make tensor 'm'"),
        (_no_value, "attribute what=.* is no value that ONNX can hold"),
        (_wrong_type, "attribute axis='last' is not of type INT"),
        (_cycle, "cycle"),
    ],
)
def test_invalid_graphs_are_explained(edit: Any, message: str) -> None:
    graph = to_graphsurgeon(example())
    edit(graph)
    with pytest.raises(GraphoptError, match=message):
        from_graphsurgeon(graph)


def test_missing_package_names_the_extra(monkeypatch: Any) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx_graphsurgeon" else find(name))
    with pytest.raises(MissingDependency, match=r"graphopt\[graphsurgeon\]"):
        to_graphsurgeon(example())


# -- passes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReluToClip(GraphSurgeonPass):
    """Relu(x)  ->  Clip(x, 0): as people write it with graphsurgeon."""

    name: ClassVar[str] = "test-relu-to-clip"

    def transform(self, graph: Any) -> Any:
        for index, node in enumerate([node for node in graph.nodes if node.op == "Relu"]):
            low = gs.Constant(f"low_{index}", np.zeros((), np.float32))
            graph.nodes.append(
                gs.Node("Clip", f"clip_{index}", inputs=[node.inputs[0], low], outputs=list(node.outputs))
            )
            node.outputs.clear()
        return graph.cleanup().toposort()


@dataclass(frozen=True)
class RenamesOutput(GraphSurgeonPass):
    """y -> z: not allowed."""

    name: ClassVar[str] = "test-renames-output"

    def transform(self, graph: Any) -> None:
        graph.outputs[0].name = "z"


@dataclass(frozen=True)
class Breaks(GraphSurgeonPass):
    """Leaves an input that nothing makes."""

    name: ClassVar[str] = "test-breaks"

    def transform(self, graph: Any) -> None:
        _dangling(graph)


def test_a_pass_changes_the_model_with_remarks_and_provenance(run_model: Any) -> None:
    model = example()
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    (want,) = run_model(model, feeds).values()
    ctx = Context(model)
    result = run(model, Pipeline((ReluToClip(), ReluToClip())), ctx)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Clip"]
    assert len(result.rewrites) == 1
    (got,) = run_model(model, feeds).values()
    np.testing.assert_array_equal(got, want)
    clip = model.graph[2]
    assert clip.metadata_props["graphopt.from"] == "test-relu-to-clip: Relu_0"
    assert model.graph[0].metadata_props["layer"] == "MatMul"
    assert [(remark.status, remark.reason) for remark in ctx.remarks] == [
        ("applied", "3 nodes became 3"),
        ("note", "transform changed nothing"),
    ]


@pytest.mark.parametrize(
    ("item", "message"),
    [(RenamesOutput(), "changed the outputs from"), (Breaks(), "made a graph that is not valid: .*'ghost'")],
)
def test_a_pass_that_breaks_a_rule_is_named(item: Any, message: str) -> None:
    model = example()
    with pytest.raises(PassError, match=message) as caught:
        run(model, Pipeline((item,)), Context(model))
    assert item.name in str(caught.value)
