"""quantize-static beyond its golden cases: what ONNX Runtime executes, plans, bisection, awkward weights and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibrating import Calibrating
from graphopt.driver import Options, make_plans, optimize
from graphopt.errors import GraphoptError
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.ir.writer import write
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.plan import to_json
from graphopt.manager.runner import run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
NET = """g (float[N, 3, 8, 8] x) => (float[N, 5] y)
  <float[8, 3, 3, 3] w, float[8] b, float[8, 1, 3, 3] d, float[8, 8, 1, 1] p, float[8, 5] v, float zero = {0},
   float six = {6}> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Clip (c, zero, six)
  e = Conv <group = 8, pads = [1, 1, 1, 1]> (r, d)
  s = Relu (e)
  q = Conv (s, p)
  t = Add (q, r)
  m = GlobalAveragePool (t)
  f = Flatten (m)
  y = MatMul (f, v) }"""
PLAIN = "quantize-static{method=minmax saturation=ignore}"


def samples(count: int = 16, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def filled(text: str = NET) -> Any:
    """The model; weights without data get values seeded by their names."""
    model = from_text(f"{HEAD}\n{text}")
    name_nodes(model)
    return model


def quantized(model: Any, tmp_path: Path, spec: str = PLAIN, feeds: Any = None, limit: int | None = None) -> Context:
    calibration = Calibrating(model, [samples() if feeds is None else feeds], tmp_path)
    ctx = Context(model, calibration=calibration, limit=limit)
    interface = Interface.of(model)
    run(model, parse(spec), ctx)
    verify(model, interface)
    return ctx


def executed(model: Any, tmp_path: Path) -> list[str]:
    """Op types that ONNX Runtime runs."""
    import onnxruntime as ort

    write(model, tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph]


def reasons(ctx: Context) -> dict[str, str]:
    return {r.site: r.reason for r in ctx.remarks if r.status == "missed"}


def test_a_net_runs_in_int8_from_end_to_end(tmp_path: Path) -> None:
    model = filled()
    quantized(model, tmp_path)
    ops = executed(model, tmp_path)
    assert ops.count("QLinearConv") == 3 and ops.count("QLinearAdd") == 1 and "QLinearGlobalAveragePool" in ops
    # Activations cross the border once each way, and every Relu and Clip went into the saturation of codes.
    assert not {"Conv", "Relu", "Clip", "Add", "GlobalAveragePool", "MatMul"} & set(ops)
    assert ops.count("QuantizeLinear") == 1 and "DequantizeLinear" not in ops


def test_outputs_stay_near(tmp_path: Path, run_model: Any) -> None:
    model, before = filled(), filled()
    quantized(model, tmp_path)
    want, got = run_model(before, samples())["y"], run_model(model, samples())["y"]
    assert np.abs(want - got).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("limit", range(0, 9))
def test_after_any_number_of_rewrites_the_model_is_legal_and_near(tmp_path: Path, run_model: Any, limit: int) -> None:
    model, before = filled(), filled()
    quantized(model, tmp_path, limit=limit)
    want, got = run_model(before, samples())["y"], run_model(model, samples())["y"]
    assert np.abs(want - got).max() < 0.02 * np.abs(want).max()


def test_skip_takes_sites_ops_and_expressions(tmp_path: Path) -> None:
    model = filled()
    ctx = quantized(model, tmp_path, 'quantize-static{method=minmax skip=[MatMul Conv_0 "Conv_[12]"]}')
    assert len(reasons(ctx)) == 4 and all("skip" in reason for reason in reasons(ctx).values())
    with pytest.raises(GraphoptError, match="'Conv_9' matches no node of the model"):
        quantized(filled(), tmp_path, "quantize-static{method=minmax skip=Conv_9}")


def test_weights_shared_with_a_float_reader_stay_for_it(tmp_path: Path, run_model: Any) -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y, float[4, 4] k) <float[4, 4] w> {
      y = MatMul (x, w)
      k = Exp (w) }"""
    model, before = filled(text), filled(text)
    feeds = {"x": np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)}
    quantized(model, tmp_path, feeds=feeds)
    np.testing.assert_array_equal(run_model(model, feeds)["k"], run_model(before, feeds)["k"])
    assert any(node.op_type == "DequantizeLinear" for node in model.graph)


def test_nodes_in_subgraphs_stay_float(tmp_path: Path) -> None:
    text = """g (float[2, 4] x, bool c) => (float[2, 4] y) <float[4, 4] w> {
      y = If (c) <then_branch = a () => (float[2, 4] t) { t = MatMul (x, w) },
                  else_branch = b () => (float[2, 4] e) { e = Identity (x) }> }"""
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    ctx = quantized(filled(text), tmp_path, feeds=feeds)
    assert list(reasons(ctx).values()) == [
        "stays float: it is in a subgraph or function, whose values cannot be observed"
    ]


