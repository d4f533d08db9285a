"""Single findings of a review, each with the smallest model that showed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import ir
from graphopt.artifact import publish
from graphopt.diffing import difference
from graphopt.errors import VerificationError
from graphopt.ir.text import from_text
from graphopt.ir.verifier import verify
from graphopt.manager import pipeline
from graphopt.spec import SpecError

HEAD = '<ir_version: 10, opset_import: ["" : 21]> '


def test_saving_over_the_own_data_file_leaves_the_model_readable(tmp_path: Path) -> None:
    model = from_text(HEAD + "g (float[N,999] x) => (float[N,999] y) <float[999] w, float[999] v> { y = Add(x, w) }")
    graphopt.save(model, tmp_path / "m.onnx", "always")
    loaded = graphopt.load(tmp_path / "m.onnx")
    wanted = np.array(loaded.graph.initializers["w"].const_value.numpy())
    del loaded.graph.initializers["v"]
    graphopt.save(loaded, tmp_path / "m.onnx")
    for model in (loaded, graphopt.load(tmp_path / "m.onnx")):
        assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), wanted)


LOOP = """g (int64 n, bool c, float[2] x) => (float[2] y)
{ y = Loop(n, c, x%s) <body = b (int64 i, bool k, float[2] v) => (bool o, float[2] w%s)
  { o = Identity(k) w = Neg(v) }> }"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOOP % (", x", ""), "has 3 inputs, Loop gives it 4"),
        (LOOP % ("", ", float[2] w"), "has 3 outputs, Loop needs 2"),
        (
            "g (bool c, float[2] x) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a) { a = Neg(x) },"
            " else_branch = e () => (float[2] b, float[2] d) { b = Abs(x) d = Abs(x) }> }",
            "has 2 outputs, If needs 1",
        ),
    ],
)
def test_bodies_must_fit_their_node(text: str, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        verify(_named(from_text(HEAD + text)))


def _named(model: ir.Model) -> ir.Model:
    from graphopt.ir.sites import name_nodes

    name_nodes(model)
    return model


def test_a_pipeline_nested_too_deep_is_a_grammar_error() -> None:
    with pytest.raises(SpecError, match="nested deeper than"):
        pipeline.parse("fix(" * 3000 + "cse" + ")" * 3000)


def test_a_foreign_error_is_not_taken_for_an_unwritable_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), publish(tmp_path / "out"):
        raise FileNotFoundError(2, "No such file", "/lib/libfoo.so")


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        ("LeakyRelu<alpha=0.1>(x)", "LeakyRelu<alpha=0.2>(x)", "alpha"),
        ("Sub(x, z)", "Sub(z, x)", "operands"),
    ],
)
def test_diff_shows_what_was_edited_in_place(a: str, b: str, what: str) -> None:
    first, second = (
        _named(from_text(HEAD + f"g (float[2] x, float[2] z) => (float[2] y) {{ y = {op} }}")) for op in (a, b)
    )
    found = difference(first, second)
    assert not found.equal and [row[2] for row in found.edited] == [what]
    assert difference(first, first).edited == ()
