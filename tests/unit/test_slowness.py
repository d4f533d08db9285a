"""The cut that says what to leave in float, on times that are given; and nodes that are really timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.frontends.onnx import load
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.running import runnable
from graphopt.slowness import MARGIN, Conversions, aliases, slow_sites, time_nodes
from graphopt.target import NodeTime

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
CHAIN = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] w>
{ [a] p = Conv(x, w) [b] q = Conv(p, w) [c] r = Conv(q, w) [d] y = Conv(r, w) }"""
SITES = {"a", "b", "c", "d"}


def times(op: str = "Conv", **seconds: float) -> dict[str, NodeTime]:
    return {name: NodeTime(name, op, value, 256) for name, value in seconds.items()}


def int8(quantize: float = 1.0, dequantize: float = 1.0, **seconds: float) -> dict[str, NodeTime]:
    """Times of an int8 model whose border conversions take so long."""
    found = times("QLinearConv", **seconds)
    found["x_q"] = NodeTime("x_q", "QuantizeLinear", quantize, 256)
    found["y_d"] = NodeTime("y_d", "DequantizeLinear", dequantize, 256)
    return found


def slow(floats: dict[str, NodeTime], ints: dict[str, NodeTime], text: str = CHAIN) -> dict[str, float]:
    return slow_sites(from_text(HEAD + text), SITES, floats, ints)


def test_int8_that_is_faster_stays() -> None:
    assert slow(times(a=10, b=10, c=10, d=10), int8(a=5, b=5, c=5, d=5)) == {}


def test_one_slow_node_is_left_out_when_that_pays_for_the_conversions() -> None:
    # 30 - 10 is more than to float and back (2).
    found = slow(times(a=10, b=10, c=10, d=10), int8(a=5, b=30, c=5, d=5))
    assert found == {"b": pytest.approx(30 / (10 + 2))}


def test_one_slow_node_stays_when_the_conversions_take_longer() -> None:
    assert slow(times(a=10, b=10, c=10, d=10), int8(quantize=9, dequantize=9, a=1, b=12, c=1, d=1)) == {}


def test_neighbours_go_together_where_each_alone_would_not_pay() -> None:
    """b and c lose 12 each in int8; the 18 of the conversions are paid once for both."""
    found = slow(times(a=30, b=10, c=10, d=30), int8(quantize=9, dequantize=9, a=1, b=22, c=22, d=1))
    assert set(found) == {"b", "c"}
    assert found["b"] == pytest.approx(44 / (20 + 18))


def test_everything_goes_when_nothing_is_gained() -> None:
    found = slow(times(a=10, b=10, c=10, d=10), int8(quantize=2, dequantize=2, a=10, b=10, c=10, d=10))
    assert set(found) == SITES  # the conversions at the borders are all that int8 adds
    assert found["a"] == pytest.approx(44 / 40)


def test_a_difference_within_the_margin_is_none() -> None:
    part = 1 + (MARGIN - 1) / 2
    ints = int8(quantize=0, dequantize=0, a=5, b=10 * part, c=5, d=5)
    assert slow(times(a=10, b=10, c=10, d=10), ints) == {}


def test_what_hardly_saves_time_is_not_worth_it() -> None:
    floats = times(a=1000, b=10, c=10, d=10)
    assert slow(floats, int8(quantize=0.1, dequantize=0.1, a=500, b=20, c=5, d=5)) == {}
    assert set(slow(floats, int8(quantize=0.1, dequantize=0.1, a=200, b=20, c=5, d=5))) == {"b"}


def test_a_value_with_two_readers_is_converted_once() -> None:
    text = """g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] z) <float[4,4,1,1] w>
    { [a] p = Conv(x, w) [b] q = Conv(p, w) [c] y = Conv(p, w) [d] z = Conv(q, w) }"""
    # a stays float: one Quantize (5) for b and c, and it gains 5.5 - 5.
    floats, ints = times(a=10, b=90, c=90, d=90), int8(quantize=5, dequantize=0, a=16, b=1, c=1, d=1)
    assert set(slow(floats, ints, text)) == {"a"}


def test_nodes_that_are_no_sites_are_float() -> None:
    text = CHAIN.replace("[c] r = Conv(q, w)", "[tanh] r = Tanh(q)")
    floats = {**times(a=10, b=10, d=10), **times("Tanh", tanh=1)}
    found = slow(floats, int8(quantize=8, dequantize=8, a=1, b=1, d=8), text)
    assert set(found) == {"d"}  # alone between float neighbours: 16 for conversions to gain 2


