"""search-precision: the bound holds on the result, the least work stays float, and the plan tells why."""

from __future__ import annotations

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
from graphopt.manager.runner import run
from graphopt.quantization.affine import sqnr_db

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
    run(model, parse(f"search-precision{{sqnr={sqnr} method=minmax}}"), ctx)
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
