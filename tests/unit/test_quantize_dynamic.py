"""quantize-dynamic beyond its golden cases: what the runtime makes of it, options, plans, odd weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt import ir
from graphopt.errors import GraphoptError
from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.ir.writer import write
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.plan import Plan
from graphopt.manager.runner import run
from graphopt.quantization.saturation import is_safe

NET = """g (float[N, 64] x) => (float[N, 8] y)
  <float[64, 48] q, float[64, 48] k, float[48] b, float[40, 48] v, float[40] c, float[40, 8] w> {
  a = MatMul (x, q)
  a2 = Add (a, b)
  e = MatMul (x, k)
  m = Mul (a2, e)
  d = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (m, v, c)
  r = Relu (d)
  y = MatMul (r, w) }"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)}
CONV = """g (float[N, 4, 9, 9] x) => (float[N, 6, 9, 9] y) <float[6, 2, 3, 3] w, float[6] b> {
  y = Conv <pads = [1, 1, 1, 1], group = 2> (x, w, b) }"""


def model_of(text: str, opset: int = 21, weights: Mapping[str, Any] | None = None) -> Any:
    model = from_text(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')
    for name, array in (weights or {}).items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    name_nodes(model)
    return model


def quantize(model: Any, options: str = "", target: str | None = "cpu{isa=avx512vnni}", **given: Any) -> Context:
    chosen = registry.make_target(target) if target else None
    ctx = Context(model, target=chosen, **given)
    interface = Interface.of(model)
    run(model, parse(f"quantize-dynamic{{{options}}}"), ctx)
    verify(model, interface)
    return ctx


def ops(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(model))


def reasons(ctx: Context) -> dict[str, str]:
    return {r.site: r.reason for r in ctx.remarks if r.status == "missed"}


def gap(want: Any, got: Any) -> float:
    return float(np.abs(want.astype(np.float64) - got).max() / np.abs(want).max())


@pytest.mark.parametrize("options", ["", "ranges=mse", "saturation=safe", "saturation=safe ranges=mse"])
def test_close_to_float(options: str, run_model: Any) -> None:
    model = model_of(NET)
    assert quantize(model, options).rewriter.changes == 4
    assert 1e-4 < gap(run_model(model_of(NET), FEEDS)["y"], run_model(model, FEEDS)["y"]) < 0.05
    assert ops(model)["DynamicQuantizeLinear"] == 3, "two products of x read one quantized x"


def test_the_runtime_fuses_every_group(tmp_path: Path) -> None:
    model = model_of(NET)
    quantize(model)
    write(model, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    executed = Counter(node.op_type for node in onnx.load(tmp_path / "executed.onnx").graph.node)
    assert executed["DynamicQuantizeMatMul"] == 2 and executed["MatMulIntegerToFloat"] == 2
    assert not {"MatMulInteger", "MatMul", "Gemm", "Cast"} & set(executed)


def test_a_padded_conv(run_model: Any) -> None:
    x = np.random.default_rng(0).uniform(1, 3, (2, 4, 9, 9)).astype(np.float32)  # a pad of code 0 would show
    model = model_of(CONV)
    assert quantize(model, "ops=[Conv]").rewriter.changes == 1
    assert ops(model)["ConvInteger"] == 1
    assert gap(run_model(model_of(CONV), {"x": x})["y"], run_model(model, {"x": x})["y"]) < 0.02
    assert quantize(model_of(CONV)).rewriter.changes == 0, "a Conv only on request"
    ctx = quantize(model_of(CONV), "ops=[Conv] saturation=safe")
    assert "saturation is not ruled out" in reasons(ctx)["Conv_0"]


def test_weights_cannot_saturate_where_the_target_would() -> None:
    for target, safe in (("cpu{isa=avx2}", True), ("cpu{isa=avx512vnni}", False), (None, True)):
        wide = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
        wide[10:12] = 4  # neighbours of one sign at the end of the range
        model = model_of(NET, weights={"q": wide, "k": wide})
        ctx = quantize(model, target=target)
        (plan,) = ctx.plans.made
        assert {entry["safe"] for entry in plan.decisions["sites"].values()} == {safe}
        tensor = model.graph.initializers["q_codes"].const_value
        assert is_safe(tensor.numpy()) is safe
        notes = [r.reason for r in ctx.remarks if r.status == "note"]
        assert any("no target is set" in note for note in notes) is (target is None)


def test_second_run_changes_nothing() -> None:
    model = model_of(NET)
    quantize(model)
    again = quantize(model)
    assert again.rewriter.changes == 0
    assert set(reasons(again).values()) == {"its weight is quantized already"}


@pytest.mark.parametrize("limit", range(5))
def test_an_interrupted_run_leaves_a_model_that_runs(limit: int, run_model: Any) -> None:
    model = model_of(NET)
    assert quantize(model, limit=limit).rewriter.changes == limit
    assert not [v.name for v in model.graph.initializers.values() if not v.uses()]
    assert gap(run_model(model_of(NET), FEEDS)["y"], run_model(model, FEEDS)["y"]) < 0.05


def test_plan_is_data_and_can_be_edited() -> None:
    (plan,) = quantize(model_of(NET)).plans.made
    assert list(plan.decisions["sites"]) == ["MatMul_0", "MatMul_1", "Gemm_0", "MatMul_2"]
    assert all(entry == {"safe": False} for entry in plan.decisions["sites"].values())
    model = model_of(NET)
    quantize(model, plans=[Plan(plan.name, plan.spec, plan.model, {"sites": {"Gemm_0": {"safe": True}}})])
    assert ops(model)["MatMulInteger"] == 1 and ops(model)["MatMul"] == 3


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"sites": {"Gone": {"safe": True}}}, "there is no MatMul, Gemm, Conv or LSTM 'Gone'"),
        ({"sites": {"Relu_0": {"safe": True}}}, "there is no MatMul, Gemm, Conv or LSTM 'Relu_0'"),
        ({"sites": {"Gemm_0": {}}}, "sites: 'Gemm_0': has no safe; true or false is wanted"),
        ({"sites": {"Gemm_0": {"safe": 1}}}, "sites: 'Gemm_0': safe is 1; true or false is wanted"),
        ({"sites": {"Gemm_0": {"safe": True, "ops": []}}}, "sites: 'Gemm_0': there is no 'ops'; known: safe"),
        ({"sites": []}, "sites is a list of 0; an object is wanted"),
        ({}, "has no sites; an object is wanted"),
    ],
)
def test_mistakes_in_a_plan_are_one_clear_line(decisions: dict[str, Any], message: str) -> None:
    (plan,) = quantize(model_of(NET)).plans.made
    with pytest.raises(GraphoptError, match=message):
        quantize(model_of(NET), plans=[Plan(plan.name, plan.spec, plan.model, decisions)])


