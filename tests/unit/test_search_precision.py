"""search-precision: the bound holds on the result, the least work stays float, and the plan tells why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrating import Calibrating
from graphopt.errors import GraphoptError
from graphopt.ir.hash import structural_hash
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.quantization.affine import sqnr_db
from graphopt.slowness import SiteSeconds
from graphopt.target import NodeTime

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3, 8, 8] x) => (float[N, 5] y)
  <float[8, 3, 3, 3] w, float[8, 8, 3, 3] p, float[8, 5] v> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  q = Conv <pads = [1, 1, 1, 1]> (r, p)
  t = Add (q, r)
  m = GlobalAveragePool (t)
  f = Flatten (m)
  y = MatMul (f, v) }"""
FEEDS = {"x": np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)}


def net() -> Any:
    model = from_text(NET)
    name_nodes(model)
    return model


def searched(sqnr: float, folder: Path) -> tuple[Any, Context]:
    model = net()
    ctx = Context(model, calibration=Calibrating(model, [FEEDS], folder))
    run(model, parse(f"search-precision{{sqnr={sqnr} method=minmax saturation=ignore}}"), ctx)
    return model, ctx


@pytest.mark.parametrize("sqnr", [20, 44, 46, 50])
def test_the_result_keeps_the_ratio_that_was_asked_for(sqnr: int, tmp_path: Path, run_model: Any) -> None:
    model, ctx = searched(sqnr, tmp_path)
    want, got = run_model(net(), FEEDS)["y"], run_model(model, FEEDS)["y"]
    assert sqnr_db(want, got) > sqnr - 0.5  # what was asked is a copy with switches; kernels round a little otherwise
    reached = ctx.plans.made[0].decisions["error"]
    assert reached <= 10 ** (-sqnr / 10)


def test_a_low_bound_leaves_nothing_out_and_a_high_one_everything(tmp_path: Path) -> None:
    _, low = searched(10, tmp_path)
    assert not low.plans.made[0].decisions["kept"]
    model, high = searched(190, tmp_path)
    assert set(high.plans.made[0].decisions["kept"]) == {"Conv_0", "Conv_1", "MatMul_0"}
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph)


def test_in_between_the_remarks_say_what_each_node_costs(tmp_path: Path) -> None:
    _, ctx = searched(46, tmp_path)
    decisions = ctx.plans.made[0].decisions
    assert 0 < len(decisions["kept"]) < 3 and set(decisions["sensitivity"]) == {"Conv_0", "Conv_1", "MatMul_0"}
    missed = [remark.reason for remark in ctx.remarks if remark.status == "missed"]
    assert all("alone it costs the outputs" in reason for reason in missed) and missed


def test_a_ratio_that_is_none_is_refused() -> None:
    with pytest.raises(GraphoptError, match="sqnr=0 is no ratio"):
        parse("search-precision{sqnr=0}")


# ---- by time and bytes: a timer that reads no clock ----------------------------------------------------------------

FLOAT = {"Conv_0": 1.0, "Conv_1": 1.0, "MatMul_0": 1.0}
INT8 = {"Conv_0": 0.5, "Conv_1": 0.5, "MatMul_0": 0.5}


def timer(floats: dict[str, float], ints: dict[str, float], border: float = 0.0) -> Any:
    """Nodes that take so long; a conversion at the border takes `border`."""

    def times(seconds: dict[str, float]) -> dict[str, NodeTime]:
        return {name: NodeTime(name, name.split("_")[0], value, 64) for name, value in seconds.items()}

    def ask(float_model: Any, int8_model: Any, sites: Any) -> SiteSeconds:
        assert {node.name for node in float_model.graph} >= set(sites)
        assert any(node.op_type == "QuantizeLinear" for node in int8_model.graph)
        pairs = [(op, f"{op}_{index}") for op in ("QuantizeLinear", "DequantizeLinear") for index in range(2)]
        both = {name: NodeTime(name, op, border, 64) for op, name in pairs}
        return SiteSeconds(
            float_model.clone(), {site: site for site in sites}, times(floats), times(ints) | both, FEEDS
        )

    return ask


def timed(options: str, folder: Path, given: Any, plans: Any = ()) -> Context:
    model = net()
    ctx = Context(model, calibration=Calibrating(model, [FEEDS], folder), timer=given, plans=plans)
    run(model, parse(f"search-precision{{method=minmax saturation=ignore {options}}}"), ctx)
    return ctx


def kept(ctx: Context) -> dict[str, str]:
    return dict(ctx.plans.made[0].decisions["kept"])


def notes(ctx: Context) -> str:
    return "\n".join(remark.reason for remark in ctx.remarks if remark.status == "note")


def test_what_is_slower_in_int8_stays_float_at_once(tmp_path: Path) -> None:
    ctx = timed("sqnr=10", tmp_path, timer(FLOAT, INT8 | {"Conv_1": 3.0}))
    assert kept(ctx) == {"Conv_1": "int8 takes 3.00x of float on this machine"}
    decisions = ctx.plans.made[0].decisions
    assert decisions["by"] == "time" and decisions["seconds"]["Conv_1"] == {"float": 1.0, "int8": 3.0}
    assert set(decisions["sensitivity"]) == {"Conv_0", "MatMul_0"}  # nobody asks what it would cost
    assert "3 nodes with work take 3e+03 ms in float and 4e+03 ms in int8" in notes(ctx)


