"""quantize-weights beyond its golden cases: options, plans, odd weights, opsets, interrupted runs, both forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.errors import GraphoptError
from graphopt.ir.constants import model_bytes
from graphopt.ir.hash import structural_hash
from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.plan import Plan
from graphopt.manager.runner import run

NET = """g (float[N, 64] x, int64[N] i) => (float[N, 5] y)
  <float[64, 48] w, float[48] b, float[40, 48] v, float[40] c, float[100, 40] table, float[40, 40] u, float[40, 5] t> {
  a = MatMul (x, w)
  a2 = Add (a, b)
  d = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (a2, v, c)
  r = Relu (d)
  e = Gather (table, i)
  f = Add (r, e)
  h = MatMul (f, u)
  y = MatMul (h, t) }"""
SITES = ["MatMul_0", "Gemm_0", "Gather_0", "MatMul_1", "MatMul_2"]
FEEDS = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32), "i": np.array([0, 5, 99])}


def model_of(text: str, opset: int = 21, weights: Mapping[str, Any] | None = None) -> Any:
    """The model; `weights` replaces initializers by name."""
    model = from_text(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')
    for name, array in (weights or {}).items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    name_nodes(model)
    return model


def product(weight: Any, opset: int = 21, op: str = "MatMul") -> Any:
    """x times one weight, of its own type."""
    kind = {"float32": "float", "float16": "float16"}[weight.dtype.name]
    k, n = weight.shape
    text = f"g ({kind}[N, {k}] x) => ({kind}[N, {n}] y) <{kind}[{k}, {n}] w> {{ y = {op} (x, w) }}"
    return model_of(text, opset, {"w": weight})


def quantize(model: Any, options: str = "", target: str | None = "cpu", **given: Any) -> Context:
    chosen = registry.make_target(target) if target else None
    ctx = Context(model, target=chosen, **given)
    interface = Interface.of(model)
    run(model, parse(f"quantize-weights{{{options}}}"), ctx)
    verify(model, interface)
    return ctx


def ops(model: Any) -> list[str]:
    return [node.op_type for node in all_nodes(model)]


def reasons(ctx: Context) -> dict[str, str]:
    return {r.site: r.reason for r in ctx.remarks if r.status == "missed"}


def gap(want: Any, got: Any) -> float:
    return float(np.abs(want.astype(np.float64) - got).max() / np.abs(want).max())


@pytest.mark.parametrize(
    ("options", "target", "limit", "smaller"),
    [
        ("", "cpu", 0.02, 3.1),
        ("compute=float", "cpu", 0.01, 3.1),
        ("group=0 compute=float", "cpu", 0.01, 3.1),
        ("bits=4", "cpu", 0.15, 4.9),
        ("bits=4 symmetric", "cpu", 0.2, 4.9),
        ("bits=4 form=dequantize ops=[MatMul Gemm]", "cpu", 0.15, 2.0),
        ("", None, 0.01, 3.5),
        ("symmetric", None, 0.01, 3.6),
        ("group=16", None, 0.01, 2.8),
        ("bits=4 group=16", None, 0.15, 1.8),
        ("bits=4 symmetric group=0", None, 0.25, 1.8),
    ],
)
def test_smaller_and_close(options: str, target: str | None, limit: float, smaller: float, run_model: Any) -> None:
    before, model = model_of(NET), model_of(NET)
    quantize(model, options, target)
    assert 1e-4 < gap(run_model(before, FEEDS)["y"], run_model(model, FEEDS)["y"]) < limit
    assert model_bytes(before) / model_bytes(model) > smaller


def test_which_ops_stand_for_them() -> None:
    model = model_of(NET)
    quantize(model)
    assert ops(model).count("MatMulNBits") == 4 and ops(model).count("GatherBlockQuantized") == 1
    assert not {"MatMul", "Gemm", "Gather"} & set(ops(model))
    model = model_of(NET)
    quantize(model, target=None)
    assert {node.domain for node in all_nodes(model)} == {""}
    assert ops(model).count("DequantizeLinear") == 5
    assert ops(model).count("Gather") == 3, "codes, scales and zero points of the rows that are read"


def test_a_target_without_the_kernel_gets_standard_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    target = registry.make_target("cpu")
    plain = type(target).supports
    monkeypatch.setattr(
        type(target), "supports", lambda self, domain, *rest: "no such kernel" if domain else plain(self, domain, *rest)
    )
    model = model_of(NET)
    quantize(model, "bits=4")
    assert {node.domain for node in all_nodes(model)} == {""}
    ctx = quantize(model_of(NET), "form=matmulnbits")
    assert reasons(ctx) == dict.fromkeys(SITES, "no such kernel")


def test_second_run_changes_nothing() -> None:
    for target in ("cpu", None):
        model = model_of(NET)
        assert quantize(model, target=target).rewriter.changes == 5
        again = quantize(model, target=target)
        assert again.rewriter.changes == 0
        assert set(reasons(again).values()) == {"its weight is quantized already"}


@pytest.mark.parametrize("limit", range(6))
@pytest.mark.parametrize("target", ["cpu", None])
def test_an_interrupted_run_leaves_a_model_that_runs(limit: int, target: str | None, run_model: Any) -> None:
    model = model_of(NET)
    assert quantize(model, target=target, limit=limit).rewriter.changes == limit
    assert not [v.name for v in model.graph.initializers.values() if not v.uses()]
    assert gap(run_model(model_of(NET), FEEDS)["y"], run_model(model, FEEDS)["y"]) < 0.02


def test_plan_is_data_and_can_be_edited(run_model: Any) -> None:
    plan = next(iter(quantize(model_of(NET), "bits=4").plans.made))
    assert list(plan.decisions["sites"]) == SITES
    assert plan.decisions["sites"]["MatMul_0"]["group"] == 32
    edited = {site: dict(entry, bits=8) for site, entry in plan.decisions["sites"].items() if site != "Gather_0"}
    model = model_of(NET)
    quantize(model, plans=[Plan(plan.name, plan.spec, plan.model, {"sites": edited})])
    assert "Gather" in ops(model) and ops(model).count("MatMulNBits") == 4
    assert {node.attributes["bits"].as_int() for node in all_nodes(model) if node.op_type == "MatMulNBits"} == {8}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"Gone": {}}, "sites: 'Gone': has no form"),
        ({"MatMul_0": {"bits": 3}}, "sites: 'MatMul_0': bits is 3; one of 4, 8 is wanted"),
        ({"MatMul_0": {"group": 48}}, "sites: 'MatMul_0': group is 48; one of 0, 16, 32"),
        ({"MatMul_0": {"symmetric": 1}}, "sites: 'MatMul_0': symmetric is 1; one of false, true is wanted"),
        ({"MatMul_0": {"bitz": 4}}, "sites: 'MatMul_0': there is no 'bitz'; known: form, bits, group"),
        ({"Relu_0": "as MatMul_0"}, "there is no 'Relu_0' that MatMulNBits stands for"),
        ({"Gather_0": "as MatMul_0"}, "there is no 'Gather_0' that MatMulNBits stands for"),
    ],
)
def test_mistakes_in_a_plan_are_one_clear_line(entry: dict[str, Any], message: str) -> None:
    plan = next(iter(quantize(model_of(NET)).plans.made))
    usual = plan.decisions["sites"]["MatMul_0"]
    ((site, change),) = entry.items()
    edited = {site: usual if isinstance(change, str) else {**usual, **change} if change else {}}
    with pytest.raises(GraphoptError, match=message):
        quantize(model_of(NET), plans=[Plan(plan.name, plan.spec, plan.model, {"sites": edited})])


@pytest.mark.parametrize(
    ("opset", "site", "change", "message"),
    [
        (17, "m", {"bits": 4}, "'m': DequantizeLinear takes this from opset 21 on; the model has 17"),
        (17, "m", {"group": 16}, "'m': DequantizeLinear takes this from opset 21 on; the model has 17"),
        (21, "c", {"group": 16}, "'c': group is 16; Conv has one scale per output channel"),
        (21, "e", {"bits": 4}, "'e': Gather reads no 4-bit table"),
        (21, "d", {"form": "MatMulNBits"}, "'d': MatMulNBits does not transpose its input"),
        (21, "m", {"form": "MatMulNBits"}, "'m': no target is set"),
    ],
)
def test_a_plan_asks_for_nothing_that_the_model_cannot_hold(
    opset: int, site: str, change: dict[str, Any], message: str
) -> None:
    def make() -> Any:
        model = model_of(
            """g (float[48, N] x, int64[N] i, float[1, 48, 4, 4] p)
              => (float[N, 5] y, float[N, 40] t, float[1, 8, 4, 4] o)
            <float[48, 40] w, float[40, 5] v, float[100, 40] table, float[8, 48, 1, 1] k> {
              d = Gemm <transA = 1> (x, w)
              y = MatMul (d, v)
              t = Gather (table, i)
              o = Conv (p, k) }""",
            opset,
        )
        for node, name in zip(model.graph, ("d", "m", "e", "c"), strict=True):
            node.name = name
        return model

    options = "ops=[MatMul Gemm Gather Conv] form=dequantize"
    (plan,) = quantize(make(), options, target=None).plans.made
    setting = {"form": "DequantizeLinear", "bits": 8, "group": 0, "symmetric": True, **change}
    edited = Plan(plan.name, plan.spec, plan.model, {"sites": {site: setting}})
    with pytest.raises(GraphoptError, match=message):
        quantize(make(), options, target=None, plans=[edited])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits=3", "bits=3 is neither 4 nor 8"),
        ("group=48", "group=48 is not 0 or one of 16, 32, 64, 128, 256"),
        ("ops=[Add]", "ops=Add is not one of MatMul, Gemm, Gather, Conv"),
        ("skip=[MatMul_9]", "skip='MatMul_9' matches no node of the model.*MatMul_"),
        ("form=qdq", "form"),
    ],
)
def test_mistakes_are_one_clear_line(options: str, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        quantize(model_of(NET), options)


def test_skip_takes_sites_and_patterns() -> None:
    ctx = quantize(model_of(NET), 'skip=["MatMul_[12]" Gather_0]')
    assert reasons(ctx) == dict.fromkeys(("Gather_0", "MatMul_1", "MatMul_2"), "asked for by skip")
    assert ctx.rewriter.changes == 2


def test_a_weight_that_one_reader_needs_in_float_is_not_stored_twice() -> None:
    text = """g (float[N, 32] x) => (float[N, 32] y, float[N, 32] z) <float[32, 32] w> {
      y = MatMul (x, w)
      a = Relu (x)
      z = MatMul (a, w) }"""
    ctx = quantize(model_of(text), "skip=[MatMul_1]")
    assert ctx.rewriter.changes == 0
    assert "stays in float for MatMul_1 (MatMul), so a quantized copy would only add to it" in reasons(ctx)["MatMul_0"]
    assert quantize(model_of(text)).rewriter.changes == 2


def test_a_table_that_is_also_a_matrix_is_quantized_for_both(run_model: Any) -> None:
    text = """g (int64[N] i) => (float[N, 64] y) <float[64, 48] w> {
      e = Gather (w, i)
      y = Gemm <transB = 1> (e, w) }"""
    before, model = model_of(text), model_of(text)
    ctx = quantize(model)
    assert ctx.rewriter.changes == 2
    assert model_bytes(model) < model_bytes(before) / 1.4
    told = f"2 nodes read 1 quantized weights: {model_bytes(before)} bytes in float, {model_bytes(model)} now"
    assert any(told in r.reason for r in ctx.remarks if r.status == "note")
    feeds = {"i": np.array([1, 63])}
    assert gap(run_model(before, feeds)["y"], run_model(model, feeds)["y"]) < 0.02


# -- odd weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", None])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-42, 1e-30, 1e30])
def test_a_single_value_is_kept(value: float, bits: int, target: str | None, run_model: Any) -> None:
    weight = np.full((40, 6), value, np.float32)
    model = product(weight)
    assert quantize(model, f"bits={bits} compute=float", target).rewriter.changes == 1
    got = run_model(model, {"x": np.ones((2, 40), np.float32)})["y"]
    want = 40 * np.float64(np.float32(value))
    tiny = 40 * 2.0**-121  # half of the smallest step
    assert np.abs(got - want).max() <= max(2e-6 * abs(want), tiny)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_stay_in_float_at_their_site_only(bad: float) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    weight[3, 5] = bad
    for target in ("cpu", None):
        ctx = quantize(model_of(NET, weights={"w": weight}), target=target)
        assert reasons(ctx) == {"MatMul_0": "its weight 'w' holds NaN or infinities"}
        assert ctx.rewriter.changes == 4


@pytest.mark.parametrize("target", ["cpu", None])
def test_a_zero_row_and_an_outlier_do_not_disturb_the_others(target: str | None, run_model: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    weight[:, 0] = 0
    weight[0, 1] = 1e6
    model = product(weight)
    quantize(model, "compute=float", target)
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    got = run_model(model, {"x": x})["y"]
    assert not got[:, 0].any()
    assert gap((x @ weight)[:, 2:], got[:, 2:]) < 0.01


@pytest.mark.parametrize(("options", "ratio"), [("", 1e3), ("group=0", 1e3), ("bits=4", 1e2)])
def test_what_would_round_to_zero_beside_huge_weights_stays(options: str, ratio: float) -> None:
    weight = np.random.default_rng(0).standard_normal((256, 8)).astype(np.float32)
    assert quantize(product(weight), options).rewriter.changes == 1
    weight[::16] *= ratio
    ctx = quantize(product(weight), options)
    assert ctx.rewriter.changes == 0
    assert "would round to zero beside a few that are far larger" in reasons(ctx)["MatMul_0"]


@pytest.mark.parametrize("width", [16, 20, 33, 100, 300])
@pytest.mark.parametrize(
    "options", ["bits=4", "bits=4 group=0", "bits=8 group=256", "bits=8 group=16", "bits=8 group=0"]
)
def test_rows_that_blocks_do_not_divide(width: int, options: str, run_model: Any) -> None:
    weight = np.random.default_rng(width).standard_normal((width, 24)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((3, width)).astype(np.float32)
    both = []
    for form in ("matmulnbits", "dequantize"):
        model = product(weight)
        assert quantize(model, f"{options} form={form} compute=float").rewriter.changes == 1
        both.append(run_model(model, {"x": x})["y"])
    assert gap(both[0], both[1]) < 2e-6, "both forms hold the same numbers"
    assert gap(x @ weight, both[0]) < (0.25 if "bits=4" in options else 0.02)


@pytest.mark.parametrize("target", ["cpu", None])
def test_half_precision_weights_keep_their_type(target: str | None, run_model: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float16)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float16)
    model = product(weight)
    assert quantize(model, "compute=float", target).rewriter.changes == 1
    got = run_model(model, {"x": x})["y"]
    assert got.dtype == np.float16
    assert gap(x.astype(np.float32) @ weight.astype(np.float32), got) < 0.02
    small = product((weight * 1e-6).astype(np.float16))
    quantize(small, "compute=float", target)
    assert np.isfinite(run_model(small, {"x": x})["y"]).all()


# -- opsets -------------------------------------------------------------------------------------------------------


def test_older_opsets_get_what_they_have(run_model: Any) -> None:
    model = model_of(NET, opset=17)
    ctx = quantize(model, "group=32", None)
    assert reasons(ctx) == {"Gather_0": "DequantizeLinear takes this from opset 21 on; the model has 17"}
    (plan,) = ctx.plans.made
    assert {entry["group"] for entry in plan.decisions["sites"].values()} == {0}
    assert gap(run_model(model_of(NET, opset=17), FEEDS)["y"], run_model(model, FEEDS)["y"]) < 0.02
    for opset, options in ((12, ""), (20, "bits=4")):
        ctx = quantize(model_of(NET, opset=opset), options, None)
        assert ctx.rewriter.changes == 0
        assert "takes this from opset" in reasons(ctx)["MatMul_0"]
    assert quantize(model_of(NET, opset=12), "bits=4").rewriter.changes == 5, "the runtime's own ops ask for no opset"


# -- size ----------------------------------------------------------------------------------------------------------


def test_a_few_rows_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.passes.quantize import _weight_codes

    for options in ("bits=4", "form=dequantize ops=[MatMul Gemm Gather]"):
        whole, pieces = model_of(NET), model_of(NET)
        quantize(whole, options)
        with monkeypatch.context() as patch:
            patch.setattr(_weight_codes, "_PIECE", 500)
            quantize(pieces, options)
        assert structural_hash(whole) == structural_hash(pieces)


# -- clipping -----------------------------------------------------------------------------------------------------


def test_the_searched_clip_lowers_the_error(run_model: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    errors = {}
    for clip in ("none", "mse"):
        model = product(weight)
        quantize(model, f"bits=4 group=64 compute=float clip={clip}")
        errors[clip] = float(np.square(run_model(model, {"x": x})["y"] - x @ weight).sum())
    assert errors["mse"] < 0.95 * errors["none"]
