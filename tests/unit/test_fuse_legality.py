"""The portable fusions beyond one flat float graph: targets, half precision, subgraphs, functions, sharing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import RunResult, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
HALF = 3e-3
"""Largest relative difference in half precision: the weights are rounded once more."""


class Lacks:
    """A target that has every standard op but the named ones."""

    def __init__(self, *ops: str) -> None:
        self.ops = ops

    def supports(self, domain: str, op_type: str, version: int, dtype: str | None = None) -> str | None:
        return f"no kernel for {op_type}" if op_type in self.ops or domain else None

    def quirks(self) -> frozenset[str]:
        return frozenset()


def _model(body: str) -> Any:
    model = from_text(f"{HEAD} {body}" if not body.startswith("<") else body)
    name_nodes(model)
    return model


def _ops(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(model))


def _run(model: Any, text: str, target: Any = None) -> RunResult:
    return run(model, parse(text), Context(model, target=target))


def _reasons(result: RunResult) -> list[str]:
    return [remark.reason for remark in result.ctx.remarks if remark.status == "missed"]


HARD_SWISH = """g (float[N, 4] x) => (float[N, 4] y) <float z = {0}, float six = {6}, float three = {3}> {
    a = Add (x, three)  b = Clip (a, z, six)  c = Mul (x, b)  y = Div (c, six) }"""
GELU = """g (float[N, 4] x) => (float[N, 4] y) <float r = {1.4142135}, float one = {1}, float half = {0.5}> {
    a = Div (x, r)  b = Erf (a)  c = Add (b, one)  d = Mul (x, half)  y = Mul (d, c) }"""


def test_a_target_without_the_op_is_named_in_a_remark() -> None:
    model = _model(GELU)
    result = _run(model, "fuse-gelu", Lacks("Gelu"))
    assert "Gelu" not in _ops(model)
    assert _reasons(result) == ["no kernel for Gelu"]


def test_hard_swish_falls_back_to_hard_sigmoid(run_model: Any, difference: Any) -> None:
    model, feeds = _model(HARD_SWISH), {"x": 4 * np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    want = run_model(model, feeds)["y"]
    _run(model, "fuse-hard-swish", Lacks("HardSwish"))
    assert _ops(model) == {"HardSigmoid": 1, "Mul": 1}
    assert difference(want, run_model(model, feeds)["y"]) <= 1e-6


def test_hard_swish_needs_one_of_both() -> None:
    model = _model(HARD_SWISH)
    result = _run(model, "fuse-hard-swish", Lacks("HardSwish", "HardSigmoid"))
    assert _ops(model)["Clip"] == 1
    assert "no kernel for HardSigmoid" in _reasons(result)


def test_decompose_without_names_takes_what_the_target_lacks() -> None:
    model = _model("g (float[N, 4] x) => (float[N, 4] y) { a = Gelu (x)  y = HardSwish (a) }")
    _run(model, "decompose-ops", Lacks("Gelu"))
    assert _ops(model)["Gelu"] == 0 and _ops(model)["HardSwish"] == 1


def test_decompose_without_names_and_target_does_nothing() -> None:
    model = _model("g (float[N, 4] x) => (float[N, 4] y) { y = Gelu (x) }")
    _run(model, "decompose-ops")
    assert _ops(model) == {"Gelu": 1}


def test_decompose_refuses_an_unknown_op() -> None:
    with pytest.raises(GraphoptError, match="did you mean 'Gelu'"):
        parse("decompose-ops{ops=[Gelo]}")


def test_half_precision_is_folded_in_double(run_model: Any, difference: Any) -> None:
    model = _model("""g (float16[N, 3, 6] x) => (float16[N, 4, 4] y)
        <float16[4, 3, 3] w, float[4] scale, float[4] shift, float[4] mean, float[4] var>
        { c = Conv (x, w)  y = BatchNormalization (c, scale, shift, mean, var) }""")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float16)}
    want = run_model(model, feeds)["y"]
    _run(model, "fuse-conv-bn")
    assert _ops(model) == {"Conv": 1}
    assert {value.dtype.name for value in model.graph.initializers.values()} == {"FLOAT16"}
    assert difference(want, run_model(model, feeds)["y"]) <= HALF


def test_layer_norm_takes_casts_around_it_in(run_model: Any, difference: Any) -> None:
    model = _model("""g (float16[N, 8] x) => (float16[N, 8] y)
        <int64[1] ax = {-1}, float eps = {0.001}, float16[8] w, float16[8] b> {
        f = Cast <to = 1> (x)  m = ReduceMean (f, ax)  d = Sub (f, m)  q = Mul (d, d)  v = ReduceMean (q, ax)
        e = Add (v, eps)  s = Sqrt (e)  n = Div (d, s)  h = Cast <to = 10> (n)  g = Mul (h, w)  y = Add (g, b) }""")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float16)}
    want = run_model(model, feeds)["y"]
    _run(model, "fuse-layer-norm")
    assert _ops(model) == {"LayerNormalization": 1}
    assert difference(want, run_model(model, feeds)["y"]) <= HALF


def test_a_weight_of_the_outer_graph_stays_for_its_other_user(run_model: Any, difference: Any) -> None:
    model = _model("""g (bool c, float[1, 2, 4] x) => (float[1, 3, 2] y, float[1, 3, 2] z)
        <float[3, 2, 3] w, float[3] scale, float[3] shift, float[3] mean, float[3] var> {
        y = If (c) <then_branch = t () => (float[1, 3, 2] a) {
                p = Conv (x, w)  a = BatchNormalization (p, scale, shift, mean, var) },
            else_branch = e () => (float[1, 3, 2] b) { b = Conv (x, w) }>
        z = Conv (x, w) }""")
    feeds = {"c": np.array(True), "x": np.random.default_rng(0).standard_normal((1, 2, 4)).astype(np.float32)}
    want = run_model(model, feeds)
    _run(model, "fuse-conv-bn")
    assert _ops(model) == {"If": 1, "Conv": 3}
    got = run_model(model, feeds)
    assert max(difference(want[name], got[name]) for name in want) <= 1e-5
    feeds["c"] = np.array(False)
    np.testing.assert_array_equal(run_model(model, feeds)["y"], got["z"])


def test_function_bodies_are_fused_and_get_constant_nodes(run_model: Any, difference: Any) -> None:
    model = _model("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[N, 2, 4] x) => (float[N, 2, 4] y) { y = local.f (x) }
        <domain: "local", opset_import: ["": 21]> f (a) => (b) {
            w = Constant <value = float[2, 2, 1] {1, 2, 3, 4}> ()  s = Constant <value_float = 0.5> ()
            c = Conv (a, w)  b = Mul (c, s) }""")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 2, 4)).astype(np.float32)}
    want = run_model(model, feeds)["y"]
    _run(model, "fuse-conv-scale,dce")
    assert difference(want, run_model(model, feeds)["y"]) <= 1e-6
    assert _ops(model) == {"f": 1, "Conv": 1, "Constant": 1}


