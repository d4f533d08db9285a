"""Awkward graphs: small models, each with one thing that passes tend to get wrong.

AWKWARD maps a name to a builder of a fresh onnx_ir Model; each is legal for the ONNX checker and runs in ONNX Runtime,
unless CHECKER_REFUSES or NO_KERNEL says so. `feeds` makes inputs. Expectations about passes do not live here.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
_HEAD = f'<ir_version: 10, opset_import: ["": {OPSET}]>'

# Text of graphs that ONNX's text form can say; without a '<' at the start, ir_version 10 and opset 21 are meant.
_TEXTS: dict[str, str] = {
    # -- the interface --
    "no-nodes": "g (float[N, 4] x) => (float[N, 4] x) {}",
    "no-inputs": "g () => (float[2] y) <float[2] w = {1, -2}> { y = Relu(w) }",
    "initializer-as-output": "g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> { y = Add(x, w) }",
    "input-as-second-output": "g (float[2] x) => (float[2] y, float[2] x) { y = Relu(x) }",
    "inner-value-as-output": "g (float[2] x) => (float[2] t, float[2] y) { t = Relu(x) \n y = Neg(t) }",
    "identity-to-two-outputs": """g (float[2] x) => (float[2] y, float[2] z)
        { t = Abs(x) \n y = Identity(t) \n z = Identity(t) }""",
    "unused-input": "g (float[2] x, int64[N] unused) => (float[2] y) { y = Neg(x) }",
    "initializer-also-input": "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {3, 4}> { y = Mul(x, w) }",
    "ir-version-3": """<ir_version: 3, opset_import: ["": 8]>
        g (float[1, 2, 4, 4] x, float[2, 2, 1, 1] w) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}> { t = Conv(x, w) \n y = Relu(t) }""",
    "scalar": "g (float x) => (float y) <float one = {1}> { y = Add(x, one) }",
    # -- shapes --
    "unknown-rank": "g (float[] x, float[] z) => (float[] y) { t = Add(x, z) \n s = Shape(t) \n y = Reshape(t, s) }",
    "unknown-rank-inside": """g (float[1] x, int64[K] shape) => (float[1] y) {
        flat = Constant <value_ints = [1]> ()
        t = Reshape(x, shape) \n u = Relu(t) \n v = Neg(u) \n y = Reshape(v, flat) }""",
    "unknown-dims": "g (float[?, ?, 4] x) => (float[?, ?, 4] y) { t = Relu(x) \n y = Softmax <axis = -1> (t) }",
    "symbolic-dims": """g (float[N, S, 8] x, float[N, S] mask) => (float[N, S, 2, 4] y, float[S, N] z) {
        shape = Shape <end = 2> (x)
        tail = Constant <value_ints = [2, 4]> ()
        full = Concat <axis = 0> (shape, tail)
        y = Reshape(x, full)
        z = Transpose <perm = [1, 0]> (mask) }""",
    "symbol-arithmetic": """g (float[N, 3] x, float[M, 3] z) => (float[K, 3] y, int64 n) {
        both = Concat <axis = 0> (x, z)
        s = Shape(both)
        zero = Constant <value_int = 0> ()
        n = Gather(s, zero)
        y = Expand(both, s) }""",
    "zero-size": """g (float[2, 3] x) => (float[2, 3] y, float[0, 3] e)
        <float[0, 3] none = {}, int64[1] zero = {0}, int64[1] axis = {0}>
        { y = Concat <axis = 0> (none, x) \n e = Slice(x, zero, zero, axis) }""",
    "odd-broadcasts": """g (float[3, 1] x, float[1, 4] z) => (float[1, 3, 4] y)
        <float[1, 1, 1] ones = {1}, float scale = {2}>
        { a = Mul(x, scale) \n b = Add(a, z) \n y = Mul(b, ones) }""",
    # -- nodes --
    "unnamed-nodes": "g (float[2] x) => (float[2] y) { a = Relu(x) \n b = Relu(a) \n y = Relu(b) }",
    "duplicate-node-names": "g (float[2] x) => (float[2] y) { [n] a = Relu(x) \n [n] b = Neg(a) \n [n] y = Relu(b) }",
    "odd-names": """g (float[2] "in put/0:1") => (float[2] "out.é")
        { "1" = Abs("in put/0:1") \n "out.é" = Neg("1") }""",
    "dead-nodes": "g (float[2] x) => (float[2] y) { dead = Exp(x) \n deader = Log(dead) \n y = Neg(x) }",
    "same-value-twice": "g (float[2, 2] x) => (float[2, 2] y) { t = Mul(x, x) \n y = MatMul(t, t) }",
    "optional-input-missing": """g (float[4] x, float[1, 1, 4, 4] image) => (float[4] y, float[1, 1, 8, 8] large)
        <float top = {0.5}, float[4] scales = {1, 1, 2, 2}>
        { y = Clip(x, , top) \n large = Resize <mode = "nearest"> (image, , scales) }""",
    "optional-output-missing": """g (float[4, 1, 3] x) => (float[1, 1, 2] h)
        <float[1, 8, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24},
         float[1, 8, 2] r = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
        { , h = LSTM <hidden_size = 2> (x, w, r) }""",
    "unused-node-outputs": """g (float[6] x) => (float[2] y, float[3] top) <int64[1] k = {3}>
        { a, y, b = Split <num_outputs = 3> (x) \n top, where = TopK(x, k) }""",
    "dropout": "g (float[2, 3] x) => (float[2, 3] y, bool[2, 3] mask) { t = Dropout(x) \n y, mask = Dropout(t) }",
    "training-batch-norm": """g (float[2, 3, 4] x) => (float[2, 3, 4] y, float[3] mean, float[3] variance)
        <float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0}>
        { y, mean, variance = BatchNormalization <training_mode = 1> (x, one, zero, zero, one) }""",
    "random-normal": """g (float[2] x) => (float[2] y) {
        r = RandomNormal <shape = [2], seed = 1.0> () \n s = RandomNormal <shape = [2], seed = 1.0> ()
        t = Add(r, s) \n y = Add(x, t) }""",
    "constant-forms": """g (float[2] x) => (float[2] y, int64[2] i, string s) {
        f = Constant <value_float = 0.5> () \n fs = Constant <value_floats = [1.0, 2.0]> ()
        i = Constant <value_ints = [3, 4]> () \n n = Constant <value_int = 1> ()
        s = Constant <value_string = "text"> () \n m = Cast <to = 1> (n)
        a = Mul(x, f) \n b = Add(a, fs) \n y = Add(b, m) }""",
    "shared-weights": """g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2, 2, 1, 1] copy = {1, 2, 3, 4}, float[2] b = {1, 2}>
        { k = Constant <value_ints = [1, 2, 1, 1]> () \n z = Reshape(b, k)
          t = Conv(x, w, b) \n u = Conv(t, w) \n v = Conv(u, copy, b) \n y = Add(v, z) }""",
    # -- subgraphs --
    "if-captures": """g (float[2] x, bool flag) => (float[2] y) <float[2] w = {1, 2}> {
        t = Relu(x)
        y = If (flag) <then_branch = yes () => (float[2] a) { a = Add(t, w) },
                       else_branch = no () => (float[2] b) { b = Identity(t) }> }""",
    "if-same-names": """g (float[2] x, bool flag) => (float[2] y) {
        y = If (flag) <then_branch = one () => (float[2] r) { t = Abs(x) \n r = Neg(t) },
                       else_branch = one () => (float[2] r) { t = Neg(x) \n r = Abs(t) }> }""",
    "if-no-captures": """g (float[2] x) => (float[?] y) <bool yes = {1}> {
        c = If (yes) <then_branch = one () => (float[2] p) <float[2] p = {1, 2}> {},
                      else_branch = two () => (float[3] q) { q = Constant <value_floats = [1.0, 2.0, 3.0]> () }>
        y = Mul(x, c) }""",
    "nested-three-deep": """g (float[2] x, bool flag) => (float[2] y) <int64 trips = {2}, bool go = {1}> {
        outer = Abs(x)
        y = If (flag) <
          then_branch = one () => (float[2] a) {
            a = Loop (trips, go, x) <body = two (int64 i, bool c, float[2] v) => (bool c2, float[2] v3) {
              c2 = Identity(c)
              v3 = If (flag) <then_branch = three () => (float[2] d) { d = Add(v, outer) },
                              else_branch = four () => (float[2] e) { e = Sub(outer, v) }> }> },
          else_branch = five () => (float[2] b) { b = Neg(outer) }> }""",
    "loop-captures": """g (float[2] x, int64 trips) => (float[2] y, float[?, 2] all)
        <bool go = {1}, float[2] w = {0.5, 2}> {
        t = Relu(x)
        y, all = Loop (trips, go, x) <body = b (int64 i, bool c, float[2] v) => (bool c2, float[2] v2, float[2] row) {
          c2 = Identity(c) \n u = Mul(v, w) \n v2 = Add(u, t) \n row = Neg(v2) }> }""",
    "loop-zero-trips": """g (float[2] x) => (float[2] y) <int64 trips = {0}, bool go = {1}> {
        y = Loop (trips, go, x) <body = b (int64 i, bool c, float[2] v) => (bool c2, float[2] v2) {
          c2 = Identity(c) \n v2 = Neg(v) }> }""",
    "loop-one-trip": """g (float[2] x) => (float[2] y, int64[1] all) <int64 trips = {1}, bool go = {1}> {
        y, all = Loop (trips, go, x) <body = b (int64 i, bool c, float[2] v) => (bool c, float[2] v2, int64 row) {
          v2 = Add(v, x) \n row = Identity(i) }> }""",
    "loop-growing-state": """g (float[N] x) => (float[M] y) <bool go = {1}, int64 trips = {3}> {
        y = Loop (trips, go, x) <body = b (int64 i, bool c, float[P] v) => (bool c2, float[Q] v2) {
          c2 = Identity(c) \n v2 = Concat <axis = 0> (v, x) }> }""",
    "loop-until": """g (float[2] x) => (float[2] y) <bool go = {1}, float limit = {100}> {
        y = Loop (, go, x) <body = b (int64 i, bool c, float[2] v) => (bool c2, float[2] v2) {
          a = Abs(v) \n one = Constant <value_float = 1.0> () \n v2 = Add(a, one)
          m = ReduceMax <keepdims = 0> (v2) \n c2 = Less(m, limit) }> }""",
    "scan-captures": """g (float[2] start, float[3, 2] rows) => (float[2] last, float[3, 2] all)
        <float[2] w = {0.5, 2}> {
        last, all = Scan (start, rows)
          <num_scan_inputs = 1, body = b (float[2] s, float[2] r) => (float[2] s2, float[2] o) {
          t = Mul(r, w) \n s2 = Add(s, t) \n o = Identity(s2) }> }""",
    # -- functions --
    "functions-nested": """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[2] x) => (float[2] y) { t = local.outer <alpha = 0.25> (x) \n y = local.inner(t) }
        <domain: "local", opset_import: ["": 21, "local": 1]>
        outer <alpha> (x) => (y) { t = local.inner <slope: float = @alpha> (x) \n y = Neg(t) }
        <domain: "local", opset_import: ["": 21]>
        inner <slope: float = 0.5> (x) => (y) { y = LeakyRelu <alpha: float = @slope> (x) }
        <domain: "local", opset_import: ["": 21]>
        never_called (x) => (y) { y = Exp(x) }""",
    "function-with-subgraph": """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[2] x, bool flag) => (float[2] y) { y = local.pick(x, flag) }
        <domain: "local", opset_import: ["": 21]>
        pick (x, flag) => (y) {
          t = Abs(x)
          y = If (flag) <then_branch = one () => (a) { a = Neg(t) },
                         else_branch = two () => (b) { b = Add(t, x) }> }""",
    # -- types --
    "strings": """g (string[2] x) => (string[2] y, string[2] z) <string[2] tail = {"-a", "-b"}>
        { y = StringConcat(x, tail) \n z = Identity(tail) }""",
    "sequences": """g (float[2] x) => (float[2] y, int64 n) <int64 one = {1}> {
        t = Neg(x) \n s = SequenceConstruct(x, t) \n y = SequenceAt(s, one) \n n = SequenceLength(s) }""",
    "sequence-interface": """g (seq(float[N]) xs, float[N] x) => (seq(float[N]) ys) { ys = SequenceInsert(xs, x) }""",
    "optional-type": """g (float[2] x) => (float[2] y, bool there)
        { o = Optional(x) \n y = OptionalGetElement(o) \n there = OptionalHasElement(o) }""",
    "double-and-bool": """g (double[2] x) => (double[2] y, bool[2] same) <double[2] w = {1, 2}>
        { y = Add(x, w) \n less = Less(x, w) \n same = Not(less) }""",
    "nan-and-inf": """g (float[4] x) => (float[4] y) {
        zero = Constant <value_float = 0.0> () \n one = Constant <value_float = 1.0> ()
        inf = Div(one, zero) \n nan = Sub(inf, inf) \n t = Mul(x, nan) \n u = Max(t, x) \n y = Min(u, inf) }""",
    # -- quantized --
    "qdq-conv": """g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float s = {0.05}, uint8 z = {128},
         int8[2, 1, 1, 1] w = {100, -50}, float[2] ws = {0.01, 0.02}, int8[2] wz = {0, 0},
         int32[2] b = {10, -10}, float[2] bs = {0.0005, 0.001}, int32[2] bz = {0, 0}> {
        q = QuantizeLinear(x, s, z) \n d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear <axis = 0> (w, ws, wz) \n bd = DequantizeLinear <axis = 0> (b, bs, bz)
        c = Conv(d, wd, bd) \n r = Relu(c) \n p = QuantizeLinear(r, s, z) \n y = DequantizeLinear(p, s, z) }""",
    "qoperator-conv": """g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float s = {0.05}, uint8 z = {128}, int8[2, 1, 1, 1] w = {100, -50}, float ws = {0.01}, int8 wz = {0}> {
        q = QuantizeLinear(x, s, z) \n c = QLinearConv(q, s, z, w, ws, wz, s, z) \n y = DequantizeLinear(c, s, z) }""",
    "dynamic-quantized-matmul": """g (float[2, 4] x) => (float[2, 2] y)
        <int8[4, 2] w = {1, -2, 3, -4, 5, -6, 7, -8}, float ws = {0.1}> {
        q, s, z = DynamicQuantizeLinear(x) \n i = MatMulInteger(q, w, z) \n f = Cast <to = 1> (i)
        both = Mul(s, ws) \n y = Mul(f, both) }""",
    # -- foreign --
    "custom-domain": """<ir_version: 10, opset_import: ["": 21, "acme.ops": 1]>
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}>
        { t = Add(x, w) \n u, v = acme.ops.Mystery <level = 3> (t, w) \n y = Add(u, v) }""",
}


def _text(text: str) -> ir.Model:
    return ir.from_onnx_text(text if text.startswith("<") else f"{_HEAD}\n{text}")


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list]],
    outputs: dict[str, tuple[int, list]],
    initializers: list[TensorProto],
    **domains: int,
) -> onnx.ModelProto:
    infos = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, initializers)
    imports = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(f"com.{d}", v) for d, v in domains.items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _typed(kind: int) -> ir.Model:
    """x * w + w in one of the small float types, between casts, so that it can be fed with float32."""
    weight = helper.make_tensor("w", kind, [3], [1.5, -2.0, 0.25])
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node("Mul", ["h", "w"], ["m"]),
        helper.make_node("Add", ["m", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    face = (TensorProto.FLOAT, ["N", 3])
    return ir.from_proto(_model(nodes, {"x": face}, {"y": face}, [weight]))


def _stored_bfloat16() -> ir.Model:
    """A bfloat16 weight that is cast to float32 where it is used."""
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [3, 2], [1, -2, 3, -4, 5, -6])
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    faces = {"x": (TensorProto.FLOAT, ["N", 3])}, {"y": (TensorProto.FLOAT, ["N", 2])}
    return ir.from_proto(_model(nodes, *faces, [weight]))


def _packed(kind: int, values: list[float], **attributes: int) -> ir.Model:
    """MatMul with a weight that is stored in a type of 8 bits or less and dequantized; 4 x 2, blocks of 2 rows."""
    blocked = bool(attributes)
    scale = numpy_helper.from_array(np.full((2, 2) if blocked else (), 0.5, "float32"), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["packed", "scale"], ["w"], **attributes),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weight = helper.make_tensor("packed", kind, [4, 2], values)
    faces = {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": (TensorProto.FLOAT, ["N", 2])}
    return ir.from_proto(_model(nodes, *faces, [weight, scale]))


def _matmul_nbits() -> ir.Model:
    rng = np.random.default_rng(0)
    packed = numpy_helper.from_array(rng.integers(0, 256, (8, 2, 16), "uint8"), "packed")
    scales = numpy_helper.from_array(rng.random(16, "float32"), "scales")
    options = {"K": 64, "N": 8, "bits": 4, "block_size": 32}
    node = helper.make_node("MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft", **options)
    faces = {"x": (TensorProto.FLOAT, ["N", 64])}, {"y": (TensorProto.FLOAT, ["N", 8])}
    return ir.from_proto(_model([node], *faces, [packed, scales], microsoft=1))


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="graphopt-awkward-")


def external_data_file() -> Path:
    """The path of a model whose weight lies in a file of its own; the folder lives as long as the process."""
    path = Path(_scratch().name) / "external.onnx"
    if not path.exists():
        weight = numpy_helper.from_array(np.random.default_rng(0).random((64, 64), "float32"), "w")
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        face = (TensorProto.FLOAT, ["N", 64])
        proto = _model([node], {"x": face}, {"y": face}, [weight])
        onnx.save(proto, path, save_as_external_data=True, location="external.bin", size_threshold=0)
    return path


def _with_metadata() -> ir.Model:
    model = _text("g (float[N, 2] x) => (float[N, 2] y) { [first] y = Relu(x) }")
    model.doc_string, model.producer_name, model.model_version = "what it is", "a tool", 7
    model.metadata_props["license"] = "none"
    model.graph.doc_string = "the graph"
    model.graph.inputs[0].doc_string = "an input"
    model.graph[0].metadata_props["layer"] = "encoder.0"
    return model


AWKWARD: dict[str, Callable[[], ir.Model]] = {
    **{name: functools.partial(_text, text) for name, text in _TEXTS.items()},
    "float16": functools.partial(_typed, TensorProto.FLOAT16),
    "bfloat16": functools.partial(_typed, TensorProto.BFLOAT16),
    "bfloat16-weight": _stored_bfloat16,
    "int4-dequantize": functools.partial(_packed, TensorProto.INT4, [1, -2, 3, -4, 5, -6, 7, -8]),
    "uint4-dequantize-blocked": functools.partial(
        _packed, TensorProto.UINT4, [1, 2, 3, 4, 5, 6, 7, 15], axis=0, block_size=2
    ),
    "float8-dequantize": functools.partial(_packed, TensorProto.FLOAT8E4M3FN, [1, -2, 3, -4, 5, -6, 7, -8]),
    "matmul-nbits": _matmul_nbits,
    "external-data": lambda: ir.load(external_data_file()),
    "metadata": _with_metadata,
}

# Models that ONNX Runtime refuses on a CPU, with a part of its message.
NO_KERNEL: dict[str, str] = {
    "custom-domain": "acme.ops:Mystery(-1) is not a registered function/op",
    "bfloat16": "Could not find an implementation for Mul",
    "duplicate-node-names": "two nodes with same node name",
}

# Models that the ONNX checker refuses though runtimes take them, with a part of its message.
CHECKER_REFUSES: dict[str, str] = {"unknown-rank": "Field 'shape' of 'type' is required but missing"}

# Models whose outputs are legal to differ from run to run.
RANDOM = frozenset({"random-normal"})


def feeds(model: ir.Model, seed: int = 0) -> dict[str, object]:
    """Return one value per graph input without an initializer: symbols are 2 (N) or 3, ints 1, bools true."""
    rng = np.random.default_rng(seed)
    return {
        value.name: _feed(value, rng)
        for value in model.graph.inputs
        if value.name is not None and value.name not in model.graph.initializers
    }


def _feed(value: ir.Value, rng: np.random.Generator) -> object:
    known = value.shape if value.shape is not None else [2, 3]
    shape = [dim if isinstance(dim, int) else 2 if str(dim) == "N" else 3 for dim in known]
    dtype = value.dtype
    assert dtype is not None, f"{value.name} has no element type"
    if dtype == ir.DataType.STRING:
        array: np.ndarray = np.full(shape, "text", object)
    elif dtype.is_floating_point():
        array = rng.standard_normal(shape).astype(dtype.numpy())
    else:
        array = np.ones(shape, dtype.numpy())
    return [array, array] if isinstance(value.type, ir.SequenceType) else array
