"""Quantized models stay quantized: after every pipeline ONNX Runtime runs the same low-precision nodes as before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

FLOAT = """<ir_version: 10, opset_import: ["" : 17]>
agraph (float[N,3,16,16] x) => (float[N,10] y)
<float[8,3,3,3] w1, float[8] b1, float[8] scale, float[8] bias, float[8] mean, float[8] var, float[8,8,3,3] w2,
 float[8] b2, float[8,10] w3, float[10] b3>
{ a = Identity(x)
  h = Conv<pads=[1,1,1,1]>(a, w1, b1)
  n = BatchNormalization(h, scale, bias, mean, var)
  r = Relu(n)
  s = Conv<pads=[1,1,1,1]>(r, w2, b2)
  t = Add(s, r)
  u = Relu(t)
  g = GlobalAveragePool(u)
  f = Flatten(g)
  m = MatMul(f, w3)
  y = Add(m, b3) }"""


class _Data:
    """Calibration data in the form that ONNX Runtime's quantizer reads."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.rows = iter([{"x": random.normal(size=(2, 3, 16, 16)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rows, None)


def qdq(source: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static

    quantize_static(str(source), str(out), _Data(), quant_format=QuantFormat.QDQ, per_channel=True)


def qoperator(source: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static

    quantize_static(str(source), str(out), _Data(), quant_format=QuantFormat.QOperator)


def dynamic(source: Path, out: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(out))


def nbits(source: Path, out: Path) -> None:
    """4-bit blocked weights, as weight-only quantizers write them."""
    random = np.random.default_rng(0)
    packed = random.integers(0, 256, (32, 2, 8), dtype=np.uint8)
    scales = random.uniform(0.1, 1, 64).astype(np.float32)
    node = onnx.helper.make_node(
        "MatMulNBits", ["h", "B", "s"], ["m"], domain="com.microsoft", K=32, N=32, bits=4, block_size=16
    )
    nodes = [onnx.helper.make_node("Identity", ["x"], ["h"]), node, onnx.helper.make_node("Relu", ["m"], ["y"])]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 32]) for name in "xy")
    weights = [onnx.numpy_helper.from_array(packed, "B"), onnx.numpy_helper.from_array(scales, "s")]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), out)


def executed(path: Path, folder: Path) -> Counter[str]:
    """Ops that ONNX Runtime runs after its own optimizations."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / f"{path.stem}-executed.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def low_precision(ops: Counter[str]) -> dict[str, int]:
    words = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "MatMulNBits", "QAttention")
    return {op: count for op, count in ops.items() if any(word in op for word in words)}


@pytest.mark.parametrize("quantize", [qdq, qoperator, dynamic, nbits], ids=lambda item: item.__name__)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_same_nodes_run_in_low_precision(
    quantize: Callable[[Path, Path], None], level: int, tmp_path: Path
) -> None:
    write(from_text(FLOAT), tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "before.onnx")
    graphopt.optimize(tmp_path / "before.onnx", "cpu", graphopt.Options(level=level), tmp_path / "after.onnx")
    before, after = executed(tmp_path / "before.onnx", tmp_path), executed(tmp_path / "after.onnx", tmp_path)
    assert low_precision(before), "the case must have something to lose"
    assert low_precision(after) == low_precision(before)
    left = [op for op in ("QuantizeLinear", "DequantizeLinear") if after[op] > before[op]]
    assert not left, f"more {left} survive in the runtime than before"