def test_a_default_that_the_caller_may_override_is_no_constant() -> None:
    model = _model("""g (float[N, 2, 4] x, float s) => (float[N, 3, 2] y) <float[3, 2, 3] w, float s = {2}>
        { c = Conv (x, w)  y = Mul (c, s) }""")
    _run(model, "fuse-conv-scale")
    assert _ops(model) == {"Conv": 1, "Mul": 1}


def test_factors_of_activations_are_not_folded_away_first(run_model: Any, difference: Any) -> None:
    """The 1/6 of a HardSwish belongs to it, though the Conv behind could take it."""
    model = _model("""g (float[N, 2, 4] x) => (float[N, 3, 4] y)
        <float z = {0}, float six = {6}, float three = {3}, float[3, 2, 1] w> {
        a = Add (x, three)  b = Clip (a, z, six)  c = Mul (x, b)  d = Div (c, six)  y = Conv (d, w) }""")
    feeds = {"x": 4 * np.random.default_rng(0).standard_normal((2, 2, 4)).astype(np.float32)}
    want = run_model(model, feeds)["y"]
    _run(model, "@fuse-portable")
    assert _ops(model) == {"HardSwish": 1, "Conv": 1}
    assert difference(want, run_model(model, feeds)["y"]) <= 1e-6


def test_a_concat_of_unknown_rank_is_no_missed_attention() -> None:
    model = _model("g (float x, float z) => (float y) { a = Relu (x) b = Relu (z) y = Concat <axis = -2> (a, b) }")
    for value in model.graph.inputs:
        value.shape = None
    result = _run(model, "fuse-attention", Lacks())
    assert not _reasons(result)
