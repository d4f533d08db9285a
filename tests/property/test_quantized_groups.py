"""Rules leave low-precision groups together: where a value is quantized or dequantized, they do not apply.

No number would change, so that the mutants cannot show it (equivalents.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper
from property import splice
from property.campaign import pipelines, target_of
from property.draft import Draft, rename
from property.guards import watched

from graphopt import ir
from graphopt.ir.sites import name_nodes
from graphopt.manager.context import Context
from graphopt.manager.runner import run

GUARDS = ("m.not_quantized(", "_in_qdq_group(")
RULES = (
    "decompose-ops",
    "eliminate-nop-arithmetic",
    "eliminate-nop-clip",
    "fold-matmul-chain",
    "fuse-attention",
    "fuse-bias-gelu",
    "fuse-conv-activation",
    "fuse-conv-bias",
    "fuse-conv-bn",
    "fuse-conv-scale",
    "fuse-gemm-activation",
    "fuse-gemm-add",
    "fuse-gemm-bn",
    "fuse-gemm-transpose",
    "fuse-global-pool",
    "fuse-matmul",
    "fuse-matmul-add",
    "fuse-matmul-bn",
    "fuse-matmul-scale",
    "fuse-pad-pool",
    "fuse-quick-gelu",
    "fuse-rotary-embedding",
    "fuse-scale-conv",
    "fuse-scale-matmul",
    "fuse-scale-shift-conv",
    "fuse-skip-layer-norm",
    "fuse-skip-rms-norm",
    "keep-residual-sum",
    "merge-clips",
    "merge-constants",
)


def quantized(draft: Draft) -> Iterator[Draft]:
    """The draft with each of its float values in turn taken through 8 bits on its way to its users."""
    made_at = {name: at + 1 for at, node in enumerate(draft.nodes) for name in node.output}
    for name in dict.fromkeys((*draft.inputs, *draft.weights, *made_at)):
        if draft.types.get(name) != TensorProto.FLOAT:
            continue
        other, at = copy.deepcopy(draft), made_at.get(name, 0)
        for node in other.nodes[at:]:
            rename(node, {name: f"{name}~8"})
        other.outputs = [f"{name}~8" if item == name else item for item in other.outputs]
        other.nodes[at:at] = _through_8_bits(other, name, f"{name}~8")
        yield other


def _through_8_bits(draft: Draft, source: str, result: str) -> list:
    scale, zero = draft.weight(np.float32(0.05), "s"), draft.weight(np.uint8(128), "z")
    code = draft.fresh("q")
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [code]),
        helper.make_node("DequantizeLinear", [code, scale, zero], [result]),
    ]


@pytest.mark.parametrize("rule", RULES)
def test_rule_stays_away_from_quantized_values(rule: str) -> None:
    for item in splice.seeds()[rule]:
        draft = splice.draft_of(item)
        plain, _ = _applied(rule, draft)
        for other in quantized(draft) if plain else ():
            applied, seen = _applied(rule, other)
            if applied < plain and any(name in guard for name in GUARDS for guard in seen):
                return
    pytest.fail("nothing keeps the rule from quantized values")


def _applied(rule: str, draft: Draft) -> tuple[int, set[str]]:
    """How often the rule is applied, and which of its guards stop it."""
    model, pipeline = ir.from_proto(draft.model()), pipelines()[rule]
    name_nodes(model)
    ctx, seen = Context(model, target=target_of(pipeline)), set[str]()
    with watched(seen):
        run(model, pipeline, ctx)
    return ctx.rewriter.changes, seen