def test_skip_and_shared_weights() -> None:
    ctx = quantize(model_of(NET), 'skip=["MatMul_[01]"]')
    assert reasons(ctx) == dict.fromkeys(("MatMul_0", "MatMul_1"), "asked for by skip")
    text = NET.replace("MatMul (x, k)", "MatMul (x, q)").replace("float[64, 48] k, ", "")
    ctx = quantize(model_of(text), "skip=[MatMul_1]")
    assert "its weight stays in float for MatMul_1 (MatMul)" in reasons(ctx)["MatMul_0"]
    model = model_of(text)
    quantize(model)
    assert [name for name in model.graph.initializers if name.startswith("q")] == ["q_codes", "q_scale"]
    with pytest.raises(GraphoptError, match="matches no node of the model"):
        quantize(model_of(NET), "skip=[Conv]")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinities_stay_in_float_at_their_site_only(bad: float) -> None:
    weight = np.ones((64, 48), np.float32)
    weight[3, 5] = bad
    ctx = quantize(model_of(NET, weights={"q": weight}))
    assert reasons(ctx) == {"MatMul_0": "its weight 'q' holds NaN or infinities"}
    assert ctx.rewriter.changes == 3


def test_what_would_round_to_zero_beside_huge_weights_stays() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    weight[::16] *= 1e3
    ctx = quantize(model_of(NET, weights={"q": weight}))
    assert list(reasons(ctx)) == ["MatMul_0"] and "would round to zero" in reasons(ctx)["MatMul_0"]


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-42, 1e30])
def test_a_single_value_is_kept(value: float, run_model: Any) -> None:
    text = "g (float[N, 40] x) => (float[N, 6] y) <float[40, 6] w> { y = MatMul (x, w) }"
    model = model_of(text, weights={"w": np.full((40, 6), value, np.float32)})
    assert quantize(model).rewriter.changes == 1
    got = run_model(model, {"x": np.ones((2, 40), np.float32)})["y"]
    want = 40 * np.float64(np.float32(value))
    assert np.abs(got - want).max() <= max(1e-6 * abs(want), 40 * 2.0**-121)


