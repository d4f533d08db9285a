"""Quantized layers on TVM against ONNX Runtime: codes are equal, and no float product is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import driver, paying
from graphopt.driver import Options
from graphopt.frontends.onnx import load
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.quantization.metrics import Interval
from graphopt.running import runnable
from graphopt.targets.onnxruntime.runner import open_runner
from graphopt.targets.onnxruntime.settings import SessionSettings
from graphopt.targets.tvm.machine import Isa, Machine, missing_flags, of

pytestmark = [pytest.mark.tvm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("tvm")

ISAS: list[Isa] = [isa for isa in ("avx512vnni", "avx512", "avx2", "neon") if not missing_flags(isa)]


@dataclass(frozen=True)
class Layer:
    """A quantized Conv (kernel given) or product, with what stands between it and the codes of its output.

    Attributes:
        op: Conv, MatMul or Gemm.
        x, w: shapes; of a Gemm w is [N, K].
        codes: type of the activations' codes.
        between: ops with bounds between the product and QuantizeLinear; None: the output is float.
        per_channel: one weight scale per output channel.
        attributes: of the op.
    """

    op: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    codes: str = "uint8"
    bias: str = "codes"
    between: tuple[Any, ...] | None = ()
    per_channel: bool = True
    attributes: tuple[tuple[str, Any], ...] = ()

    def model(self) -> onnx.ModelProto:
        rng = np.random.default_rng(len(self.x) + sum(self.w))
        signed = self.codes == "int8"
        axis = 1 if self.op == "MatMul" else 0
        scales = np.float32(0.01) * rng.uniform(0.5, 1.5, self.w[axis] if self.per_channel else ()).astype(np.float32)
        constants: dict[str, np.ndarray] = {
            "xs": np.array(0.021, np.float32),
            "xz": np.array(-7 if signed else 117, self.codes),
            "w": rng.integers(-127, 128, self.w).astype(np.int8),
            "ws": scales,
            "wz": np.zeros(scales.shape, np.int8),
            "ys": np.array(0.05, np.float32),
            "yz": np.array(11 if signed else 140, self.codes),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        ]
        inputs = ["xd", "wd"]
        if self.bias:
            floats = rng.uniform(-2, 2, self.w[axis]).astype(np.float32)
            if self.bias == "codes":
                constants["bs"] = np.broadcast_to(constants["xs"] * scales, floats.shape).copy()
                constants["b"] = np.rint(floats / constants["bs"]).astype(np.int32)
                nodes.append(helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0))
            else:
                constants["bd"] = floats
            inputs.append("bd")
        nodes.append(helper.make_node(self.op, inputs, ["h0"], **dict(self.attributes)))
        for index, item in enumerate(self.between or ()):
            operands = [f"h{index}"]
            if item != "Relu":
                constants |= {
                    f"low{index}": np.array(item[0], np.float32),
                    f"high{index}": np.array(item[1], np.float32),
                }
                operands += [f"low{index}", f"high{index}"]
            nodes.append(helper.make_node("Relu" if item == "Relu" else "Clip", operands, [f"h{index + 1}"]))
        last = f"h{len(self.between or ())}"
        if self.between is not None:
            nodes.append(helper.make_node("QuantizeLinear", [last, "ys", "yz"], ["y"]))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.codes)) if self.between is not None else TensorProto.FLOAT
        y = helper.make_tensor_value_info("y" if self.between is not None else last, kind, None)
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x)],
            [y],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _exact(file: Path) -> Any:
    """A session whose 8-bit sums are exact on any CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def attributes(**given: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(given.items())


LAYERS = {
    "1x1": Layer("Conv", (1, 16, 9, 9), (32, 16, 1, 1), between=("Relu",)),
    "3x3 padded": Layer("Conv", (2, 8, 9, 7), (24, 8, 3, 3), attributes=attributes(pads=[1, 1, 1, 1])),
    "image": Layer(
        "Conv", (1, 3, 20, 20), (16, 3, 7, 7), between=("Relu",), attributes=attributes(pads=[3] * 4, strides=[2, 2])
    ),
    "signed": Layer("Conv", (1, 12, 8, 8), (20, 12, 3, 3), "int8", attributes=attributes(pads=[1, 0, 2, 1])),
    "groups": Layer("Conv", (1, 24, 8, 8), (12, 8, 3, 3), attributes=attributes(group=3, dilations=[2, 2])),
    "odd groups": Layer("Conv", (1, 6, 8, 8), (8, 3, 3, 3), "int8", attributes=attributes(group=2, pads=[1] * 4)),
    "depthwise": Layer("Conv", (1, 37, 9, 9), (37, 1, 3, 3), attributes=attributes(group=37, pads=[1, 1, 1, 0])),
    "depthwise, signed": Layer(
        "Conv", (1, 32, 9, 9), (32, 1, 5, 5), "int8", attributes=attributes(group=32, pads=[2] * 4, strides=[2, 2])
    ),
    "clip": Layer("Conv", (1, 16, 8, 8), (17, 16, 1, 1), between=((-0.52, 6.0),), per_channel=False),
    "conv1d": Layer("Conv", (1, 16, 30), (8, 16, 3), attributes=attributes(pads=[1, 1])),
    "no bias": Layer("Conv", (1, 16, 8, 8), (16, 16, 1, 1), bias=""),
    "matmul": Layer("MatMul", (3, 10, 40), (40, 33), bias=""),
    "matmul, odd": Layer("MatMul", (7, 41), (41, 16), "int8", bias="", per_channel=False),
    "matmul to float": Layer("MatMul", (3, 10, 64), (64, 48), bias="", between=None),
    "gemm": Layer("Gemm", (5, 64), (10, 64), between=("Relu",), attributes=attributes(transB=1)),
}


def in_tvm(file: Path, feeds: Sequence[np.ndarray], machine: Machine) -> tuple[np.ndarray, str]:
    """The first output, and the scheduled module as text."""
    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.library import Library
    from graphopt.targets.tvm.lowering.graph import lower

    seen: list[Any] = []

    def keep(module: Any, where: Machine) -> tuple[Any, str | None]:
        out = scheduled(module, where)
        seen.append(out[0])
        return out

    assert build(lower(load(file)), machine, file.with_suffix(".so"), keep).not_scheduled is None
    return Library(file.with_suffix(".so")).run(list(feeds))[0], seen[0].script()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, isa: Isa, tmp_path: Path) -> None:
    import onnxruntime

    layer = LAYERS[name]
    file = tmp_path / "layer.onnx"
    onnx.save(layer.model(), file)
    x = np.random.default_rng(0).uniform(-3, 3, layer.x).astype(np.float32)
    got, script = in_tvm(file, [x], of(isa, 1))
    assert "_codes" in script
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    floats = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    integers = _exact(file).run(None, {"x": x})[0]
    assert got.dtype == floats.dtype and got.shape == floats.shape
    if got.dtype == np.float32:
        np.testing.assert_allclose(got, floats, rtol=0, atol=1e-5 * np.abs(floats).max())
        return
    assert np.ptp(got.astype(int)) > 100 or layer.between
    np.testing.assert_array_equal(got, integers)  # on this CPU exact integers
    wrong = np.abs(got.astype(int) - floats.astype(int))
    assert wrong.max() <= 1 and (wrong > 0).mean() < 1e-3  # float sums may round a tie otherwise


