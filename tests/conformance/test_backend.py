"""Official ONNX node cases through capture, `-O3` and ONNX Runtime; all of them: `python -m benchmarks.conformance`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import backend
from graphopt.errors import GraphoptError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper = onnx.helper
ROOT = Path(__file__).resolve().parents[2]
X = np.asarray([[-1.0, 2.0]], np.float32)


def conformance(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.conformance", "--no-write", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_each_tenth_case_passes_in_every_form() -> None:
    done = conformance("--every", "10")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "All bars are met" in done.stdout


@pytest.mark.slow
def test_all_cases_pass_in_every_form() -> None:
    done = conformance()
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_a_missed_bar_is_an_exit_status() -> None:
    # Opset 1 is older than what capture takes, so this case is refused and stands in the list with its reason.
    done = conformance("--cases", "test_not_2d", "--form", "plain", "--workers", "1")
    assert done.returncode == 1
    assert "opset 1; supported are 7 to" in done.stdout
    assert "0 of 1 pass" in done.stdout


_FAKE = """
import json, os, sys
print(json.dumps({"cases": ["good", "bad", "ugly"]}), flush=True)
for line in sys.stdin:
    index = json.loads(line)["case"]
    if index:
        print(json.dumps({"phase": "runtime" if index == 1 else "graphopt"}), flush=True)
        os.abort()
    print(json.dumps({"status": "passed", "reason": ""}), flush=True)
"""


def test_a_crash_belongs_to_its_case_and_the_next_one_runs(monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.conformance import Worker

    worker = Worker((sys.executable, "-c", _FAKE))
    worker.start()
    outcomes = [worker.measure(index, "plain", 3) for index in (0, 2, 0, 1, 0)]
    worker.close()
    assert [(o.case, o.status) for o in outcomes] == [
        ("good", "passed"),
        ("ugly", "crashed"),
        ("good", "passed"),
        ("bad", "runtime-fails"),
        ("good", "passed"),
    ]
    assert "status -6 in phase graphopt" in outcomes[1].reason


def two_relus() -> Any:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.parametrize("inputs", [[X], (X,), X, {"x": X}, [onnx.numpy_helper.from_array(X, "x")]])
def test_inputs_may_be_a_list_one_array_a_dict_or_protos(inputs: Any) -> None:
    outputs = backend.run_model(two_relus(), inputs)
    np.testing.assert_array_equal(outputs.y, np.maximum(X, 0))
    np.testing.assert_array_equal(outputs["y"], outputs[0])


def test_the_pipeline_runs_and_can_be_chosen() -> None:
    nodes = {}
    idempotent = {"passes": "eliminate-idempotent"}
    for options in ({}, {"level": 0}, idempotent, {**idempotent, "disable": ("eliminate-idempotent",)}):
        prepared = backend.prepare(two_relus(), **options)
        nodes[str(options)] = len(prepared.model.graph)
        prepared.close()
    assert list(nodes.values()) == [1, 2, 1, 2]


def test_one_node_runs_with_and_without_output_types() -> None:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    for info in (None, [(np.float32, (1, 2))]):
        (got,) = backend.run_node(node, [X, X], outputs_info=info)
        np.testing.assert_array_equal(got, X + X)


def test_devices() -> None:
    assert backend.supports_device("CPU")
    assert not backend.supports_device("TPU")
    with pytest.raises(GraphoptError, match="there is no device 'TPU'"):
        backend.prepare(two_relus(), "TPU")


@pytest.mark.parametrize(
    ("inputs", "message"), [([], "0 inputs are given, the model has 1: x"), ({"z": X}, "has no input 'z'")]
)
def test_wrong_inputs_are_explained(inputs: Any, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        backend.run_model(two_relus(), inputs)


def test_incompatible_models_are_known() -> None:
    assert backend.is_compatible(two_relus())
    broken = two_relus()
    broken.graph.node[0].input[0] = "nothing"
    assert not backend.is_compatible(broken)
