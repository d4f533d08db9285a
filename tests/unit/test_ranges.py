"""Value ranges: what is provable, what is not, and no element of a run outside them."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.ranges import Interval, Ranges
from graphopt.analysis.shapes import Shapes

HEAD = '<ir_version: 10, opset_import: ["": 21]>\n'


def _ranges(text: str) -> tuple[dict[str, ir.Value], Ranges]:
    model = ir.from_onnx_text(HEAD + text)
    values = {v.name or "": v for node in model.graph for v in node.outputs}
    values.update({v.name or "": v for v in model.graph.inputs})
    return values, Ranges(model, Shapes(model).infer())


PROVABLE = {
    "y = Relu (x)": (0, math.inf),
    "y = Sigmoid (x)": (0, 1),
    "y = Softmax (x)": (0, 1),
    "y = Exp (x)": (0, math.inf),
    "y = Abs (x)": (0, math.inf),
    "t = Cast <to = 1> (u) \n y = Neg (t)": (-255, 0),
    "t = Sigmoid (x) \n y = Neg (t)": (-1, 0),
    "lo = Constant <value_float = -1.0> () \n hi = Constant <value_float = 6.0> () \n y = Clip (x, lo, hi)": (-1, 6),
    "t = Sigmoid (x) \n y = Add (t, t)": (0, 2),
    "t = Tanh (x) \n y = Mul (t, t)": (0, 1),
    "t = Sigmoid (x) \n r = Tanh (x) \n y = Mul (t, r)": (-1, 1),
    "t = Sigmoid (x) \n r = Relu (x) \n y = Concat <axis = 0> (t, r)": (0, math.inf),
    "t = Sigmoid (x) \n k = Constant <value_float = -2.0> () \n y = Where (b, t, k)": (-2, 1),
    "t = Cast <to = 1> (b) \n y = Reshape (t, s)": (0, 1),
    "y = Cast <to = 1> (u)": (0, 255),
    "t = Relu (x) \n z = Constant <value_float = -0.5> () \n o = Greater (t, z) \n y = Cast <to = 1> (b)": (0, 1),
    "y = ReduceSum <keepdims = 0> (x)": (-math.inf, math.inf),
    "t = Relu (x) \n y = ReduceSum <keepdims = 0> (t)": (0, math.inf),
    "t = Shape (x) \n y = Cast <to = 1> (t)": (3, 4),
    "t = ArgMax <axis = 1> (x) \n y = Cast <to = 1> (t)": (0, 3),
    "y = LeakyRelu (x)": (-math.inf, math.inf),
}
INPUTS = "float[3, 4] x, bool[3, 4] b, uint8[3, 4] u, int64[2] s"


@pytest.mark.parametrize("body", sorted(PROVABLE))
def test_intervals(body: str) -> None:
    values, ranges = _ranges(f"g ({INPUTS}) => (float[A] y) {{ {body} }}")
    found = ranges.of(values["y"])
    assert (found.low, found.high) == PROVABLE[body]


@pytest.mark.parametrize("body", sorted(PROVABLE))
def test_no_run_leaves_the_interval(body: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = ir.from_onnx_text(HEAD + f"g ({INPUTS}) => (float[A] y) {{ {body} }}")
    model.graph.outputs[0].shape = None
    rng = np.random.default_rng(0)
    x = rng.normal(0, 50, (3, 4)).astype("float32")
    x[0] = [0, -0.0, 3e38, -3e38]
    feeds = {"x": x, "b": rng.random((3, 4)) > 0.5, "u": rng.integers(0, 256, (3, 4)).astype("uint8")}
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    (y,) = session.run(None, {k: v for k, v in {**feeds, "s": np.array([2, 6])}.items() if k in wanted})
    found = Ranges(model, Shapes(model).infer()).of(model.graph.outputs[0])
    assert not np.isnan(y).any() or found.nan
    kept = y[~np.isnan(y)]
    assert (kept >= found.low).all() and (kept <= found.high).all()


def test_a_mask_of_ones() -> None:
    values, ranges = _ranges("""g (float[3, 4] x) => (bool[3, 4] y) {
        s = Shape (x)
        ones = ConstantOfShape <value = int64[1] {1}> (s)
        m = Cast <to = 9> (ones)
        k = And (m, m)
        z = Not (k)
        y = Identity (k) }""")
    assert ranges.of(values["y"]).always(1) and ranges.of(values["z"]).always(0)


def test_nan_is_never_forgotten() -> None:
    values, ranges = _ranges(
        "g (float[3, 4] x, bool[3, 4] b) => (float[A] y) { t = Sigmoid (x) \n y = Cast <to = 1> (b) }"
    )
    assert not ranges.of(values["t"]).within(0, 1), "NaN passes through Sigmoid"
    assert ranges.of(values["y"]).within(0, 1)


def test_integers_that_may_wrap_have_the_whole_range() -> None:
    values, ranges = _ranges(
        "g (uint8[3] u, int32[3] i) => (uint8[3] y) { y = Add (u, u) \n t = Neg (i) \n r = Abs (i) }"
    )
    assert ranges.of(values["y"]) == Interval(0, 255, nan=False)
    assert ranges.of(values["t"]).low == -(2**31) and ranges.of(values["r"]).low == -(2**31)


def test_constants() -> None:
    values, ranges = _ranges("g () => (float[3] y) <float[3] w = {-1.5, 2, 0}> { y = Identity (w) }")
    assert ranges.of(values["y"]) == Interval(-1.5, 2, nan=False)


def test_long_chains_do_not_recurse() -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    nodes, current = [], x
    for _ in range(5000):
        nodes.append(ir.node("Relu", [current]))
        current = nodes[-1].outputs[0]
    model = ir.Model(ir.Graph([x], [current], nodes=nodes, opset_imports={"": 21}), ir_version=10)
    assert Ranges(model, Shapes(model).infer()).of(current).low == 0


def test_unknown_ops_and_absent_values() -> None:
    values, ranges = _ranges("g (float[3] x) => (float[3] y) { y = Div (x, x) }")
    assert ranges.of(values["y"]) == Interval() == ranges.of(None)


def test_a_tensor_that_the_caller_of_a_function_gives_is_not_known() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (int64[1] n) => (int64[M] y) { y = own.filled <of = int64[1] {7}> (n) }
    <domain: "own", opset_import: ["" : 21]> filled <of> (n) => (y) { a = ConstantOfShape <value: tensor = @of> (n)
        y = Identity (a) }"""
    model = ir.from_onnx_text(text)
    shapes = Shapes(model)
    shapes.infer()
    (function,) = model.functions.values()
    inner = function[0].outputs[0]
    assert shapes.dtype(inner) in (None, ir.DataType.INT64), "float32 is the type of an attribute that is absent"
    assert not Ranges(model, shapes).of(inner).within(0, 0)
