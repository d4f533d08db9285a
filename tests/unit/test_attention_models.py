"""Real exports: every attention is fused, the numbers stay under masks, and the fused model can be taken apart."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from graphopt import models
from graphopt.frontends.onnx import load
from graphopt.ir.sites import all_nodes
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.registry import make_target
from graphopt.manager.runner import run

RELATIVE = 1e-5
"""Largest difference relative to an output's maximum; about 10 times what the runtime's own optimizations change."""

FUSE = "fuse-rotary-embedding,fuse-attention,fuse-skip-layer-norm,fuse-skip-rms-norm,dce"

pytestmark = [pytest.mark.torch, pytest.mark.zoo]

EXPECTED = {
    "bert-tiny-export": {"Attention": 2, "SkipLayerNormalization": 4},
    "vit-tiny-export": {"Attention": 2, "SkipLayerNormalization": 5},
    "llama-tiny": {"GroupQueryAttention": 4, "RotaryEmbedding": 8, "SkipSimplifiedLayerNormalization": 8},
    "llama-tiny-kv": {"MultiHeadAttention": 4, "RotaryEmbedding": 8, "SkipSimplifiedLayerNormalization": 8},
}

# Positions of the past, new tokens and batch, per dim that is bound.
CACHES = {
    "batch=1": ((5, 7, 1), (0, 3, 1), (6, 1, 1)),
    "sequence=1": ((5, 1, 3), (0, 1, 2), (2, 1, 1)),
}


def _feeds(model: Any, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Tokens and images at the given sizes; of the masks, element 0 is hidden partly and 1 as a whole."""
    random = np.random.default_rng(sizes["sequence"])
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape]
        if value.name == "attention_mask":
            mask = np.ones(shape, np.int64)
            mask[0, shape[1] // 2 :] = 0
            mask[1:2] = 0
            mask[2:, :2] = 0
            feeds[value.name] = mask
        elif value.dtype.is_floating_point():
            feeds[value.name] = random.standard_normal(shape).astype(np.float32)
        else:
            feeds[value.name] = random.integers(0, 900, shape)
    return feeds


@pytest.mark.parametrize("name", EXPECTED)
def test_attention_of_real_exports_is_fused_and_keeps_its_numbers(name: str, run_model: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = models.fetch(name)
    before, fused = load(path), load(path)
    run(fused, parse(FUSE), Context(fused, target=make_target("cpu")))
    contributed = Counter(node.op_type for node in all_nodes(fused) if node.domain == "com.microsoft")
    assert dict(contributed) == EXPECTED[name]
    assert not any(node.op_type == "Softmax" for node in all_nodes(fused))

    apart = fused.clone()
    run(apart, parse("decompose-contrib-ops,dce"), Context(apart))
    assert not any(node.domain for node in all_nodes(apart))

    for sizes in ((5, 7, 3), (3, 1, 2)):
        _compare(before, (fused, apart), sizes, run_model)


@pytest.mark.parametrize("bound", CACHES)
def test_attention_over_grouped_heads_makes_its_cache(bound: str, run_model: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = models.fetch("llama-tiny-kv")
    before, fused = load(path), load(path)
    run(fused, parse(f"bind-dims{{{bound}}},{FUSE}"), Context(fused, target=make_target("cpu")))
    nodes = [node for node in all_nodes(fused) if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == 4
    made = {output.name for node in nodes for output in node.outputs[1:]}
    assert made == {value.name for value in fused.graph.outputs if str(value.name).startswith("present")}
    for sizes in CACHES[bound]:
        _compare(before, (fused,), sizes, run_model)


def _compare(before: Any, candidates: Any, sizes: tuple[int, int, int], run_model: Any) -> None:
    past, length, batch = sizes
    feeds = _feeds(before, {"batch": batch, "sequence": length, "past": past, "total": past + length})
    want = run_model(before, feeds)
    for model in candidates:
        got = run_model(model, feeds)
        for output, value in want.items():
            atol = RELATIVE * float(np.abs(value).max())
            np.testing.assert_allclose(got[output], value, rtol=0, atol=atol, err_msg=output)
