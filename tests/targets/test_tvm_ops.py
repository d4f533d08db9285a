"""Every lowered op against ONNX Runtime: one small model per family, attributes that change the rule, odd shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir
import pytest
from onnx import parser

from graphopt.targets.onnxruntime.runner import open_runner
from graphopt.targets.onnxruntime.settings import SessionSettings
from graphopt.targets.tvm.gpu.driver import first_gpu

if TYPE_CHECKING:
    from graphopt.targets.tvm.library import Library

pytestmark = [pytest.mark.tvm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("tvm")
without_gpu = pytest.mark.skipif(not isinstance(first_gpu(), str), reason="emulation is for machines without a GPU")

HEAD = '<ir_version: 10, opset_import: ["":21]> g'

FAMILIES = {
    "unary": """(float[2,3] x) => (float[2,3] a, float[2,3] b, float[2,3] c, float[2,3] d, float[2,3] e, float[2,3] f,
        float[2,3] h, float[2,3] i, float[2,3] j, float[2,3] k, float[2,3] l, bool[2,3] m) {
        a = Abs(x) b = Neg(x) c = Exp(x) p = Abs(x) d = Sqrt(p) e = Round(x) f = Floor(x) h = Sign(x) i = Erf(x)
        j = Sigmoid(x) k = Tanh(x) l = Reciprocal(x) m = IsNaN(x) }""",
    "activations": """(float[2,3,4] x, float[3,1] s) => (float[2,3,4] a, float[2,3,4] b, float[2,3,4] c,
        float[2,3,4] d, float[2,3,4] e, float[2,3,4] f, float[2,3,4] h, float[2,3,4] i, float[2,3,4] j,
        float[2,3,4] k, float[2,3,4] l, float[2,3,4] m, float[2,3,4] n, float[2,3,4] o, float[2,3,4] q) {
        a = Relu(x) b = LeakyRelu<alpha=0.2>(x) c = Elu<alpha=0.7>(x) d = Selu(x) e = Celu<alpha=2.0>(x)
        f = HardSigmoid(x) h = HardSwish(x) i = Mish(x) j = Softplus(x) k = Softsign(x) l = Gelu(x)
        m = Gelu<approximate="tanh">(x) n = PRelu(x, s) o = ThresholdedRelu<alpha=0.3>(x) q = Shrink<lambd=0.4>(x) }""",
    "binary": """(float[2,1,3] x, float[4,1] y, int64[3] i, int64[3] k) => (float[2,4,3] a, float[2,4,3] b, int64[3] c,
        int64[3] d, int64[3] e, bool[2,4,3] f, float[2,4,3] h, float[2,4,3] l, float[2,1,3] m, float[2,4,3] n) {
        a = Add(x, y) b = Div(x, y) three = Constant<value_int=3>() c = Div(i, three) d = Mod(i, three)
        e = Mod<fmod=1>(i, three) f = Less(x, y) h = Min(x, y) l = Where(f, x, y)
        two = Constant<value_float=2.0>() m = Pow(x, two) n = Mean(x, y) }""",
    "casts": """(float[6] x, bool[6] t) => (int32[6] a, bool[6] b, float[6] c, int64[6] d, double[6] e, bool[6] f) {
        a = Cast<to=6>(x) b = Cast<to=9>(x) c = Cast<to=1>(t) d = Cast<to=7>(t) e = Cast<to=11>(x) f = Not(t) }""",
    "clips": """(float[5] x, float low) => (float[5] a, float[5] b, float[5] c, float[5] d) {
        one = Constant<value_float=0.5>() a = Clip(x, low, one) b = Clip(x, , one) two = Constant<value_float=2.0>()
        c = Clip(x, two, one) d = Clip(x, two, low) }""",
    "division by zero": """(float[5] x, float[5] one) => (float[5] a, float[5] b) {
        zero = Constant<value_float=0.0>() a = Div(x, zero) less = Constant<value_float=-0.0>() b = Div(x, less) }""",
    "bool in arithmetic": """(float[2,3,4,3] x) => (float[2,3,4,3] a, float[2,3,4,3] c) {
        b = Cast<to=9>(x) a = Cast<to=1>(b) s = Sigmoid(a) c = Mul(a, s) }""",
    "hyperbolic": """(float[9] x) => (float[9] a, float[9] b, float[9] c) {
        a = Sinh(x) b = Cosh(x) big = Constant<value_float=30.0>() y = Mul(x, big)
        c = Sinh(y) }""",
    "einsum of one": """(float[3,4] x, float[1] y) => (float[3] a, float[4,3] b) {
        a = Einsum<equation="ij,j->i">(x, y) b = Einsum<equation="ij,j->ji">(x, y) }""",
    "a square": """(float[4,4] x) => (float[4,4] b) { a = MatMul(x, x) b = Sigmoid(a) }""",
    "an axis twice": """(float[2,3,4] x) => (float[2,1,4] a) {
        axes = Constant<value_ints=[1, -2]>() a = ReduceMean(x, axes) }""",
    "matmul": """(float[2,3,4] x, float[4,5] w, float[4] v, float[3,5] z) => (float[2,3,5] a, float[2,3] b, float[5] c,
        float[3,3] d) { a = MatMul(x, w) b = MatMul(x, v) c = MatMul(v, w)
        d = Gemm<alpha=0.5, beta=2.0, transB=1>(z, z) }""",
    "reduce": """(float[2,3,4] x) => (float[2,1,4] a, float[2,4] b, float[1,1,1] c, float[2,3] d, float[2,3,1] e,
        float[2,3,1] f, float[3,4] h, float[2,3,1] i, float[2,3,1] j) {
        one = Constant<value_ints=[1]>() last = Constant<value_ints=[-1]>() zero = Constant<value_ints=[0]>()
        a = ReduceSum(x, one) b = ReduceMean<keepdims=0>(x, one) c = ReduceMax(x) d = ReduceMin<keepdims=0>(x, last)
        e = ReduceL2(x, last) f = ReduceLogSumExp(x, last) h = ReduceProd<keepdims=0>(x, zero)
        i = ReduceL1(x, last) j = ReduceSumSquare(x, last) }""",
    "infinities": """(float[2,4] x) => (float[2,1] a, float[2,4] b, bool[2,4] c, float[2] d) {
        y = Log(x) last = Constant<value_ints=[-1]>() a = ReduceMax(y, last) n = Neg(y) s = Softmax(y) c = IsNaN(s)
        zero = Constant<value_float=0.0>() b = Where(c, zero, s) d = ReduceMin<keepdims=0>(n, last) }""",
    "half": """(float16[2,33] x, float16[33,40] w, float16[40] g) => (float16[2,40] a, float16[2] b, float16[2,40] c) {
        a = MatMul(x, w) last = Constant<value_ints=[-1]>() b = ReduceMean<keepdims=0>(a, last)
        c = LayerNormalization(a, g) }""",
    "softmax": """(float[2,3,4] x) => (float[2,3,4] a, float[2,3,4] b, float[2,3,4] c) {
        a = Softmax(x) b = Softmax<axis=1>(x) c = LogSoftmax<axis=0>(x) }""",
    "arg": """(int32[3,5] x) => (int64[3,1] a, int64[5] b, int64[3] c) { a = ArgMax<axis=1>(x)
        b = ArgMin<axis=0, keepdims=0>(x) c = ArgMax<axis=-1, keepdims=0, select_last_index=1>(x) }""",
    "cumsum": """(float[3,4] x) => (float[3,4] a, float[3,4] b) { axis = Constant<value_int=1>()
        a = CumSum(x, axis) b = CumSum<exclusive=1, reverse=1>(x, axis) }""",
    "norms": """(float[2,4,3,3] x, float[3] s, float[3] b, float[4] cs, float[4] cb, float[4] m, float[4] v) =>
        (float[2,4,3,3] a, float[2,4,3,3] c, float[2,4,3,3] d, float[2,4,3,3] e, float[2,4,3,3] f) {
        a = LayerNormalization(x, s, b) c = InstanceNormalization(x, cs, cb) d = GroupNormalization<num_groups=2>(x, cs,
        cb) w = Abs(v) e = BatchNormalization(x, cs, cb, m, w) f = LRN<size=3, alpha=0.1>(x) }""",
    "conv": """(float[1,4,7,6] x, float[6,2,3,3] w, float[6] b, float[1,4,9] t, float[4,1,3] k) =>
        (float[1,6,4,3] a, float[1,6,7,6] c, float[1,4,9] d) {
        a = Conv<strides=[2,2], pads=[1,1,1,0], group=2>(x, w, b) c = Conv<auto_pad="SAME_UPPER", group=2>(x, w)
        d = Conv<pads=[2,2], dilations=[2], group=4>(t, k) }""",
    "conv-transpose": """(float[1,4,5,4] x, float[4,3,3,2] w, float[3] b, float[1,2,5] t, float[2,1,4] k) =>
        (float[1,3,11,9] a, float[1,2,10] c) {
        a = ConvTranspose<strides=[2,2], output_padding=[1,1], pads=[0,0,1,0]>(x, w, b)
        c = ConvTranspose<strides=[2], pads=[1,1], group=2>(t, k) }""",
    "pool": """(float[1,2,7,6] x, float[1,2,9] t) => (float[1,2,3,3] a, float[1,2,4,3] b, float[1,2,4,3] c,
        float[1,2,7,6] d, float[1,2,1,1] e, float[1,2,4] f, float[1,2,5,4] h) {
        a = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
        b = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)
        c = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)
        d = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) e = GlobalAveragePool(x)
        f = MaxPool<kernel_shape=[3], strides=[2]>(t) h = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x) }""",
    "movement": """(float[2,3,4] x) => (float[4,2,3] a, float[2,12] b, float[2,2,2] c, float[2,1,4] d, float[4,3,8] e,
        float[2,3,7] f, float[2,3,6] h, float[2,3,4] i, float[2,6,4] j, float[3,4] k) {
        a = Transpose<perm=[2,0,1]>(x) b = Flatten(x)
        s = Constant<value_ints=[-1,3]>() t = Constant<value_ints=[0,-5]>() ax = Constant<value_ints=[1,2]>()
        st = Constant<value_ints=[-2,-2]>() c = Slice(x, s, t, ax, st)
        parts = Constant<value_ints=[1,2]>() d, rest = Split<axis=1>(x, parts)
        reps = Constant<value_ints=[2,1,2]>() e = Tile(x, reps)
        pads = Constant<value_ints=[0,0,1,0,0,2]>() f = Pad(x, pads)
        mirror = Constant<value_ints=[0,0,1,0,0,1]>() h = Pad<mode="reflect">(x, mirror)
        minus = Constant<value_int=-1>() i = Trilu<upper=0>(x, minus) j = Concat<axis=1>(x, x)
        zero = Constant<value_int=0>() k = Gather(x, zero) }""",
    "layer norm with statistics": """(float[2,3,4] x, float[3,4] s, float[3,4] b) => (float[2,3,4] y, float[2,1,1] m,
        float[2,1,1] d) { y, m, d = LayerNormalization<axis=1>(x, s, b) }""",
    "blocks": """(float[1,8,2,4] x) => (float[1,2,4,8] a, float[1,2,4,8] b, float[1,32,1,2] c) {
        a = DepthToSpace<blocksize=2>(x) b = DepthToSpace<blocksize=2, mode="CRD">(x)
        c = SpaceToDepth<blocksize=2>(x) }""",
    "gathers": """(float[3,4] x, int64[2] i, int64[3,2] k) => (float[2,4] a, float[3,2] b, float[3] c, float[3,2,3] d) {
        a = Gather(x, i) b = GatherElements<axis=1>(x, k) c = GatherND(x, k) depth = Constant<value_int=3>()
        values = Constant<value_floats=[0.5, 2.0]>() d = OneHot(k, depth, values) }""",
    "scatters": """(float[3,4] x, int64[3,2] k, float[3,2] u, float[3] v) => (float[3,4] a, float[3,4] b,
        float[3,4] c) { a = ScatterElements<axis=1>(x, k, u) b = ScatterND(x, k, v)
        c = ScatterND<reduction="add">(x, k, v) }""",
    "quantized": """(float[2,3,4] x, float s, uint8 z) => (uint8[2,3,4] a, float[2,3,4] b, float[2,3,4] c) {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
        scales = Constant<value_floats=[0.1, 0.2, 0.05]>() q = QuantizeLinear<axis=1, output_dtype=3>(x, scales)
        c = DequantizeLinear<axis=1>(q, scales) }""",
    "resize": """(float[1,2,4,5] x) => (float[1,2,8,10] a, float[1,2,8,10] b, float[1,2,6,3] c, float[1,2,8,10] d,
        float[1,2,8,10] e) {
        up = Constant<value_floats=[1.0,1.0,2.0,2.0]>() size = Constant<value_ints=[1,2,6,3]>()
        a = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , up)
        b = Resize<mode="linear">(x, , up) c = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x,
        , , size) d = Resize<mode="cubic">(x, , up) e = Resize(x, , up) }""",
    "lstm": """(float[3,2,4] x, float[1,20,4] w, float[1,20,5] r, float[1,40] b, float[1,2,5] h, float[1,2,5] c) =>
        (float[3,1,2,5] y, float[1,2,5] yh, float[1,2,5] yc) { y, yh, yc = LSTM<hidden_size=5>(x, w, r, b, , h, c) }""",
    "gru": """(float[3,2,4] x, float[2,15,4] w, float[2,15,5] r, float[2,30] b) => (float[3,2,2,5] y, float[2,2,5] yh) {
        y, yh = GRU<hidden_size=5, direction="bidirectional", linear_before_reset=1>(x, w, r, b) }""",
    "if": """(float[2,3] x, bool t) => (float[2,3] y) { h = Relu(x) z = If<
        then_branch = a () => (float[2,3] p) { p = Neg(h) }, else_branch = b () => (float[2,3] q) { q = Exp(x) }>(t)
        y = Add(z, h) }""",
    "dynamic": """(float[N,M,4] x, float[4,4] w) => (float[N,M,4] y, float[N,K] z, float[N,M,4] v) {
        h = MatMul(x, w) y = Softmax(h) shape = Shape<start=0, end=1>(x) rest = Constant<value_ints=[-1]>()
        both = Concat<axis=0>(shape, rest) z = Reshape(x, both) whole = Shape(x) one = Constant<value_float=1.0>()
        ones = Expand(one, whole) v = Mul(ones, x) }""",
    "dynamic-moves": """(float[N,M,4] x, float[P,M,4] y) => (float[A,M,4] a, float[N,B,4] b, float[N,M,4] c,
        float[C,M,8] d, float[N,D,4] e, float[N,M,4] f, int64[1] h, int64[3] i) {
        s = Constant<value_ints=[-1]>() t = Constant<value_ints=[1000000000]>() z = Constant<value_ints=[0]>()
        o = Constant<value_ints=[1]>() a = Slice(x, s, t, z) b = Slice(x, o, t, o)
        c = Sub(x, y) r = Constant<value_ints=[2,1,2]>() d = Tile(x, r)
        p = Constant<value_ints=[0,1,0,0,2,0]>() e = Pad<mode="edge">(x, p) g = Concat<axis=0>(x, y)
        w = Shape<end=1>(x) k = Slice(g, z, w, z) f = Add(k, x) h = Shape<start=1, end=2>(b) i = Shape(e) }""",
}
SIZES = {"N": 2, "M": 3, "K": 12, "P": 2}


def feeds_of(model: onnx_ir.Model, family: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(family))
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None and value.name is not None
        shape = [dim if isinstance(dim, int) else SIZES[str(dim.value)] for dim in value.shape]
        kind = value.dtype.numpy()
        if kind == np.bool_:
            feeds[value.name] = rng.integers(0, 2, shape).astype(bool)
        elif kind.kind in "iu":
            low, high = (-2, 3) if family in ("gathers", "binary") else (0, 3)
            feeds[value.name] = rng.integers(low, high, shape).astype(kind)
            if family == "scatters":  # indices of one scatter are unequal
                feeds[value.name] = np.array([[0, 1], [2, 3], [1, 2]])
        else:
            feeds[value.name] = rng.normal(size=shape).astype(kind)
    if family == "infinities":
        feeds["x"] = np.array([[0, 0, 0, 0], [1, 0, 2, 3]], np.float32)
    if family == "quantized":
        feeds |= {"s": np.array(0.05, np.float32), "z": np.array(120, np.uint8)}
    return feeds


def in_tvm(model: onnx_ir.Model, feeds: Mapping[str, np.ndarray], folder: Path, own: bool) -> dict[str, np.ndarray]:
    from graphopt.targets.tvm.build import build, scheduled, stock
    from graphopt.targets.tvm.library import Library
    from graphopt.targets.tvm.lowering.graph import lower
    from graphopt.targets.tvm.machine import host

    machine = host(1)
    assert machine is not None
    reason = build(lower(model), machine, folder / "model.so", scheduled if own else stock).not_scheduled
    assert not own or reason is None, reason
    return run(Library(folder / "model.so"), model, feeds)


def in_emulation(model: onnx_ir.Model, feeds: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The kernels for a GPU on this machine's CPU."""
    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.gpu.emulation import compile_kernels, runtime_library, without_nvcc
    from graphopt.targets.tvm.library import Emulation, Library
    from graphopt.targets.tvm.lowering.graph import lower
    from graphopt.targets.tvm.machine import gpu

    build(lower(model), gpu("sm_90"), folder / "model.so", scheduled, without_nvcc)
    kernels = compile_kernels(folder / "model.cu", folder)
    return run(Library(folder / "model.so", Emulation(str(runtime_library()), str(kernels))), model, feeds)