def test_a_node_that_was_joined_with_its_activation() -> None:
    """The runtime calls Conv and Relu by the value that comes out, with a suffix of its own."""
    text = CHAIN.replace("[b] q = Conv(p, w)", "[b] h = Conv(p, w) [relu] q = Relu(h)")
    floats = {**times(a=10, c=10, d=10), **times("FusedConv", q_nchwc=10)}
    found = slow(floats, int8(a=5, b_token_3=50, c=5, d=5), text)
    assert "b" in found


def test_a_product_that_became_several_nodes() -> None:
    """Dynamic quantization and the runtime's Gemm put words behind the name of the product."""
    text = """g (float[4,8] x) => (float[4,8] y) <float[8,8] w> { [a] h = MatMul(x, w) [b] y = MatMul(h, w) }"""
    floats = {"a/MatMulAddFusion": NodeTime("a/MatMulAddFusion", "Gemm", 1, 32), **times("MatMul", b=9)}
    ints = {
        name: NodeTime(name, "DynamicQuantizeMatMul", value, 32)
        for name, value in (("a_MatMulInteger", 4.0), ("b_MatMulInteger_token_2", 5.0))
    }
    assert slow(floats, ints, text) == {"a": pytest.approx(4.0)}


QUANTIZED = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] w, float s = {1}, uint8 z = {0}>
{ [a2] p = Conv(x, w)
  [b2] h = Conv(p, w) [clip] k = Relu(h) [kq] kq = QuantizeLinear(k, s, z) [kd] q = DequantizeLinear(kq, s, z)
  [c2] m = Conv(q, w) [mq] mq = QuantizeLinear(m, s, z) [md] r = DequantizeLinear(mq, s, z) [lost] l = Conv(r, w)
  [d] y = Conv(l, w) }"""


def test_nodes_are_found_again_by_the_values_that_they_make() -> None:
    floats = from_text(HEAD + CHAIN.replace("[b] q = Conv(p, w)", "[b] i = Conv(p, w) [relu] q = Relu(i)"))
    found = aliases(floats, from_text(HEAD + QUANTIZED), {"a2", "b2", "c2", "lost", "d", "clip"})
    assert found == {"a2": "a", "b2": "b", "c2": "c", "d": "d", "clip": "relu"}


def test_slow_places_have_the_names_of_the_quantized_model() -> None:
    graph, quantized = from_text(HEAD + CHAIN), from_text(HEAD + QUANTIZED)
    floats, ints = times(a=10, b=10, c=10, d=10), int8(a2=5, b2=30, c2=5, d=5)
    assert set(slow_sites(graph, {"a2", "b2", "c2", "d"}, floats, ints, None, quantized)) == {"b2"}


def test_a_node_that_was_not_timed_stays_as_it_was() -> None:
    assert slow(times(a=10, c=10, d=10), int8(a=5, b=99, c=5, d=5)) == {}


def test_conversions_grow_with_the_size() -> None:
    ints = {
        "q1": NodeTime("q1", "QuantizeLinear", 2.0, 100),
        "q2": NodeTime("q2", "QuantizeLinear", 4.0, 300),
        "d1": NodeTime("d1", "DequantizeLinear", 3.0, 100),
        "t": NodeTime("Transpose_token_4", "Transpose", 1.0, 100),
        "mine": NodeTime("mine", "Transpose", 50.0, 100),
    }
    found = Conversions.measured(ints, {}, {"mine"})
    assert found.quantize == (2.0, pytest.approx(2.0 / 400 + 1.0 / 100))
    assert found.dequantize == (0.0, pytest.approx(3.0 / 100 + 1.0 / 100))
    assert found.cost(200)[0] == pytest.approx(2.0 + 200 * (0.005 + 0.01))


def test_nodes_are_timed_in_place(tmp_path: Path) -> None:
    text = """g (float[N,64] x) => (float[N,8] y) <float[64,2048] a, float[2048,8] b>
    { [large] h = MatMul(x, a) [sin] s = Sin(h) [small] y = MatMul(s, b) }"""
    write(from_text(HEAD + text), tmp_path / "m.onnx")
    feeds = {"x": np.ones((64, 64), np.float32)}
    model = runnable(tmp_path / "m.onnx")
    first, again = time_nodes([model, model], feeds, seconds=0.2)
    assert set(first) == {"large", "sin", "small"} == set(again)
    assert first["large"].op == "MatMul"
    assert first["large"].elements == 64 * 2048
    assert first["large"].seconds > first["small"].seconds > 0
    assert not list(tmp_path.glob("*profile*"))
    assert load(tmp_path / "m.onnx").graph[0].name == "large"


def test_a_target_that_times_no_nodes(tmp_path: Path) -> None:
    from graphopt.target import Target

    write(from_text(HEAD + CHAIN), tmp_path / "m.onnx")
    model = runnable(tmp_path / "m.onnx")
    with pytest.raises(GraphoptError, match="does not time single nodes"):
        Target.profile(model.target, model.path, {}, tmp_path)
