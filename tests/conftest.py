"""Shared by all tests: running a model in ONNX Runtime as it stands, comparing what two runs gave, `--update-golden`.

Fixtures only, so that no test has to import another test's file. Models and cases live with their tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import onnx_ir as ir

Run = Callable[["ir.Model", Mapping[str, Any]], dict[str, Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`python -m pytest tests/golden tests/e2e/test_verbs.py --update-golden`, then review the diff."""
    parser.addoption("--update-golden", action="store_true", help="write the expected text of golden files anew")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    # The option is unknown when the run starts from another folder.
    return bool(request.config.getoption("--update-golden", default=False))


@pytest.fixture(autouse=True)
def _own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that a test loads are gone after it."""
    from graphopt.manager import registry

    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))


_EIGHT_BIT = {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}


def _saturates() -> bool:
    from graphopt.targets.onnxruntime.isa import SATURATES, resolve

    return resolve("auto") in SATURATES


def _run(model: ir.Model, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by name, on one thread with the runtime's optimizations off.

    Where this CPU's kernels saturate, models of 8-bit sums run in ONNX's reference implementation: they are made for
    CPUs with VNNI.
    """
    import onnx_ir
    import onnxruntime as ort

    inline = onnx_ir.external_data.load_to_model(model.clone())
    if _saturates() and any(node.op_type in _EIGHT_BIT for node in inline.graph.all_nodes()):
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(onnx_ir.to_proto(inline))
        given = {name: value for name, value in feeds.items() if name in evaluator.input_names}
        return dict(zip(evaluator.output_names, evaluator.run(None, given), strict=True))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    proto = onnx_ir.to_proto(inline).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    results = session.run(names, {name: value for name, value in feeds.items() if name in wanted})
    return dict(zip(names, results, strict=True))


@pytest.fixture(scope="session")
def run_model() -> Run:
    """`run_model(model, feeds)`: the outputs by name; the model is not changed."""
    return _run


@pytest.fixture(scope="session")
def evaluate() -> Run:
    """What a Context takes as its evaluator."""
    return _run


def _difference(want: Any, got: Any) -> float:
    """Largest absolute difference over the largest finite magnitude; inf where NaN or Inf differ in place or sign."""
    import numpy as np

    if isinstance(want, list):
        return float("inf") if len(want) != len(got) else max(map(_difference, want, got), default=0.0)
    want, got = np.asarray(want), np.asarray(got)
    if want.shape != got.shape or want.dtype != got.dtype:
        return float("inf")
    if want.dtype.kind not in "fV" or want.dtype.itemsize < 2:
        return 0.0 if np.array_equal(want, got) else float("inf")
    with np.errstate(all="ignore"):
        a, b = want.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
            return float("inf")
        gap = np.abs(a[finite] - b[finite])
        scale = np.abs(a[finite]).max(initial=0.0)
    return float(gap.max(initial=0.0) / max(scale, np.finfo(np.float32).tiny))


@pytest.fixture(scope="session")
def difference() -> Callable[[Any, Any], float]:
    """`difference(want, got)`: 0.0 when equal (NaN equals NaN, -0.0 equals 0.0), else relative to the largest value."""
    return _difference
