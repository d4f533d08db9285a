"""Synthetic models: the size that was asked for, legal, runnable, and the same each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.errors import GraphoptError
from graphopt.models import synthetic


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("nodes", [1, 2, 11, 12, 300, 2000])
def test_deep_graph_has_the_nodes(nodes: int, tmp_path: Path) -> None:
    path = synthetic.deep_graph(nodes, tmp_path / "deep.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=nodes <= 300)
    assert len(model.graph.node) == nodes
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 8), "float32")
    y, other = _run(path, x), _run(path, 2 * x)
    assert y.shape == x.shape and np.isfinite(y).all()
    assert 0.01 < abs(y).max() < 10
    assert abs(y - other).max() > 1e-3  # the output depends on the input at any depth


def test_deep_graph_has_the_mix(tmp_path: Path) -> None:
    model = onnx.load(synthetic.deep_graph(300, tmp_path / "deep.onnx"))
    ops = {node.op_type for node in model.graph.node}
    wanted = "Conv BatchNormalization Relu Erf Identity Dropout Transpose Shape Gather Concat Reshape Constant Cast"
    assert set(wanted.split()) <= ops


def test_deep_graph_is_seeded(tmp_path: Path) -> None:
    first = synthetic.deep_graph(100, tmp_path / "a.onnx").read_bytes()
    assert first == synthetic.deep_graph(100, tmp_path / "b.onnx").read_bytes()
    assert first != synthetic.deep_graph(100, tmp_path / "c.onnx", seed=1).read_bytes()


def test_big_model_has_the_size_and_distinct_weights(tmp_path: Path) -> None:
    path = synthetic.big_model(tmp_path / "big.onnx", 0.002)
    model = onnx.load(path)
    onnx.checker.check_model(str(path), full_check=True)
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert abs(sum(array.nbytes for array in arrays) / 2e6 - 1) < 0.05
    assert len({array.tobytes() for array in arrays}) == len(arrays)
    assert path.stat().st_size < 20_000
    x = np.random.default_rng(0).standard_normal((2, arrays[0].shape[0]), "float32")
    y = _run(path, x)
    assert np.isfinite(y).all() and 0.1 < abs(y).max() < 100


def test_big_model_peak_memory_is_one_layer(tmp_path: Path) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        path = synthetic.big_model(tmp_path / "big.onnx", 0.1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.with_name("big.onnx.data").stat().st_size > 95e6
    assert peak < 40e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: synthetic.deep_graph(0, folder / "m.onnx"), "at least 1"),
        (lambda folder: synthetic.big_model(folder / "m.onnx", 0), "positive"),
        (lambda folder: synthetic.big_model(folder / "m.onnx", float("nan")), "positive"),
        (lambda folder: synthetic.big_model(folder / "none" / "m.onnx", 0.001), "cannot write"),
        (lambda folder: synthetic.deep_graph(5, folder / "none" / "m.onnx"), "cannot write"),
    ],
)
def test_bad_requests(call: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(GraphoptError, match=message):
        call(tmp_path)  # type: ignore[operator]
    assert not list(tmp_path.iterdir())
