"""Models that break the standard in ways that runtimes may let pass: one line that names the fault, and no output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt.errors import GraphoptError
from graphopt.frontends.operand_types import MIXED

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
LOCAL = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>\n'
RELU = HEAD + "g (float[N] x) => (float[N] y) { y = Relu(x) }"
FUNCTION = '<domain: "local", opset_import: ["" : 21, "local": 1]>\n'

Change = Callable[[onnx.ModelProto], object]


def _twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 6], np.float32), "w"))


CASES: dict[str, tuple[str, Change, str]] = {
    "no IR version": (RELU, lambda m: setattr(m, "ir_version", 0), "has no IR version; known are 1 to"),
    "unknown IR version": (RELU, lambda m: setattr(m, "ir_version", 999), "IR version 999; known are 1 to"),
    "no type": (RELU, lambda m: m.graph.input[0].ClearField("type"), "input 'x' has no type"),
    "no element type": (
        RELU,
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 0),
        "input 'x' has no element type",
    ),
    "initializer twice": (
        HEAD + "g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { y = Add(x, w) }",
        _twice,
        "initializer 'w' is there twice",
    ),
    "recursive function": (
        LOCAL + "g (float[N] x) => (float[N] y) { y = local.f(x) }\n" + FUNCTION + "f (a) => (b) { b = local.f(a) }",
        lambda m: None,
        "a function calls itself (local::f -> local::f)",
    ),
    "mutually recursive functions": (
        LOCAL
        + "g (float[N] x) => (float[N] y) { y = local.f(x) }\n"
        + f"{FUNCTION}f (a) => (b) {{ b = local.h(a) }}\n{FUNCTION}h (a) => (b) {{ b = local.f(a) }}",
        lambda m: None,
        "a function calls itself (local::",
    ),
    "recursive through a body": (
        LOCAL
        + "g (float[N] x) => (float[N] y) { y = local.f(x) }\n"
        + FUNCTION
        + "f (a) => (b) { c = Constant<value_int: int = 1>() d = Cast<to=9>(c) "
        + "b = If(d) <then_branch = t () => (e) { e = local.f(a) }, else_branch = u () => (h) { h = Relu(a) }> }",
        lambda m: None,
        "a function calls itself (local::f -> local::f)",
    ),
    "function twice": (
        LOCAL + "g (float[N] x) => (float[N] y) { y = local.f(x) }\n" + FUNCTION + "f (a) => (b) { b = Relu(a) }",
        lambda m: m.functions.append(m.functions[0]),
        "function local::f is defined twice",
    ),
    "two types": (
        HEAD + "g (float[N] x, int64[N] z) => (float[N] y) { [a] y = Add(x, z) }",
        lambda m: None,
        "Add 'a' wants one element type for these: 'x' is float, 'z' is int64",
    ),
    "wrong type of an output": (
        HEAD + "g (float[N] x) => (int64[N] y) { [r] y = Relu(x) }",
        lambda m: None,
        "Relu 'r' wants one element type for these: 'x' is float, 'y' is int64",
    ),
    "wrong type in a body": (
        HEAD
        + "g (float[N] x, bool c) => (float[N] y) <int64[1] w = {1}> { y = If(c) "
        + "<then_branch = t () => (float[N] e) { [m] e = Mul(x, w) }, "
        + "else_branch = u () => (float[N] h) { h = Relu(x) }> }",
        lambda m: None,
        "Mul 'm' wants one element type for these",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_invalid_model_is_refused_and_named(tmp_path: Path, case: str) -> None:
    text, change, message = CASES[case]
    proto = parser.parse_model(text)
    change(proto)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(GraphoptError) as caught:
        graphopt.load(path)
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_model_that_the_runtime_finds_contradictory_is_refused(tmp_path: Path) -> None:
    """Shapes: what has no other check is what the runtime says when it loads the model."""
    path, out = tmp_path / "m.onnx", tmp_path / "out"
    text = HEAD + "g (float[3] x, float[4] z) => (float[4] y) { y = Add(x, z) }"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    for write in (graphopt.optimize, graphopt.compile):
        with pytest.raises(GraphoptError, match=r"cannot load .* Incompatible dimensions; correct the model") as caught:
            write(path, output=out, options=graphopt.Options(repro=None))
        assert caught.value.exit_code == 2 and not out.exists()
    graphopt.optimize(path, output=out, options=graphopt.Options(repro=None, numerics="off"))
    assert out.exists()


def test_an_op_that_the_runtime_does_not_know_is_no_fault_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    head = '<ir_version: 10, opset_import: ["" : 21, "my.ops" : 1]>'
    text = head + "g (float[N] x) => (float[N] y) { a = my.ops.Foo(x) y = Relu(a) }"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    numbers = graphopt.optimize(path, options=graphopt.Options(repro=None)).numerics
    assert numbers.status == "not-checked" and "my.ops:Foo" in numbers.reason


def test_ops_whose_operands_may_differ_are_all_listed() -> None:
    schemas = onnx.defs.get_all_schemas_with_history()
    mixed = {s.name for s in schemas if s.domain == "" and not all(o.is_homogeneous for o in (*s.inputs, *s.outputs))}
    assert mixed == MIXED
