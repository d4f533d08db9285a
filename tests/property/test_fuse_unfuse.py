"""Fuse then unfuse: every fused op can be taken apart, the parts are found again, and the numbers stay.

Random shapes, axes and attributes; the expressions are the decompositions themselves, applied to one op at a time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.passes.fuse._decompositions import TABLE

TOLERANCE = 2e-5
"""Largest difference relative to the output's maximum: the parts round a dozen times in float32, the op once."""


@dataclass(frozen=True)
class Form:
    """How to write one op on x: its other inputs (initializers), its attributes, and the pass that fuses it again."""

    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    attributes: str = ""
    fuse: str = ""
    opset: int = 21


def _form(op: str, dims: list[int], draw: Any) -> Form:
    rank, channels = len(dims), dims[1]
    last = tuple(dims[-draw(st.integers(1, 2)) :])
    epsilon = f"epsilon = {draw(st.sampled_from([1e-5, 1e-3]))}"
    alpha = f"alpha = {draw(st.sampled_from([0.1, 0.5, 1.702]))}"
    along = f"axis = {draw(st.integers(-rank, rank - 1))}"
    slope = (channels, *(1,) * (rank - 2))
    forms = {
        "Gelu": Form((), f'approximate = "{draw(st.sampled_from(["none", "tanh"]))}"', "fuse-gelu"),
        "LayerNormalization": Form((("w", last), ("b", last)), f"axis = -{len(last)}, {epsilon}", "fuse-layer-norm"),
        "RMSNormalization": Form((("w", last),), f"axis = -{len(last)}, {epsilon}", "fuse-rms-norm", 24),
        "InstanceNormalization": Form((("w", (channels,)), ("b", (channels,))), epsilon, "fuse-instance-norm"),
        "GroupNormalization": Form(
            (("w", (channels,)), ("b", (channels,))), f"num_groups = 2, {epsilon}", "fuse-group-norm"
        ),
        "HardSwish": Form((), "", "fuse-hard-sigmoid-mul"),
        "HardSigmoid": Form((), "alpha = 0.25, beta = 0.5", "fuse-hard-sigmoid"),
        "Swish": Form((), alpha, "fuse-swish", 24),
        "Mish": Form((), "", "fuse-mish"),
        "Softplus": Form((), "", "fuse-softplus"),
        "LeakyRelu": Form((), alpha, "fuse-leaky-relu"),
        "PRelu": Form((("w", slope),), "", "fuse-prelu"),
        "Relu": Form((), "", "fuse-relu"),
        "Clip": Form((("low", ()), ("pos_high", ())), "", "fuse-clip"),
        "ReduceL2": Form((), f"keepdims = {draw(st.integers(0, 1))}", "fuse-reduce-l2"),
        "ReduceSumSquare": Form((), f"keepdims = {draw(st.integers(0, 1))}", "fuse-reduce-sum-square"),
        "Softmax": Form((), along, "fuse-softmax"),
        "LogSoftmax": Form((), along, "fuse-log-softmax"),
        "GlobalAveragePool": Form((), "", "fuse-global-pool"),
        "Gemm": Form((("w", (5, dims[-1])), ("b", (5,))), "transB = 1", "fuse-gemm-transpose"),
    }
    return forms[op]


def _model(op: str, form: Form, dims: list[int]) -> Any:
    shape = ", ".join(map(str, dims))
    constants = ", ".join(f"float[{', '.join(map(str, size))}] {name}" for name, size in form.inputs)
    constants = constants.replace("float[] low", "float low = {-0.5}").replace(
        "float[] pos_high", "float pos_high = {0.5}"
    )
    attributes = f" <{form.attributes}>" if form.attributes else ""
    inputs = ", ".join(["x", *(name for name, _ in form.inputs)])
    model = from_text(
        f'<ir_version: 10, opset_import: ["": {form.opset}]> g (float[{shape}] x) => (float[] y) '
        f"{'<' + constants + '>' if constants else ''} {{ y = {op}{attributes} ({inputs}) }}"
    )
    model.graph.outputs[0].shape = None
    name_nodes(model)
    return model


def _ops(model: Any) -> list[str]:
    return [node.op_type for node in all_nodes(model)]


@pytest.mark.parametrize("op", sorted(TABLE))
@given(data=st.data())
@settings(max_examples=5, deadline=None, derandomize=True)
def test_taken_apart_and_put_together_again(op: str, data: Any, run_model: Any, difference: Any) -> None:
    ranks = {"Gemm": (2, 2), "GlobalAveragePool": (4, 5), "InstanceNormalization": (4, 4)}
    low, high = ranks.get(op, (3, 4))
    rank = data.draw(st.integers(low, high))
    dims = [
        data.draw(st.integers(1, 3)),
        data.draw(st.sampled_from([2, 4])),
        *(data.draw(st.integers(2, 5)) for _ in range(rank - 2)),
    ]
    form = _form(op, dims, data.draw)
    model = _model(op, form, dims)
    seed = zlib.crc32(f"{op}{dims}{form.attributes}".encode())
    feeds = {"x": 2 * np.random.default_rng(seed).standard_normal(dims).astype(np.float32)}
    want = run_model(model, feeds)["y"]

    run(model, parse(f"decompose-ops{{ops={op}}}"), Context(model))
    assert op not in _ops(model), "the op is still there"
    assert difference(want, run_model(model, feeds)["y"]) <= TOLERANCE

    run(model, parse(form.fuse), Context(model))
    assert op in _ops(model), f"{form.fuse} does not find the op's own parts: {_ops(model)}"
    assert difference(want, run_model(model, feeds)["y"]) <= TOLERANCE
    run(model, parse(f"decompose-ops{{ops={op}}}"), Context(model))
    assert op not in _ops(model)
    assert difference(want, run_model(model, feeds)["y"]) <= TOLERANCE
