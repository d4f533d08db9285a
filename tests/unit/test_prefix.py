"""prefix: the nodes that some values need, also through what branches capture, and the model itself untouched."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.ir.hash import structural_hash
from graphopt.ir.prefix import prefix
from graphopt.ir.text import from_text

MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[N] x, bool b) => (float[N] y, float[N] z) <float two = {2}> {
  a = Mul (x, two)
  c = Neg (a)
  d = Abs (x)
  e = If (b) <
    then_branch = t () => (float[N] p) { p = Exp (c) },
    else_branch = f () => (float[N] q) { q = Identity (d) } >
  y = Relu (e)
  z = Sqrt (d) }"""


def test_only_what_is_needed_is_left(run_model: Any) -> None:
    model = from_text(MODEL)
    was = structural_hash(model)
    cut = prefix(model, ["c"])
    assert [node.op_type for node in cut.graph] == ["Mul", "Neg"]
    assert [value.name for value in cut.graph.inputs] == ["x", "b"]
    assert structural_hash(model) == was
    x = np.array([1.0, -2.0], np.float32)
    np.testing.assert_array_equal(run_model(cut, {"x": x, "b": np.array(True)})["c"], -2 * x)


def test_what_branches_capture_is_needed(run_model: Any) -> None:
    cut = prefix(from_text(MODEL), ["e"])
    assert [node.op_type for node in cut.graph] == ["Mul", "Neg", "Abs", "If"]
    x = np.array([1.0, -2.0], np.float32)
    np.testing.assert_allclose(run_model(cut, {"x": x, "b": np.array(True)})["e"], np.exp(-2 * x), rtol=1e-6)
    np.testing.assert_array_equal(run_model(cut, {"x": x, "b": np.array(False)})["e"], np.abs(x))


def test_several_values_in_the_order_asked_for() -> None:
    cut = prefix(from_text(MODEL), ["d", "a"])
    assert [value.name for value in cut.graph.outputs] == ["d", "a"]
    assert sorted(node.op_type for node in cut.graph) == ["Abs", "Mul"]