def test_conversions_count(tmp_path: Path) -> None:
    """Int8 saves half a second of the first convolution, and two conversions take longer than that."""
    slow = INT8 | {"Conv_1": 9.0, "MatMul_0": 9.0}
    assert set(kept(timed("sqnr=10", tmp_path, timer(FLOAT, slow, 0.2)))) == {"Conv_1", "MatMul_0"}
    assert set(kept(timed("sqnr=10", tmp_path, timer(FLOAT, slow, 0.3)))) == {"Conv_0", "Conv_1", "MatMul_0"}


def test_a_slow_op_between_the_products_stays_float_too(tmp_path: Path, run_model: Any) -> None:
    ctx = timed("sqnr=10", tmp_path, timer(FLOAT | {"Add_0": 0.1}, INT8 | {"Add_0": 5.0}))
    assert not kept(ctx)
    assert "Add_0" not in ctx.plans.made[0].decisions["nodes"] and "Conv_1" in ctx.plans.made[0].decisions["nodes"]
    assert sqnr_db(run_model(net(), FEEDS)["y"], run_model(ctx.model, FEEDS)["y"]) > 10


@pytest.mark.parametrize("cheap", ["MatMul_0", "Conv_1"])
def test_of_two_nodes_the_one_that_saves_least_is_given_up(cheap: str, tmp_path: Path) -> None:
    """Without either of two nodes the bound holds: it is the one that int8 hardly makes faster."""
    ints = {"Conv_0": 0.001, "Conv_1": 0.001, "MatMul_0": 0.001, cheap: 0.999}
    ctx = timed("sqnr=46", tmp_path, timer(FLOAT, ints))
    assert list(kept(ctx)) == [cheap]
    assert "and int8 saves 1 ms" in kept(ctx)[cheap]
    assert ctx.plans.made[0].decisions["error"] <= 10**-4.6


def test_a_node_without_a_time_is_taken_to_save_as_the_others_do(tmp_path: Path) -> None:
    ints = {name: seconds for name, seconds in INT8.items() if name != "Conv_1"}
    ctx = timed("sqnr=10", tmp_path, timer(FLOAT, ints))
    assert not kept(ctx) and set(ctx.plans.made[0].decisions["seconds"]) == {"Conv_0", "MatMul_0"}
    assert "1 more were not found in its profile" in notes(ctx)


def test_a_plan_is_carried_out_without_timing(tmp_path: Path) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("timed")

    first = timed("sqnr=10", tmp_path, timer(FLOAT, INT8 | {"Conv_1": 3.0}))
    again = timed("sqnr=10", tmp_path, never, first.plans.made)
    assert kept(again) == kept(first) and structural_hash(again.model) == structural_hash(first.model)


def test_where_nothing_can_be_timed_work_is_weighed_and_a_remark_says_why(tmp_path: Path) -> None:
    ctx = timed("sqnr=46", tmp_path, None)
    assert "weighs error against multiply-accumulates, as nodes cannot be timed: no target is set" in notes(ctx)
    assert ctx.plans.made[0].decisions["by"] == "work"
    assert kept(ctx) == kept(timed("sqnr=46 by=work", tmp_path, None))
    with pytest.raises(GraphoptError, match=r"pass 'search-precision': by=time: nodes cannot be timed: no target"):
        timed("sqnr=46 by=time", tmp_path, None)
    unknown = timer({"other": 1.0}, {"other": 1.0})
    with pytest.raises(GraphoptError, match="the profile of the target has none of them"):
        timed("sqnr=46 by=time", tmp_path, unknown)


def test_bytes_of_weights_decide(tmp_path: Path) -> None:
    """Conv_1 has 2304 bytes of weights, Conv_0 864, MatMul_0 160: of much the same error the largest is kept."""
    ctx = timed("sqnr=46 by=bytes", tmp_path, None)
    assert ctx.plans.made[0].decisions["by"] == "bytes"
    assert "Conv_1" not in kept(ctx) and all(" bytes" in reason for reason in kept(ctx).values()) and kept(ctx)


def test_weights_that_someone_reads_in_float_save_no_bytes(tmp_path: Path) -> None:
    text = NET.replace("y = MatMul (f, v) }", "y = MatMul (f, v) e = Exp (v) }")
    text = text.replace("(float[N, 5] y)", "(float[N, 5] y, float[8, 5] e)")
    model = from_text(text)
    name_nodes(model)
    ctx = Context(model, calibration=Calibrating(model, [FEEDS], tmp_path))
    run(model, parse("search-precision{sqnr=10 method=minmax by=bytes}"), ctx)
    assert kept(ctx) == {"MatMul_0": "int8 saves no bytes: its weights stay in float for another reader"}