FORMS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "QLinearConv": (
        "y = QLinearConv<pads=[1,1,1,1]>(x, s, z, k, ks, kz, t, p, b)",
        {"ks": np.linspace(0.01, 0.02, 8, dtype=np.float32), "kz": np.zeros(8, np.int8)},
    ),
    "ConvInteger": ("y = ConvInteger<pads=[1,0,1,0]>(x, k, z)", {}),
    "ConvInteger, unsigned": ("y = ConvInteger<pads=[1,0,1,0]>(x, u, z, q)", {"q": np.array(127, np.uint8)}),
    "QLinearMatMul": ("y = QLinearMatMul(x, s, z, m, ms, mz, t, p)", {"ms": np.array(0.03, np.float32)}),
    "MatMulInteger": ("y = MatMulInteger(x, m, z)", {}),
    "MatMulInteger, computed": ("h = Add(z, z) y = MatMulInteger(x, m, h)", {}),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", FORMS)
def test_integer_forms(name: str, isa: Isa, tmp_path: Path, run_model: Any) -> None:
    nodes, more = FORMS[name]
    rng = np.random.default_rng(0)
    constants = {
        "s": np.array(0.02, np.float32),
        "z": np.array(99, np.uint8),
        "t": np.array(0.3, np.float32),
        "p": np.array(131, np.uint8),
        "k": rng.integers(-128, 128, (8, 5, 3, 3)).astype(np.int8),
        "u": rng.integers(0, 255, (8, 5, 3, 3)).astype(np.uint8),
        "b": rng.integers(-999, 999, 8).astype(np.int32),
        "m": rng.integers(-128, 128, (9, 20)).astype(np.int8),
        "mz": np.array(0, np.int8),
        **more,
    }
    out = "uint8" if "QLinear" in name else "int32"
    text = f'<ir_version: 10, opset_import: ["":21]> g (uint8[2,5,7,9] x) => ({out}[A,B,C,D] y) {{ {nodes} }}'
    model = onnx.parser.parse_model(text)
    used = {operand for node in model.graph.node for operand in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items() if k in used)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model = onnx.shape_inference.infer_shapes(model)
    file = tmp_path / "form.onnx"
    onnx.save(model, file)
    x = rng.integers(0, 256, (2, 5, 7, 9)).astype(np.uint8)
    got, script = in_tvm(file, [x], of(isa, 1))
    expected = run_model(load(file), {"x": x})["y"]
    assert "_codes" in script
    assert np.ptp(got.astype(int)) > 150
    np.testing.assert_array_equal(got, expected)


