"""Multiply-accumulates and bytes against figures worked out by hand, and what has to stay unknown."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import models
from graphopt.analysis.cost import Cost, model_cost, node_cost
from graphopt.analysis.shapes import Shapes

HEAD = (
    '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "com.microsoft.nchwc": 1, "other": 1, "local": 1]>\n'
)

CASES = {
    "Conv": ("y = Conv <group = 2, pads = [1, 1, 1, 1]> (img, k3)", 2 * 6 * 5 * 7 * (2 * 9)),
    "FusedConv": ('y = com.microsoft.FusedConv <group = 2, activation = "Relu"> (img, k3)', 2 * 6 * 3 * 5 * (2 * 9)),
    "ConvTranspose": ("y = ConvTranspose (img, t3)", 2 * 4 * 5 * 7 * (6 * 9)),
    "Gemm": ("y = Gemm <transA = 1> (m34, m35)", 4 * 5 * 3),
    "MatMul": ("y = MatMul (h, w83)", 2 * 6 * 3 * 8),
    "MatMul of a vector": ("y = MatMul (v8, w83)", 3 * 8),
    "FusedMatMul": ("y = com.microsoft.FusedMatMul <transA = 1> (h, g)", 2 * 8 * 5 * 6),
    "Einsum": ('y = Einsum <equation = "bsd,dn->bsn"> (h, w83)', 2 * 6 * 8 * 3),
    "Einsum with ellipsis": ('y = Einsum <equation = "...d,dn->...n"> (h, w83)', 2 * 6 * 8 * 3),
    "Einsum of one operand": ('y = Einsum <equation = "bsd->sbd"> (h)', 0),
    "LSTM": ("y = LSTM <hidden_size = 4> (h, lw, lr)", 2 * 6 * (16 * 8 + 16 * 4)),
    "MultiHeadAttention": ("y = com.microsoft.MultiHeadAttention <num_heads = 2> (h, g8, g8)", 2 * 6 * 9 * (8 + 8)),
    "Attention": ("y = com.microsoft.Attention <num_heads = 2> (h, w824, b24)", 2 * 6 * (8 * 24 + 6 * 16)),
    "MatMulNBits": ("y = com.microsoft.MatMulNBits <K = 32, N = 3, bits = 4, block_size = 32> (n, nb, ns)", 6 * 3 * 32),
    "QAttention": (
        "y = com.microsoft.QAttention <num_heads = 2> (h, w824, b24, one, one, , one, one)",
        2 * 6 * (8 * 24 + 6 * 16),
    ),
    "DynamicQuantizeLSTM": (
        "y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 4> (h, lw8, lr4, , , , , , one, one, one, one)",
        2 * 6 * (8 * 16 + 4 * 16),
    ),
    "reordering to blocks": ("y = com.microsoft.nchwc.ReorderInput (img)", 0),
    "Relu": ("y = Relu (h)", 0),
}
SHAPES = {
    "img": (2, 4, 5, 7), "h": (2, 6, 8), "g": (2, 6, 5), "g8": (2, 9, 8), "m34": (3, 4), "m35": (3, 5), "v8": (8,),
    "n": (6, 32), "k3": (6, 2, 3, 3), "t3": (4, 6, 3, 3), "w83": (8, 3), "lw": (1, 16, 8), "lr": (1, 16, 4),
    "w824": (8, 24), "b24": (24,), "ns": (3,), "lw8": (1, 8, 16), "lr4": (1, 4, 16), "one": (1,),
}  # fmt: skip


def _model(text: str) -> ir.Model:
    return ir.from_onnx_text(HEAD + text)


@pytest.mark.parametrize("name", sorted(CASES))
def test_macs_of_an_op(name: str) -> None:
    body, macs = CASES[name]
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {key}" for key, shape in SHAPES.items())
    model = _model(f"g ({inputs}, uint8[3, 1, 16] nb) => (float[A] y) {{ {body} }}")
    shapes = Shapes(model).infer()
    assert node_cost(model.graph[0], shapes).macs == macs


def test_macs_of_a_conv_in_blocks() -> None:
    """ONNX Runtime writes the shapes of its own layout into the file; there is no rule that infers them."""
    model = _model(
        "g (float[2,4,5,7] x, float[6,2,3,3] w) => (float[2,6,3,5] y) { y = com.microsoft.nchwc.Conv (x, w) }"
    )
    assert node_cost(model.graph[0], Shapes(model).infer()).macs == 2 * 6 * 3 * 5 * (2 * 9)


def test_bytes() -> None:
    model = _model("g (float16[N, 4] x) => (float[N, 2] y) { t = MatMul (x, w) \n y = Cast <to = 1> (t) }")
    weight = ir.val("w", const_value=ir.tensor(np.zeros((4, 2), "float16"), name="w"))
    ir.convenience.replace_all_uses_with(model.graph[0].inputs[1], weight)
    model.graph.register_initializer(weight)
    shapes = Shapes(model).infer()
    assert node_cost(model.graph[0], shapes, {"N": 3}) == Cost(macs=24, parameter_bytes=16, activation_bytes=12)
    assert node_cost(model.graph[1], shapes, {"N": 3}) == Cost(macs=0, parameter_bytes=0, activation_bytes=24)


def test_unknown_is_not_zero() -> None:
    model = _model("""g (float[N, 4] x) => (float[A] z) {
        t = MatMul (x, x) \n u = other.Thing (t) \n w = com.microsoft.MoE (x) \n z = Relu (x) }""")
    shapes = Shapes(model).infer()
    assert [node_cost(node, shapes).macs for node in model.graph] == [None, None, None, 0]
    assert node_cost(model.graph[1], shapes, {"N": 2}).activation_bytes is None
    total = model_cost(model, shapes)
    assert total.macs is None and total.known_macs == 0 and len(total.unknown) == 4


def test_bindings_reach_through_broadcasts() -> None:
    model = _model(
        "g (float[N, 4] x, float[M, 4] z, float[4, 3] w) => (float[A, 3] y) { t = Add (x, z) \n y = MatMul (t, w) }"
    )
    assert model_cost(model, bindings={"N": 1, "M": 5}).macs == 5 * 3 * 4
    assert model_cost(model, bindings={"N": 2, "M": 5}).macs is None


def test_shared_weights_count_once_and_bodies_per_trip() -> None:
    model = _model("""g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
        a = MatMul (x, w) \n b = MatMul (a, w)
        n = Constant <value_int = 7> ()
        c = Constant <value_int = 1> ()
        yes = Cast <to = 9> (c)
        y = Loop (n, yes, b) < body = l (int64 i, bool go, float[2, 2] h) => (bool on, float[2, 2] k) {
            on = Identity (go) \n k = MatMul (h, w) }> }""")
    cost = model_cost(model)
    assert cost.macs == (2 + 7) * 8
    assert cost.parameter_bytes == 16 + 8 + 8


def test_a_function_call_costs_its_body() -> None:
    model = _model("""g (float[2, 3] x, float[3, 4] w) => (float[2, 4] y) { y = local.F (x, w) }
        <domain: "local", opset_import: ["": 21]>
        F (p, q) => (r) { t = MatMul (p, q) \n r = Relu (t) }""")
    assert model_cost(model).macs == 2 * 3 * 4


@pytest.mark.parametrize(("name", "millions"), [("light-resnet50", 4089), ("light-squeezenet", 349)])
def test_published_figures(name: str, millions: int) -> None:
    """He et al. 2015 and Iandola et al. 2016, for 224 x 224."""
    model = ir.load(models.fetch(name))
    for value in list(model.graph.inputs):
        if value.name in model.graph.initializers and value.uses():
            model.graph.inputs.remove(value)
    macs = model_cost(model).macs
    assert macs is not None and round(macs / 1e6) == millions
