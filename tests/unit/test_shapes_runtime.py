"""Shape analysis against reality: every inferred dimension, element and type equals what a run gives.

The cases are ONNX's own node cases, the awkward graphs, light models, and ops of ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from unit.graphs import AWKWARD, NO_KERNEL, feeds

from graphopt import models
from graphopt.analysis.shape_result import UNDETERMINED
from graphopt.analysis.shapes import Shapes


class Reality:
    """Compares what was inferred with arrays; symbols that inference made up are learned from the first array seen."""

    def __init__(self, shapes: Shapes, inputs: Mapping[str, Any]) -> None:
        self.shapes = shapes
        self.known: dict[str, int] = {}
        self.checked = 0
        self.wrong: list[str] = []
        for value in shapes.model.graph.inputs:
            if isinstance(inputs.get(value.name or ""), np.ndarray):
                self._dims(value, inputs[value.name or ""].shape)

    def check(self, value: ir.Value, array: object) -> None:
        if not isinstance(array, np.ndarray):
            return
        self._dims(value, array.shape)
        if value.dtype is not None and array.dtype != object and value.dtype.numpy() != array.dtype:
            self.wrong.append(f"{_name(value)}: inferred {value.dtype}, got {array.dtype}")
        elements = self.shapes.values(value)
        if elements is not None:
            got = array.reshape(-1).tolist()
            if len(elements) != len(got):
                self.wrong.append(f"{_name(value)}: inferred elements {elements}, got {got}")
                return
            for element, number in zip(elements, got, strict=True):
                self._number(value, element, int(number), f"elements {elements}, got {got}")

    def _dims(self, value: ir.Value, size: Sequence[int]) -> None:
        inferred = self.shapes.dims(value)
        if inferred is None:
            return
        what = f"[{', '.join(map(str, inferred))}], got {list(size)}"
        if len(inferred) != len(size):
            self.wrong.append(f"{_name(value)}: inferred {what}")
            return
        for dim, number in zip(inferred, size, strict=True):
            self._number(value, dim, number, what)

    def _number(self, value: ir.Value, dim: int | ir.SymbolicDim, number: int, what: str) -> None:
        if not isinstance(dim, int) and str(dim).isidentifier():
            self.known.setdefault(str(dim), number)
        expected = self.shapes.evaluate(dim, self.known)
        if expected is None:
            return
        self.checked += 1
        if expected != number:
            self.wrong.append(f"{_name(value)}: inferred {what} at {self.known}")


def _name(value: ir.Value) -> str:
    producer = value.producer()
    return f"{producer.op_type if producer else 'input'} {value.name}"


def _run_everything(model: ir.Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of the main graph, from ONNX Runtime with optimizations off."""
    ort = pytest.importorskip("onnxruntime")
    proto = ir.to_proto(model)
    outputs = {value.name for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.name not in outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=value.name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    got = session.run(None, {name: array for name, array in inputs.items() if name in wanted})
    return dict(zip([value.name for value in session.get_outputs()], got, strict=True))


def assert_real(model: ir.Model, all_inputs: Sequence[Mapping[str, Any]], *, blocked: int = 0) -> int:
    """Infer, run on each set of inputs and compare every value; return how many numbers were compared."""
    shapes = Shapes(model).infer()
    assert len(shapes.blocked) == blocked, shapes.blocked
    checked = 0
    for inputs in all_inputs:
        reality = Reality(shapes, inputs)
        got = _run_everything(model, inputs)
        for node in model.graph:
            for value in node.outputs:
                if value.name in got:
                    reality.check(value, got[value.name])
        assert not reality.wrong, "\n".join(reality.wrong)
        checked += reality.checked
    return checked


# ---- ONNX's node cases ---------------------------------------------------------------------------------------------


@cache
def _node_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    return [case for case in collect_testcases(None) if case.model is not None and case.data_sets]


def _arrays(data: Sequence[Any]) -> list[Any]:
    return [onnx.numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item for item in data]


def _small(array: np.ndarray) -> bool:
    """What exporters write as constants: indices, flags, scales."""
    return array.dtype in (np.int64, np.int32, np.bool_) or (array.dtype == np.float32 and array.size <= 8 > array.ndim)


def _vary(model: ir.Model, arrays: Sequence[Any], mode: str) -> None:
    """Make dimensions symbolic, each with a name of its own, and for 'constants' small inputs initializers."""
    for index, (value, array) in enumerate(zip(list(model.graph.inputs), arrays, strict=False)):
        if mode == "static" or not isinstance(array, (np.ndarray, np.generic)) or value.shape is None:
            continue
        if mode == "constants" and _small(array):
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(np.asarray(array), name=value.name)
            model.graph.initializers[value.name or ""] = value
        else:
            value.shape = ir.Shape([f"s{index}_{axis}" for axis in range(array.ndim)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["static", "symbolic", "constants"])
def test_node_cases(mode: str) -> None:
    wrong: list[str] = []
    checked = 0
    for case in _node_cases():
        model = ir.from_proto(case.model)
        arrays, expected = (_arrays(data) for data in case.data_sets[0])
        names = [value.name for value in model.graph.inputs]
        _vary(model, arrays, mode)
        for value in model.graph.outputs:  # what is declared would stand in for what is inferred
            value.shape = None
        shapes = Shapes(model).infer()
        failed = [blocked for blocked in shapes.blocked if blocked.reason != UNDETERMINED]
        wrong += [f"{case.name}: blocked at {blocked.op}: {blocked.reason}" for blocked in failed]
        reality = Reality(shapes, dict(zip(names, arrays, strict=False)))
        for value, array in zip(model.graph.outputs, expected, strict=True):
            reality.check(value, array)
        wrong += [f"{case.name}: {text}" for text in reality.wrong]
        checked += reality.checked
    assert not wrong, "\n".join(wrong)
    assert checked > 5000


# ---- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(AWKWARD) - set(NO_KERNEL)))
def test_awkward_graphs(name: str) -> None:
    model = AWKWARD[name]()
    try:
        inputs = [feeds(model, seed) for seed in range(2)]
        _run_everything(model, inputs[0])
    except Exception as error:  # what the runtime refuses says nothing about shapes
        pytest.skip(str(error)[:100])
    shapes = Shapes(AWKWARD[name]()).infer()
    assert_real(model, inputs, blocked=len(shapes.blocked))


@pytest.mark.parametrize("name", ["light-squeezenet", "light-shufflenet", "light-densenet121"])
def test_light_models(name: str) -> None:
    model = ir.load(models.fetch(name))
    for value in list(model.graph.inputs):
        if value.name in model.graph.initializers and value.uses():
            model.graph.inputs.remove(value)
    x = next(value for value in model.graph.inputs if value.name not in model.graph.initializers)
    array = np.random.default_rng(0).random(x.shape.numpy(), "float32")
    assert assert_real(model, [{x.name: array}]) > 300


OCR = {
    "ppocr-det-v4": [(1, 64, 96), (2, 96, 32)],
    "ppocr-rec-v4": [(1, 48, 96), (3, 48, 160)],
    "ppocr-cls": [(1, 48, 192), (2, 48, 192)],
}


@pytest.mark.zoo
@pytest.mark.parametrize("name", sorted(OCR))
def test_ocr_models_with_dynamic_sizes(name: str) -> None:
    rng = np.random.default_rng(0)
    arrays = [{"x": rng.random((batch, 3, height, width), "float32")} for batch, height, width in OCR[name]]
    assert assert_real(ir.load(models.fetch(name)), arrays) > 1500


# ---- ops of ONNX Runtime -------------------------------------------------------------------------------------------

CONTRIB = {
    "FusedMatMul": "y = com.microsoft.FusedMatMul <transA = 1> (a, b)",
    "FusedConv": 'y = com.microsoft.FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (img, kernel)',
    "BiasGelu": "y = com.microsoft.BiasGelu (h, bias)",
    "QuickGelu": "y = com.microsoft.QuickGelu (h)",
    "SkipLayerNormalization": "y = com.microsoft.SkipLayerNormalization (h, h, bias, bias)",
    "MultiHeadAttention": "y = com.microsoft.MultiHeadAttention <num_heads = 2> (h, h, h)",
    "cross MultiHeadAttention": "y = com.microsoft.MultiHeadAttention <num_heads = 2> (h, other, other)",
    "Attention": "y = com.microsoft.Attention <num_heads = 2> (h, packed, packed_bias)",
    "DynamicQuantizeLinear": "y, s, z = DynamicQuantizeLinear (h)",
    "MatMulInteger": "q, s, z = DynamicQuantizeLinear (h) \n y = MatMulInteger (q, weight8, z)",
    "MatMulIntegerToFloat": """q, s, z = DynamicQuantizeLinear (h)
        y = com.microsoft.MatMulIntegerToFloat (q, weight8, s, scale, z)""",
    "DynamicQuantizeMatMul": "y = com.microsoft.DynamicQuantizeMatMul (h, weight8, scale)",
    "QLinearAdd": """q, s, z = DynamicQuantizeLinear (h) \n p, t, u = DynamicQuantizeLinear (bias)
        y = com.microsoft.QLinearAdd (q, s, z, p, t, u, s, z)""",
    "Gelu": "y = com.microsoft.Gelu (h)",
    "LSTM": "y, yh, yc = LSTM <hidden_size = 4> (h, lstm_w, lstm_r)",
}


@pytest.mark.parametrize("name", sorted(CONTRIB))
def test_ops_of_the_runtime(name: str) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "kernel": rng.random((3, 2, 3, 3), "float32"),
        "bias": rng.random(8, "float32"),
        "packed": rng.random((8, 24), "float32"),
        "packed_bias": rng.random(24, "float32"),
        "weight8": rng.integers(0, 255, (8, 5)).astype("uint8"),
        "scale": np.array(0.5, "float32"),
        "lstm_w": rng.random((1, 16, 8), "float32"),
        "lstm_r": rng.random((1, 16, 4), "float32"),
    }
    text = f"""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        g (float[B, K, M] a, float[B, K, N] b, float[B, 2, H, W] img, float[B, S, 8] h, float[B, T, 8] other)
        => (float[P] last) {{
        {CONTRIB[name]}
        flat = Constant <value_ints = [-1]> ()
        wide = Cast <to = 1> (y)
        last = Reshape(wide, flat) }}"""
    model = ir.from_onnx_text(text)
    for key, array in constants.items():
        stands = [value for node in model.graph for value in node.inputs if value is not None and value.name == key]
        constant = ir.val(key, const_value=ir.tensor(array, name=key))
        if stands:
            ir.convenience.replace_all_uses_with(stands[0], constant)
            model.graph.register_initializer(constant)
    sizes = {"a": (5, 4), "b": (5, 6), "img": (2, 7, 9), "h": (3, 8), "other": (6, 8)}
    inputs = [{key: rng.random((batch, *size), "float32") for key, size in sizes.items()} for batch in (1, 2)]
    shapes = Shapes(model).infer()
    y = next(value for node in model.graph for value in node.outputs if value.name == "y")
    assert shapes.dims(y) is not None and y.dtype is not None
    assert assert_real(model, inputs) > 0
