"""convert-bfloat16: what becomes bfloat16, its numbers in the reference evaluator, and targets without kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.errors import GraphoptError
from graphopt.ir.constants import model_bytes
from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

NET = """g (float[N, 8] x, int64[N, 6] mask) => (float[N, 5] y)
  <float[8, 6] w, float[6] b, float[6, 5] v, float low = {-3.4e38}, float large = {1e30}> {
  t = MatMul (x, w)
  u = Add (t, b)
  r = Relu (u)
  f = Cast <to = 1> (mask)
  m = Mul (f, low)
  s = Add (r, m)
  p = Softmax <axis = -1> (s)
  z = MatMul (p, v)
  e = Exp (z)
  k = Div (e, large)
  y = Mul (k, large) }"""


def model_of(text: str = NET) -> Any:
    model = from_text(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    name_nodes(model)
    return model


def convert(model: Any, spec: str = "convert-bfloat16", target: str | None = None, limit: int | None = None) -> Context:
    ctx = Context(model, target=registry.make_target(target) if target else None, limit=limit)
    interface = Interface.of(model)
    run(model, parse(spec), ctx)
    verify(model, interface)
    return ctx


def narrow(model: Any) -> list[str]:
    """Ops that make bfloat16, in the order of the graph."""
    return [n.op_type for n in all_nodes(model) if any(out.dtype == ir.DataType.BFLOAT16 for out in n.outputs)]


def reasons(ctx: Context) -> dict[str, str]:
    return {r.op: r.reason for r in ctx.remarks if r.status == "missed"}


def evaluate(model: Any, feeds: dict[str, Any]) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]


def test_what_gains_computes_in_bfloat16() -> None:
    before, model = model_of(), model_of()
    ctx = convert(model)
    assert narrow(model) == ["Cast", "MatMul", "Add", "Relu", "Cast", "Add", "Softmax", "MatMul"]
    assert model_bytes(model) < model_bytes(before)
    assert reasons(ctx)["Exp"] == "stays in float32: it needs more than 8 bits"
    assert not any("overflow" in r.reason for r in ctx.remarks), "its range is that of float32"
    tensor = model.graph.initializers["w_half"].const_value
    assert tensor.dtype == ir.DataType.BFLOAT16
    assert np.allclose(
        tensor.numpy().astype(np.float32), before.graph.initializers["w"].const_value.numpy(), rtol=2**-8
    )


def test_numbers_stay_within_eight_bits() -> None:
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((4, 8)).astype(np.float32),
        "mask": random.integers(0, 2, (4, 6)),
    }
    feeds["mask"][0] = 0
    before, model = model_of(), model_of()
    convert(model)
    want, got = evaluate(before, feeds), evaluate(model, feeds)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - want).max() / np.abs(want).max() < 0.03


def test_a_mask_at_the_end_of_float32_is_cut_where_it_would_become_infinite() -> None:
    model = model_of()
    convert(model)
    masks = [v.const_value.numpy() for v in model.graph.initializers.values() if "mask" in str(v.name)]
    assert masks and all(np.isfinite(mask.astype(np.float32)).all() for mask in masks)


@pytest.mark.parametrize("limit", range(7))
def test_an_interrupted_run_leaves_a_legal_model(limit: int) -> None:
    model = model_of()
    assert convert(model, limit=limit).rewriter.changes == limit


def test_second_run_changes_nothing() -> None:
    model = model_of()
    assert convert(model).rewriter.changes == 7
    assert convert(model).rewriter.changes == 0


def test_a_target_without_kernels_is_left_alone_with_a_reason() -> None:
    model = model_of()
    ctx = convert(model, target="cpu")
    assert ctx.rewriter.changes == 0 and not narrow(model)
    assert "has no bfloat16 kernel for MatMul" in reasons(ctx)["MatMul"]
    assert convert(model, target="cuda").rewriter.changes > 0
    assert "MatMul" in narrow(model)


def test_a_schema_without_it_is_a_reason() -> None:
    text = "g (float[N, 2, 4, 4] x) => (float[N, 3, 3, 3] y) <float[3, 2, 2, 2] w> { y = Conv (x, w) }"
    assert reasons(convert(model_of(text)))["Conv"] == "stays in float32: its schema has no bfloat16"


def test_options_and_their_mistakes() -> None:
    model = model_of()
    ctx = convert(model, "convert-bfloat16{keep=[MatMul]}")
    assert ctx.rewriter.changes == 0 and reasons(ctx)["MatMul"] == "stays in float32: asked for by keep"
    with pytest.raises(GraphoptError, match="max=0 is not above 0 and at most 3.38953e"):
        parse("convert-bfloat16{max=0}")
    with pytest.raises(GraphoptError, match="keep=MatMull is neither an op nor a node"):
        convert(model_of(), "convert-bfloat16{keep=[MatMull]}")
