"""The official ONNX node cases, made by onnx's own loader, and the forms in which each is run.

Forms: as it is; all inputs as initializers (folding); inside an If branch; inside a Loop body. Not here: running them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

FORMS = ("plain", "initializers", "if", "loop")
_CONDITION, _TRIPS, _SUFFIX = "conformance_condition", "conformance_trips", "__in"
# Loop and If take every type from opset 16 on; only models without a standard opset get one.
_OPSET = 21


class NotApplicable(Exception):
    """The case cannot be written in this form."""


@dataclass(frozen=True)
class Form:
    """One model to run: feeds by position for each run, and how an output compares with the expected one.

    Attributes:
        runs: for each run, the inputs in order.
        stacked: every output has a new first axis of that length, of equal slices; 0 means outputs are as expected.
    """

    model: ModelProto
    runs: tuple[tuple[Any, ...], ...]
    stacked: int = 0


@dataclass(frozen=True)
class Case:
    """One official case: inputs and expected outputs as arrays (lists for sequences, None for absent optionals)."""

    name: str
    model: ModelProto
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rtol: float
    atol: float

    def form(self, name: str) -> Form:
        """The case in one of FORMS.

        Raises:
            NotApplicable: with the reason.
        """
        build = {"plain": _plain, "initializers": _initializers, "if": _in_if, "loop": _in_loop}[name]
        return build(self)


def collect() -> list[Case]:
    """All node cases of the installed onnx, in the loader's order."""
    from onnx.backend.test.case.node import collect_testcases

    from graphopt.backend import to_array

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    cases = []
    for case in found:
        assert case.model is not None and case.data_sets is not None, f"{case.name} was not generated"
        (inputs, outputs), *rest = case.data_sets
        assert not rest, f"{case.name} has several data sets"
        arrays = (tuple(map(to_array, inputs)), tuple(map(to_array, outputs)))
        cases.append(Case(case.name, case.model, *arrays, case.rtol, case.atol))
    return cases


def _plain(case: Case) -> Form:
    return Form(case.model, (case.inputs,))


def _initializers(case: Case) -> Form:
    model = _copy(case.model)
    kept, feeds = [], []
    for info, array in zip(case.model.graph.input, case.inputs, strict=True):
        if info.type.WhichOneof("value") == "tensor_type" and isinstance(array, np.ndarray):
            model.graph.initializer.append(numpy_helper.from_array(array, info.name))
        else:
            kept.append(info)
            feeds.append(array)
    if not model.graph.initializer:
        raise NotApplicable("no input is a tensor")
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Form(model, (tuple(feeds),))


def _in_if(case: Case) -> Form:
    model, graph = _outer(case)
    branches = [_body(graph, f"{_SUFFIX}{index}") for index in (0, 1)]
    outputs = [info.name for info in graph.output]
    node = helper.make_node("If", [_CONDITION], outputs, then_branch=branches[0], else_branch=branches[1])
    condition = helper.make_tensor_value_info(_CONDITION, onnx.TensorProto.BOOL, [])
    _replace_nodes(model, node, condition)
    runs = tuple((*case.inputs, np.asarray(taken)) for taken in (True, False))
    return Form(model, runs)


def _in_loop(case: Case) -> Form:
    model, graph = _outer(case)
    body = _body(graph, _SUFFIX)
    if any(info.type.WhichOneof("value") != "tensor_type" for info in graph.output):
        raise NotApplicable("an output is no tensor, and a Loop stacks tensors only")
    scalar = helper.make_tensor_value_info
    body.input.extend(
        [scalar("conformance_i", onnx.TensorProto.INT64, []), scalar("conformance_c", onnx.TensorProto.BOOL, [])]
    )
    body.node.append(helper.make_node("Identity", ["conformance_c"], ["conformance_go"]))
    body.output.insert(0, scalar("conformance_go", onnx.TensorProto.BOOL, []))
    outputs = [info.name for info in graph.output]
    node = helper.make_node("Loop", [_TRIPS, ""], outputs, body=body)
    _replace_nodes(model, node, scalar(_TRIPS, onnx.TensorProto.INT64, []))
    for info in model.graph.output:
        if info.type.tensor_type.HasField("shape"):
            dims = list(info.type.tensor_type.shape.dim)
            del info.type.tensor_type.shape.dim[:]
            info.type.tensor_type.shape.dim.add().dim_param = "conformance_trips_dim"
            info.type.tensor_type.shape.dim.extend(dims)
    return Form(model, ((*case.inputs, np.asarray(2, np.int64)),), stacked=2)


def _copy(model: ModelProto) -> ModelProto:
    new = ModelProto()
    new.CopyFrom(model)
    return new


def _outer(case: Case) -> tuple[ModelProto, GraphProto]:
    """A copy of the model that imports the standard opset, and the case's own graph."""
    model = _copy(case.model)
    version = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), None)
    if version is None:
        model.opset_import.append(helper.make_opsetid("", _OPSET))
    elif version < 11:
        raise NotApplicable(f"opset {version} knows no outer values of another shape in If and Loop")
    return model, case.model.graph


def _replace_nodes(model: ModelProto, node: NodeProto, extra: Any) -> None:
    del model.graph.node[:]
    del model.graph.value_info[:]
    model.graph.node.append(node)
    model.graph.input.append(extra)


def _body(graph: GraphProto, suffix: str) -> GraphProto:
    """The graph's nodes as a subgraph that captures the graph's inputs; every name it makes gets the suffix."""
    outer = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    body = GraphProto()
    body.name = f"body{suffix}"
    body.node.extend(graph.node)
    body.output.extend(graph.output)
    _rename(body, outer, suffix)
    return body


def _rename(graph: GraphProto, outer: set[str], suffix: str) -> None:
    def new(name: str) -> str:
        return name if not name or name in outer else f"{name}{suffix}"

    for info in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        info.name = new(info.name)
    for node in graph.node:
        node.name = new(node.name)
        for names in (node.input, node.output):
            names[:] = [new(name) for name in names]
        for attribute in _graph_attributes(node):
            for sub in (attribute.g, *attribute.graphs):
                _rename(sub, outer, suffix)


def _graph_attributes(node: NodeProto) -> Iterator[AttributeProto]:
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            yield attribute
