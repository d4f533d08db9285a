"""What a quantized model executes, and how wrong its layers are, on models whose answers are known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.layerwise import layer_errors
from graphopt.realized import Conversion, Realized, realized
from graphopt.running import runnable

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'
PARAMS = """<float s = {0.05}, float s2 = {0.07}, float ws = {0.01}, uint8 z = {128}, int8 wz = {0}, int8[4,4,3,3] w>"""
WEIGHT = np.random.default_rng(3).integers(-100, 100, (4, 4, 3, 3)).astype(np.int8)


def save(text: str, path: Path, **arrays: np.ndarray) -> Path:
    """Write a model; weights that are not given are made from their names."""
    model = from_text(HEAD + text)
    for name, array in {"w": WEIGHT, **arrays}.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    write(model, path)
    return path


def chain(*middle: str, head: str = "float[1,4,8,8] x", params: str = PARAMS) -> str:
    """Conv, `middle` (from a_d to b), Conv; everything quantized."""
    between = "\n".join(middle)
    return f"""g ({head}) => (float[N,C,H,W] y) {params}
    {{ [xq] xq = QuantizeLinear(x, s, z)
       [xd] xd = DequantizeLinear(xq, s, z)
       [wd] wd = DequantizeLinear(w, ws, wz)
       [first] a = Conv<pads=[1,1,1,1]>(xd, wd)
       [aq] aq = QuantizeLinear(a, s, z)
       [ad] a_d = DequantizeLinear(aq, s, z)
       {between}
       [wd2] wd2 = DequantizeLinear(w, ws, wz)
       [second] c = Conv<pads=[1,1,1,1]>(b_d, wd2)
       [cq] cq = QuantizeLinear(c, s, z)
       [yd] y = DequantizeLinear(cq, s, z) }}"""


TANH = "[odd] b = Tanh(a_d) [bq] bq = QuantizeLinear(b, s, z) [bd] b_d = DequantizeLinear(bq, s, z)"


def inner(found: Realized) -> list[Conversion]:
    return [row for row in found.conversions if row.cause != "boundary"]


def test_one_op_without_a_kernel_is_the_only_edge_that_is_listed(tmp_path: Path) -> None:
    found = realized(runnable(save(chain(TANH), tmp_path / "m.onnx")))
    rows = [(row.op, row.place, row.neighbour, row.neighbour_op, row.cause) for row in inner(found)]
    assert sorted(rows) == [
        ("DequantizeLinear", "consumer", "odd", "Tanh", "no-int8-kernel"),
        ("QuantizeLinear", "producer", "odd", "Tanh", "no-int8-kernel"),
    ]
    assert sorted(row.place for row in found.conversions if row.cause == "boundary") == ["graph-input", "graph-output"]
    assert found.macs == {"int8": 2 * 64 * 4 * 4 * 9}
    assert found.share("int8") == 1
    assert found.unknown == 0


def test_a_scale_that_is_not_shared(tmp_path: Path) -> None:
    pool = """[pool] b = MaxPool<kernel_shape=[2,2]>(a_d)
        [bq] bq = QuantizeLinear(b, s2, z) [bd] b_d = DequantizeLinear(bq, s2, z)"""
    found = realized(runnable(save(chain(pool), tmp_path / "m.onnx")))
    assert {(row.neighbour, row.cause) for row in inner(found)} == {("pool", "scale-not-shared")}
    assert "'a_d' and output 'b'" in inner(found)[0].reason


def test_a_layer_left_in_float(tmp_path: Path) -> None:
    """The second Conv reads a float value: its MACs are fp32 and its weight is dequantized."""
    found = realized(runnable(save(chain("[tanh] b_d = Tanh(a_d)"), tmp_path / "m.onnx")))
    assert found.macs == {"int8": 64 * 4 * 4 * 9, "fp32": 64 * 4 * 4 * 9}
    assert found.share("int8") == 0.5
    rows = {(row.op, row.place, row.neighbour, row.cause) for row in inner(found)}
    assert ("QuantizeLinear", "producer", "second", "input-not-quantized") in rows
    assert ("DequantizeLinear", "consumer", "tanh", "no-int8-kernel") in rows


def test_an_output_that_is_also_read_in_float(tmp_path: Path) -> None:
    text = chain("[id] b_d = Identity(a_d)").replace("(float[N,C,H,W] y)", "(float[N,C,H,W] y, float[N,C,H,W] a)")
    found = realized(runnable(save(text, tmp_path / "m.onnx")))
    causes = {(row.neighbour, row.cause) for row in inner(found)}
    assert ("first", "output-not-quantized") in causes
    assert found.share("int8") == 0.5


def test_scales_per_channel_of_an_activation(tmp_path: Path) -> None:
    params = PARAMS.replace("float s2 = {0.07}", "float[4] cs = {0.05,0.06,0.07,0.08}, uint8[4] cz = {1,2,3,4}")
    middle = """[odd] t = Tanh(a_d)
        [tq] tq = QuantizeLinear<axis=1>(t, cs, cz) [td] td = DequantizeLinear<axis=1>(tq, cs, cz)
        [pool] b = MaxPool<kernel_shape=[2,2]>(td)
        [bq] bq = QuantizeLinear(b, s, z) [bd] b_d = DequantizeLinear(bq, s, z)"""
    found = realized(runnable(save(chain(middle, params=params), tmp_path / "m.onnx")))
    assert ("pool", "per-channel-activation") in {(row.neighbour, row.cause) for row in inner(found)}


def test_four_bit_weights(tmp_path: Path) -> None:
    text = """g (float[3,64] x) => (float[3,8] y) <uint8[8,2,16] q, float[16] s>
    { y = com.microsoft.MatMulNBits<K=64, N=8, bits=4, block_size=32>(x, q, s) }"""
    found = realized(
        runnable(save(text, tmp_path / "m.onnx", s=np.full(16, 0.1, np.float32), q=np.ones((8, 2, 16), np.uint8)))
    )
    assert found.macs == {"int4": 3 * 64 * 8}
    assert not found.conversions


def test_dynamic_quantization(tmp_path: Path) -> None:
    text = """g (float[3,8] x) => (float[3,8] y) <int8[8,8] m, int8 wz = {0}, float ws = {0.01}>
    { q, qs, qz = DynamicQuantizeLinear(x)
      i = MatMulInteger(q, m, qz, wz) f = Cast<to=1>(i) s = Mul(qs, ws) y = Mul(f, s) }"""
    found = realized(runnable(save(text, tmp_path / "m.onnx")))
    assert found.macs == {"int8": 3 * 8 * 8}


def test_float16_on_the_cpu_runs_in_float32_between_casts(tmp_path: Path) -> None:
    text = """g (float16[3,8] x) => (float16[3,8] y) <float16[8,8] w> { [mm] t = MatMul(x, w) [relu] y = Relu(t) }"""
    found = realized(runnable(save(text, tmp_path / "m.onnx", w=np.ones((8, 8), np.float16))))
    assert found.macs == {"fp32": 3 * 8 * 8}
    assert {row.op for row in found.conversions} == {"Cast"}
    assert {"graph-input", "graph-output"} <= {row.place for row in found.conversions}


def test_symbolic_dims_take_the_sizes_of_the_data(tmp_path: Path) -> None:
    path = save(chain(TANH, head="float[N,4,H,W] x"), tmp_path / "m.onnx")
    assert realized(runnable(path)).unknown > 0
    found = realized(runnable(path), {"x": np.zeros((2, 4, 8, 8), np.float32)})
    assert found.unknown == 0
    assert found.macs == {"int8": 2 * 2 * 64 * 4 * 4 * 9}


def test_work_inside_a_branch_is_told_by_its_own_precision(tmp_path: Path) -> None:
    text = """g (bool c, float[3,8] x) => (float[3,8] y) <float[8,8] w>
    { y = If(c) <then_branch = t () => (float[3,8] u) { u = MatMul(x, w) },
                 else_branch = e () => (float[3,8] v) { v = Relu(x) }> }"""
    found = realized(runnable(save(text, tmp_path / "m.onnx", w=np.ones((8, 8), np.float32))))
    assert found.macs == {"fp32": 3 * 8 * 8}
    assert [(row.op, row.nodes) for row in found.ops] == [("MatMul", 1)]


FLOAT = """g (float[1,4,8,8] x) => (float[N,C,H,W] c) <float[4,4,3,3] wf>
    { [first] a = Conv<pads=[1,1,1,1]>(x, wf) [odd] b = Tanh(a) [second] c = Conv<pads=[1,1,1,1]>(b, wf) }"""


def pair(tmp_path: Path, quantized: str = TANH) -> tuple[Path, Path]:
    """The quantized chain, and its float original: weights are the dequantized ones."""
    text = (
        chain(quantized)
        .replace("DequantizeLinear(cq, s, z)", "DequantizeLinear(cq, s2, z)")
        .replace("QuantizeLinear(c, s, z)", "QuantizeLinear(c, s2, z)")
    )
    wf = WEIGHT.astype(np.float32) * np.float32(0.01)
    return save(text, tmp_path / "q.onnx"), save(FLOAT, tmp_path / "f.onnx", wf=wf)


def test_noise_of_a_layer_is_that_of_its_quantizer(tmp_path: Path) -> None:
    quantized, original = pair(tmp_path)
    rng = np.random.default_rng(0)
    # The input lies on the grid of its quantizer, so the first layer only suffers from rounding its own output.
    samples = [{"x": (rng.integers(-20, 20, (1, 4, 8, 8)) * np.float32(0.05)).astype(np.float32)} for _ in range(2)]
    found = layer_errors(runnable(quantized), runnable(original), samples)
    assert [layer.site for layer in found.layers][-1] == "first"
    assert found.samples == 2
    assert not found.unmatched
    with runnable(original).open() as base, base.with_taps(["a"]) as runner:
        a = np.stack([runner.run(feeds)["a"] for feeds in samples])
    q = np.clip(np.rint(a / np.float32(0.05)) + 128, 0, 255) - 128
    expected = 10 * np.log10(np.sum(a**2) / np.sum((a - q * 0.05) ** 2))
    first = next(layer for layer in found.layers if layer.site == "first")
    assert first.sqnr_db == pytest.approx(expected, abs=0.2)


def test_the_broken_layer_is_the_worst(tmp_path: Path) -> None:
    _, original = pair(tmp_path)
    wrong = chain(TANH).replace("[wd] wd = DequantizeLinear(w, ws, wz)", "[wd] wd = DequantizeLinear(w, s, wz)")
    quantized = save(wrong, tmp_path / "wrong.onnx")
    samples = [{"x": np.random.default_rng(0).uniform(-1, 1, (1, 4, 8, 8)).astype(np.float32)}]
    assert layer_errors(runnable(quantized), runnable(original), samples).layers[0].site == "first"


def test_an_activation_that_went_into_the_quantizer(tmp_path: Path) -> None:
    """ReLU is done by a range that begins at 0: what is compared is the result of the original's ReLU."""
    relu = "[bq] bq = QuantizeLinear(b, s, u) [bd] b_d = DequantizeLinear(bq, s, u)"
    text = chain(relu, params=PARAMS.replace("uint8 z = {128}", "uint8 z = {128}, uint8 u = {0}"))
    text = text.replace("[aq] aq = QuantizeLinear(a, s, z)", "").replace("[ad] a_d = DequantizeLinear(aq, s, z)", "")
    quantized = save(text.replace("a = Conv", "b = Conv"), tmp_path / "q.onnx")
    float_text = (
        FLOAT.replace("a = Conv", "b = Conv").replace("b = Tanh(a)", "r = Relu(b)").replace("(b, wf)", "(r, wf)")
    )
    original = save(float_text, tmp_path / "f.onnx", wf=WEIGHT.astype(np.float32) * np.float32(0.01))
    samples = [{"x": np.random.default_rng(0).uniform(-0.3, 0.3, (1, 4, 8, 8)).astype(np.float32)}]
    first = next(layer for layer in layer_errors(runnable(quantized), runnable(original), samples).layers)
    by_site = {layer.site: layer for layer in layer_errors(runnable(quantized), runnable(original), samples).layers}
    assert by_site["first"].value == "r"
    assert first.sqnr_db > 15


