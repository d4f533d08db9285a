"""Residual sums in front of norms: by default only those that nothing else uses."""

from __future__ import annotations

import pytest

from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.registry import make_target
from graphopt.manager.runner import run

MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3, 8] x, float[N, 3, 8] r) => (float[N, 3, 8] y, float[N, 3, 8] z) <float[8] scale, float[8] bias> {{
  a = Add (x, r)
  y = LayerNormalization <axis = -1> (a, scale, bias)
  z = Neg ({operand})
}}"""


@pytest.mark.parametrize(
    ("operand", "options", "fused"),
    [("y", "", True), ("a", "", False), ("a", "{sums=true}", True)],
)
def test_a_sum_with_other_users_is_fused_on_request(operand: str, options: str, fused: bool) -> None:
    model = from_text(MODEL.format(operand=operand))
    name_nodes(model)
    result = run(model, parse(f"fuse-skip-layer-norm{options}"), Context(model, target=make_target("cpu")))
    assert any(node.op_type == "SkipLayerNormalization" for node in all_nodes(model)) == fused
    if not fused:
        assert "the sum has other users" in [remark.reason for remark in result.ctx.remarks]
