"""Quantized layers on TVM against ONNX Runtime: codes are equal, and no float product is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

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
    from graphopt.frontends.onnx import load
    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.library import Library
    from graphopt.targets.tvm.lowering.graph import lower

    seen: list[Any] = []

    def keep(module: Any, where: Machine) -> tuple[Any, str | None]:
        out = scheduled(module, where)
        seen.append(out[0])
        return out

    assert build(lower(load(file)), machine, file.with_suffix(".so"), keep) is None
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
    integers = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert got.dtype == floats.dtype and got.shape == floats.shape
    if got.dtype == np.float32:
        np.testing.assert_allclose(got, floats, rtol=0, atol=1e-5 * np.abs(floats).max())
        return
    assert np.ptp(got.astype(int)) > 100 or layer.between
    np.testing.assert_array_equal(got, integers)  # on this CPU exact integers
    wrong = np.abs(got.astype(int) - floats.astype(int))
    assert wrong.max() <= 1 and (wrong > 0).mean() < 1e-3  # float sums may round a tie otherwise