def test_a_layer_whose_norm_was_folded_into_it(tmp_path: Path) -> None:
    quantized, _ = pair(tmp_path)
    text = FLOAT.replace(
        "[first] a = Conv<pads=[1,1,1,1]>(x, wf)", "[first] h = Conv<pads=[1,1,1,1]>(x, wf) a = Neg(h)"
    )
    original = save(text, tmp_path / "n.onnx", wf=WEIGHT.astype(np.float32) * np.float32(-0.01))
    samples = [{"x": np.random.default_rng(0).uniform(-0.3, 0.3, (1, 4, 8, 8)).astype(np.float32)}]
    found = {layer.site: layer for layer in layer_errors(runnable(quantized), runnable(original), samples).layers}
    assert found["first"].value == "a"
    assert found["first"].sqnr_db > 15


def test_models_without_a_common_layer(tmp_path: Path) -> None:
    quantized, _ = pair(tmp_path)
    renamed = re.sub(r"\b([abc])\b", r"other_\1", FLOAT)
    other = save(renamed, tmp_path / "o.onnx", wf=np.ones((4, 4, 3, 3), np.float32))
    with pytest.raises(GraphoptError, match="no layer in common"):
        layer_errors(runnable(quantized), runnable(other), [{"x": np.zeros((1, 4, 8, 8), np.float32)}])
    with pytest.raises(GraphoptError, match="no samples"):
        layer_errors(runnable(quantized), runnable(other), [])