def test_sums_of_codes_are_rounded_as_the_runtime_does(tmp_path: Path) -> None:
    """Add between Dequantize and Quantize, with a Relu."""

    text = """<ir_version: 10, opset_import: ["":21]> g (uint8[1,16,9,9] x, uint8[1,16,9,9] y) => (uint8[1,16,9,9] z)
        <float a = {0.02}, float b = {0.05}, float c = {0.03}, uint8 p = {120}, uint8 q = {7}, uint8 r = {3}>
        { xd = DequantizeLinear(x, a, p) yd = DequantizeLinear(y, b, q) s = Add(xd, yd) t = Relu(s)
          z = QuantizeLinear(t, c, r) }"""
    file = tmp_path / "add.onnx"
    onnx.save(onnx.parser.parse_model(text), file)
    rng = np.random.default_rng(0)
    feeds = {name: rng.integers(0, 256, (1, 16, 9, 9)).astype(np.uint8) for name in ("x", "y")}
    got, script = in_tvm(file, list(feeds.values()), of(ISAS[0], 1))
    expected = _exact(file).run(None, feeds)[0]
    assert "divide" not in script
    np.testing.assert_array_equal(got, expected)


NET = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,3,16,16] x) => (float[1,10] y) <float[8,3,3,3] v, float[8,1,3,3] d, float[12,8,1,1] w, float[12,10] m>
{ [first] a = Conv<pads=[1,1,1,1]>(x, v) [act] b = Relu(a) [deep] c = Conv<group=8>(b, d) [point] e = Conv(c, w)
  [pool] g = GlobalAveragePool(e) [flat] f = Flatten(g) [head] y = MatMul(f, m) }"""


def test_the_precision_int8_ships_a_library_that_multiplies_codes(tmp_path: Path) -> None:
    write(from_text(NET), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(8)]
    options = Options(precision="int8", calibration_data=samples, keep_slow=True)
    artifact = driver.compile(tmp_path / "net.onnx", "tvm{threads=1}", tmp_path / "build", options)
    assert artifact.manifest["numerics"]["reason"].startswith("lossy passes are measured, not judged")
    stretches = artifact.report["numerics"]["stretches"]
    assert [row["status"] for row in stretches] == ["passed"] * len(stretches)
    assert stretches[-1]["tolerance"] == "reassociates"  # the library against the quantized model
    assert "quantize-static" in artifact.manifest["pipeline"]
    floats = driver.optimize(tmp_path / "net.onnx").model
    write(floats, tmp_path / "floats.onnx")
    with (
        runnable(tmp_path / "build").open() as ours,
        open_runner(tmp_path / "floats.onnx", SessionSettings(), isolate=False) as theirs,
    ):
        got, expected = ours.run(samples[0])["y"], theirs.run(samples[0])["y"]
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_what_is_slower_than_float_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        error = 0.01

        def __init__(self, *args: Any) -> None: ...

        def make_sure(self, limit: float) -> None: ...

        def ratio(self, index: int = 0) -> Interval:
            return Interval(1.5, 1.5, 1.5)

    monkeypatch.setattr(paying, "Latency", Slow)
    write(from_text(NET), tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    options = Options(precision="int8", calibration_data=[{"x": item[None]} for item in x])
    artifact = driver.compile(tmp_path / "net.onnx", "tvm{threads=1}", tmp_path / "build", options)
    assert artifact.report["slowness"]["shipped"] == "float"
    assert artifact.manifest["main"] == "model.so"
