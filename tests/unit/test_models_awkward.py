"""The awkward graphs are what they claim: legal for the ONNX checker and runnable, but for the listed exceptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from unit.graphs import AWKWARD, CHECKER_REFUSES, NO_KERNEL, RANDOM, external_data_file, feeds


def _file(name: str, folder: Path) -> Path:
    if name == "external-data":
        return external_data_file()
    path = folder / "model.onnx"
    path.write_bytes(ir.to_proto(AWKWARD[name]()).SerializeToString())
    return path


def _run(path: Path, values: dict[str, object]) -> list[object]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, values)


@pytest.mark.parametrize("name", sorted(set(AWKWARD) - set(CHECKER_REFUSES)))
def test_checker_accepts(name: str, tmp_path: Path) -> None:
    onnx.checker.check_model(str(_file(name, tmp_path)), full_check=True)


@pytest.mark.parametrize("name", sorted(CHECKER_REFUSES))
def test_checker_refuses_as_listed(name: str, tmp_path: Path) -> None:
    with pytest.raises(onnx.checker.ValidationError) as caught:
        onnx.checker.check_model(str(_file(name, tmp_path)), full_check=True)
    assert CHECKER_REFUSES[name] in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(AWKWARD) - set(NO_KERNEL)))
def test_onnxruntime_runs(name: str, tmp_path: Path) -> None:
    path, model = _file(name, tmp_path), AWKWARD[name]()
    first, second = (_run(path, feeds(model, seed=3)) for _ in range(2))
    assert len(first) == len(model.graph.outputs)
    if name not in RANDOM:
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", sorted(NO_KERNEL))
def test_onnxruntime_refuses_as_listed(name: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        _run(_file(name, tmp_path), feeds(AWKWARD[name]()))
    assert NO_KERNEL[name] in str(caught.value)


def test_builders_return_fresh_models() -> None:
    for name, build in AWKWARD.items():
        assert build() is not build(), name


def test_collection_has_what_it_promises() -> None:
    models = {name: build() for name, build in AWKWARD.items()}
    ops = {node.op_type for model in models.values() for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    assert {"If", "Loop", "Scan", "QLinearConv", "MatMulNBits", "SequenceAt", "Optional", "Dropout"} <= ops
    assert models["no-nodes"].graph.outputs[0] is models["no-nodes"].graph.inputs[0]
    assert models["initializer-as-output"].graph.outputs[1].is_initializer()
    assert models["unknown-rank"].graph.inputs[0].shape is None
    assert models["optional-input-missing"].graph[0].inputs[1] is None
    assert models["shared-weights"].graph[1].op_type == "Reshape"
    assert len(models["functions-nested"].functions) == 3
    assert isinstance(models["external-data"].graph.initializers["w"].const_value, ir.ExternalTensor)
    assert models["zero-size"].graph.initializers["none"].const_value.size == 0
    names = [node.name for node in models["duplicate-node-names"].graph]
    assert names == ["n", "n", "n"]