def test_what_is_not_there_is_a_reason() -> None:
    assert "from opset 11 on" in reasons(quantize(model_of(NET, opset=10), target=None))["MatMul_0"]
    target = registry.make_target("cuda")
    assert "no kernel for DynamicQuantizeLinear" in reasons(quantize(model_of(NET), target=str(target)))["MatMul_0"]


# -- LSTM ---------------------------------------------------------------------------------------------------------

LSTM = """g (float[T, N, 12] x, float[2, N, 8] h, float[2, N, 8] c) => (float[T, 2, N, 8] y, float[2, N, 8] last)
  <float[2, 32, 12] w, float[2, 32, 8] r, float[2, 64] b> {
  y, last = LSTM <hidden_size = 8, direction = "bidirectional"> (x, w, r, b, , h, c) }"""


def _states() -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {"x": (5, 3, 12), "h": (2, 3, 8), "c": (2, 3, 8)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("options", ["", "saturation=safe"])
def test_lstm(options: str, run_model: Any) -> None:
    model = model_of(LSTM)
    assert quantize(model, options, target="cpu").rewriter.changes == 1  # of this machine, which runs it
    assert ops(model) == {"DynamicQuantizeLSTM": 1}
    want, got = run_model(model_of(LSTM), _states()), run_model(model, _states())
    assert all(1e-4 < np.abs(want[name] - got[name]).max() < 0.05 for name in ("y", "last"))
    assert quantize(model).rewriter.changes == 0
    if options:
        codes = model.graph.initializers["w_codes"].const_value.numpy()
        assert all(is_safe(part) for part in codes)


@pytest.mark.parametrize(
    ("text", "target", "reason"),
    [
        (LSTM, None, "no target is set, so only standard ops are emitted"),
        (LSTM, "cuda", "no kernel for com.microsoft::DynamicQuantizeLSTM"),
        (LSTM.replace("hidden_size", "input_forget = 1, hidden_size"), "cpu", "does not couple"),
        (LSTM.replace("(x, w, r,", "(x, w2, r,").replace("y, last", "w2 = Neg (w)\n y, last"), "cpu", "not constant"),
        (LSTM.replace(", float[2, N, 8] last)", ", float[2, 32, 8] z)").replace("y, last =", "z = Neg (r)\n y ="),
         "cpu", "also read by others"),
    ],
)  # fmt: skip
def test_why_an_lstm_stays(text: str, target: str | None, reason: str) -> None:
    ctx = quantize(model_of(text), target=target)
    assert ctx.rewriter.changes == 0 and reason in reasons(ctx)["LSTM_0"]


def test_lstm_weights_with_nan_stay() -> None:
    weight = np.ones((2, 32, 12), np.float32)
    weight[1, 2, 3] = np.nan
    ctx = quantize(model_of(LSTM, weights={"w": weight}))
    assert reasons(ctx) == {"LSTM_0": "its weight 'w' holds NaN or infinities"}