@pytest.mark.parametrize(
    ("scale", "bias"), [(1e-30, 1.0), (1e-38, 1.0), (0.0, 0.011), (1e30, 1.0)], ids=["tiny", "denormal", "zero", "huge"]
)
def test_awkward_weights_keep_the_bias(tmp_path: Path, run_model: Any, scale: float, bias: float) -> None:
    def make() -> Any:
        model = from_text(f"""{HEAD}
        g (float[N, 2, 1, 1] x) => (float[N, 2, 1, 1] y) <float[2, 2, 1, 1] w, float[2] b> {{ y = Conv (x, w, b) }}""")
        other = [1, 2] if scale else [0, 0]  # whose outputs would hide what becomes of a small bias
        weights = np.array([[scale, -scale], other], np.float32).reshape(2, 2, 1, 1)
        for name, array in (("w", weights), ("b", np.full(2, bias, np.float32))):
            model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        name_nodes(model)
        return model

    feeds = {"x": np.random.default_rng(3).uniform(-1, 1, (32, 2, 1, 1)).astype(np.float32)}
    model = make()
    quantized(model, tmp_path, feeds=feeds)
    want, got = run_model(make(), feeds)["y"], run_model(model, feeds)["y"]
    assert np.abs(want - got).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_channel_without_weights_keeps_its_bias(tmp_path: Path, per_channel: bool) -> None:
    """Its codes are zero whatever the scale, and the bias is counted in that scale times the input's."""
    model = filled("""g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w, float[4] b> { y = Gemm (x, w, b) }""")
    weights, bias = np.zeros((3, 4), np.float32), np.array([0.004, -3e-7, 0.0, 50], np.float32)
    if per_channel:
        weights[:, 3] = 1
    for name, array in (("w", weights), ("b", bias)):
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    spec = PLAIN if per_channel else PLAIN.replace("{", "{per_channel=false ")
    quantized(model, tmp_path, spec, {"x": np.linspace(-9, 9, 30, dtype=np.float32).reshape(10, 3)})
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    codes, step = (value.const_value.numpy() for value in gemm.inputs[2].producer().inputs[:2])
    precise = np.s_[:3] if per_channel else np.s_[3:]
    np.testing.assert_allclose((codes * step.astype(np.float64))[precise], bias[precise], rtol=1e-6)
    np.testing.assert_allclose(codes * step.astype(np.float64), bias, atol=0.04)
    assert (step >= 2.0**-126).all()


@pytest.mark.parametrize("spec", [PLAIN, "search-precision{method=minmax saturation=ignore by=work sqnr=1}"])
def test_weights_that_would_be_lost_beside_a_huge_row_stay_float(tmp_path: Path, run_model: Any, spec: str) -> None:
    """An input that is always zero has huge weights; to the codes of the others their rows leave nothing."""

    def make(huge: float) -> Any:
        model = filled("""g (float[N, 16] x) => (float[N, 8] y) <float[16, 24] w, float[24, 8] v> {
          a = MatMul (x, w)
          r = Relu (a)
          y = MatMul (r, v) }""")
        weights = np.random.default_rng(5).standard_normal((16, 24)).astype(np.float32)
        weights[0] = huge
        model.graph.initializers["w"].const_value = ir.Tensor(weights, name="w")
        return model

    x = np.random.default_rng(6).standard_normal((32, 16)).astype(np.float32)
    x[:, 0] = 0
    model = make(1e4)
    ctx = quantized(model, tmp_path, spec, {"x": x})
    why = "stays float: 94% of its weights would round to zero beside a few that are far larger"
    assert reasons(ctx)["MatMul_0"] == why
    want, got = run_model(make(1e4), {"x": x})["y"], run_model(model, {"x": x})["y"]
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()
    assert "MatMul_0" not in reasons(quantized(make(10), tmp_path, spec, {"x": x}))


def test_values_that_are_constant_or_zero_on_the_samples(tmp_path: Path, run_model: Any) -> None:
    for value in (0.0, 3.0):
        feeds = {"x": np.full((4, 3, 8, 8), value, np.float32)}
        model = filled()
        quantized(model, tmp_path, feeds=feeds)
        want, got = run_model(filled(), feeds)["y"], run_model(model, feeds)["y"]
        assert np.isfinite(got).all() and np.abs(want - got).max() <= 0.05 * np.abs(want).max() + 1e-6


def test_a_value_that_overflows_on_the_samples_stays_float(tmp_path: Path) -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float[4, 4] v> {
      a = MatMul (x, w)
      e = Exp (a)
      y = MatMul (e, v) }"""
    feeds = {"x": np.full((2, 4), 1e4, np.float32)}
    ctx = quantized(filled(text), tmp_path, feeds=feeds)
    assert any("infinities" in reason for reason in reasons(ctx).values())


def test_without_samples_the_error_says_how_to_give_them(tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match="--calibration-data"):
        optimize(filled(), options=Options(passes="quantize-static", repro=None))


def test_a_plan_is_carried_out_without_samples(tmp_path: Path) -> None:
    write(filled(), tmp_path / "net.onnx")
    options = Options(passes="quantize-static", calibration_data=[samples()], numerics="off", repro=None)
    plans = make_plans(tmp_path / "net.onnx", options=options)
    (tmp_path / "plan.json").write_text(to_json(plans))
    direct = optimize(tmp_path / "net.onnx", options=options)
    again = Options(passes="quantize-static", plan=tmp_path / "plan.json", numerics="off", repro=None)
    replayed = optimize(tmp_path / "net.onnx", options=again)
    from graphopt.ir.hash import structural_hash

    assert structural_hash(direct.model) == structural_hash(replayed.model)


@pytest.mark.parametrize("types", [("int8", "int8"), ("uint16", "int8"), ("uint8", "int4"), ("int16", "int16")])
def test_other_types(tmp_path: Path, run_model: Any, types: tuple[str, str]) -> None:
    model = filled()
    quantized(model, tmp_path, f"quantize-static{{method=minmax activation={types[0]} weight={types[1]}}}")
    want, got = run_model(filled(), samples())["y"], run_model(model, samples())["y"]
    assert np.abs(want - got).max() < (0.3 if types[1] == "int4" else 0.02) * np.abs(want).max()


def test_fixed_point_scales_are_powers_of_two(tmp_path: Path) -> None:
    model = filled()
    quantized(model, tmp_path, "quantize-static{method=minmax symmetric=true power_of_two=true activation=int8}")
    scales = [node.inputs[1].const_value.numpy() for node in model.graph if node.op_type == "QuantizeLinear"]
    assert scales and all(np.frexp(scale)[0] == 0.5 for scale in scales)