def run(library: Library, model: onnx_ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    results = library.run([np.asarray(feeds[str(value.name)]) for value in model.graph.inputs])
    return dict(zip([str(value.name) for value in model.graph.outputs], results, strict=True))


Way = Callable[[onnx_ir.Model, Mapping[str, np.ndarray], Path], dict[str, np.ndarray]]
WAYS: dict[str, Way] = {
    "stock": functools.partial(in_tvm, own=False),
    "own": functools.partial(in_tvm, own=True),
    "gpu": in_emulation,
}


@pytest.mark.parametrize("way", ["stock", "own", pytest.param("gpu", marks=[pytest.mark.slow, without_gpu])])
@pytest.mark.parametrize("family", FAMILIES)
def test_ops_compute_what_onnx_runtime_computes(family: str, way: str, tmp_path: Path) -> None:
    model = onnx_ir.serde.deserialize_model(parser.parse_model(HEAD + FAMILIES[family]))
    onnx_ir.save(model, tmp_path / "model.onnx")
    feeds = feeds_of(model, family)
    with open_runner(tmp_path / "model.onnx", SessionSettings().reference(), isolate=False) as runner:
        expected = runner.run(feeds)
    got = WAYS[way](model, feeds, tmp_path)
    for name, wanted in expected.items():
        result: Any = got[name]
        assert result.dtype == wanted.dtype and result.shape == wanted.shape, name
        close = 2e-3 if family == "half" else 2e-5
        np.testing.assert_allclose(result, wanted, rtol=close, atol=close, err_msg=name)
