"""Edited plans of quantize-static and search-precision: what does not fit the model is refused by site and field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrating import Calibrating
from graphopt.errors import GraphoptError
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.plan import Plan
from graphopt.manager.runner import run

NET = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 3, 8, 8] x) => (float[N, 3] y) <float[8, 3, 3, 3] w, float[8] b, float[8, 1, 1] k, float[8, 3] v> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu (c)
  a = Add (r, k)
  t = GlobalAveragePool (a)
  f = Flatten (t)
  z = MatMul (f, v)
  y = Softmax <axis = 1> (z) }"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)}


def made(name: str, tmp_path: Path, plans: list[Plan] | None = None, net: str = NET) -> Context:
    model = from_text(net)
    name_nodes(model)
    calibration = Calibrating(model, [FEEDS], tmp_path) if plans is None else None
    ctx = Context(model, calibration=calibration, plans=plans or [])
    run(
        model,
        parse(f"{name}{{method=minmax}}" if name == "quantize-static" else f"{name}{{method=minmax by=work}}"),
        ctx,
    )
    return ctx


def refused(name: str, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    (plan,) = made(name, tmp_path).plans.made
    decisions = copy.deepcopy(dict(plan.decisions))
    assert made(name, tmp_path, [Plan(plan.name, plan.spec, plan.model, decisions)]).rewriter.changes > 4
    edit(decisions)
    with pytest.raises(GraphoptError) as error:
        made(name, tmp_path, [Plan(plan.name, plan.spec, plan.model, decisions)])
    assert message in str(error.value) and error.value.exit_code == 2


def weights(decisions: dict[str, Any], site: str = "Conv_0") -> Any:
    return decisions["nodes"][site]["constants"]["1"]


@pytest.mark.parametrize("name", ["quantize-static", "search-precision"])
@pytest.mark.parametrize("scale", [-1.0, 0, float("nan"), float("inf"), 1e-45, 1e300, True, "1", [1.0], None])
def test_a_scale_of_a_value(tmp_path: Path, name: str, scale: Any) -> None:
    message = f"the plan of {name!r}: values: 'x': scale is "
    refused(name, tmp_path, lambda plan: plan["values"]["x"].update(scale=scale), message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["values"]["x"].update(zero_point=999), "values: 'x': zero_point is 999; an integer from 0 to 255"),
        (lambda p: p["values"]["x"].update(zero_point=0.5), "values: 'x': zero_point is 0.5"),
        (lambda p: p["values"]["x"].update(type="int9"), "values: 'x': type is 'int9'; one of uint8, int8 (opset 17)"),
        (lambda p: p["values"]["x"].update(type="uint16"), "values: 'x': type is 'uint16'"),
        (lambda p: p["values"]["x"].update(axis=1), "values: 'x': axis is 1; null is wanted"),
        (lambda p: p["values"]["x"].pop("axis"), "values: 'x': has no axis"),
        (lambda p: p["values"].update(x=1), "values: 'x': is 1; an object is wanted"),
        (lambda p: p.update(values=[]), "values is a list of 0; an object is wanted"),
        (lambda p: p.pop("values"), "has no values; an object is wanted"),
        (lambda p: p.pop("nodes"), "has no nodes"),
        (lambda p: p.pop("kept"), "has no kept"),
        (lambda p: p.pop("origin"), "has no origin"),
        (lambda p: p["kept"].update(Softmax_0=1), "kept: Softmax_0 is 1; a reason is wanted"),
        (lambda p: p["values"].pop("x"), "has no scale for value 'x'"),
    ],
)
def test_values_and_sections(tmp_path: Path, edit: Any, message: str) -> None:
    refused("quantize-static", tmp_path, edit, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: weights(p).update(scale=[1.0, 2.0]), "scale is a list of 2; a list of 8 positive numbers"),
        (lambda p: weights(p).update(scale=[0.0] * 8), "scale is a list of 8; a list of 8 positive numbers"),
        (lambda p: weights(p).update(scale=1.0), "scale is 1.0; a list of 8 positive numbers"),
        (lambda p: weights(p).update(axis=7), "axis is 7; null or 0 is wanted"),
        (lambda p: weights(p).update(axis=1), "axis is 1; null or 0 is wanted"),
        (lambda p: weights(p).update(axis=None), "scale is a list of 8; a positive number"),
        (
            lambda p: weights(p).update(zero_point=[0, 0]),
            "zero_point is a list of 2; an integer from -128 to 127, or a",
        ),
        (lambda p: weights(p).update(type="int4"), "type is 'int4'; one of int8 (opset 17)"),
        (lambda p: weights(p).update(safe=1), "safe is 1; true or false"),
        (lambda p: p["nodes"]["Conv_0"]["constants"].pop("1"), "has no '1', its weights"),
        (lambda p: p["nodes"]["Conv_0"]["constants"].update({"2": weights(p)}), "there is no '2'; known: 1"),
        (lambda p: p["nodes"]["Conv_0"].pop("constants"), "has no constants"),
        (lambda p: p["nodes"]["Conv_0"].update(op="MatMul"), "op is 'MatMul'; 'Conv' is wanted"),
        (lambda p: p["nodes"]["Conv_0"].update(rounded=[1]), "rounded is a list of 1; a list of outputs, 0 to 0,"),
    ],
)
def test_weights(tmp_path: Path, edit: Any, message: str) -> None:
    refused("quantize-static", tmp_path, edit, message)
    (plan,) = made("quantize-static", tmp_path).plans.made
    decisions = copy.deepcopy(dict(plan.decisions))
    edit(decisions)
    with pytest.raises(GraphoptError, match="nodes: 'Conv_0'"):
        made("quantize-static", tmp_path, [Plan(plan.name, plan.spec, plan.model, decisions)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["nodes"]["Add_0"]["constants"]["1"].update(scale=0), "'Add_0': constants: '1': scale is 0"),
        (lambda p: p["nodes"].update(Softmax_0=p["nodes"]["Relu_0"]), "'Softmax_0': no Softmax runs on codes"),
        (lambda p: p["nodes"].update(Conv_1=p["nodes"]["Conv_0"]), "no node of this model: 'Conv_1'; did you mean"),
    ],
)
def test_other_nodes(tmp_path: Path, edit: Any, message: str) -> None:
    refused("quantize-static", tmp_path, edit, message)


def test_a_node_that_the_planner_left_float_stays_out(tmp_path: Path) -> None:
    net = NET.replace("z = MatMul (f, v)", "e = Exp (v)  z = MatMul (f, e)")
    (plan,) = made("quantize-static", tmp_path, net=net).plans.made
    decisions = copy.deepcopy(dict(plan.decisions))
    decisions["nodes"]["MatMul_0"] = {**decisions["nodes"]["Conv_0"], "op": "MatMul"}
    with pytest.raises(GraphoptError, match="'MatMul_0': its weights and bias are no finite constants"):
        made("quantize-static", tmp_path, [Plan(plan.name, plan.spec, plan.model, decisions)], net)
