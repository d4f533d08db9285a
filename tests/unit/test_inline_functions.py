"""Functions that call functions: long chains, and few nodes that stand for billions."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import graphopt
from graphopt import ir
from graphopt.analysis.cost import model_cost
from graphopt.ir.sites import callees_first
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.verifying import verify_files


def model_of(depth: int, calls: int, last: str = "b = Tanh(a)") -> ir.Model:
    """f0 calls f1 so many times, f1 calls f2, ...; the last one has the only real node."""
    functions = []
    for number in range(depth - 1):
        values = ["a", *(f"t{index}" for index in range(calls - 1)), "b"]
        steps = [f"{values[index + 1]} = L.f{number + 1} ({values[index]})" for index in range(calls)]
        functions.append((number, " ".join(steps)))
    functions.append((depth - 1, last))
    text = '<ir_version: 10, opset_import: ["": 21, "L": 1]> g (float[2, 2] x) => (float[2, 2] y) { y = L.f0 (x) }\n'
    head = '<domain: "L", opset_import: ["": 21, "L": 1]>'
    return from_text(text + "\n".join(f"{head} f{number} (a) => (b) {{ {body} }}" for number, body in functions))


def test_a_long_chain_is_inlined_and_counted(tmp_path: Path) -> None:
    write(model_of(600, 1, "b = MatMul(a, a)"), tmp_path / "m.onnx")
    start = time.monotonic()
    assert model_cost(graphopt.load(tmp_path / "m.onnx")).macs is None  # shapes are followed 100 functions deep
    result = graphopt.optimize(tmp_path / "m.onnx", options=graphopt.Options(passes="inline-functions"))
    assert [node.op_type for node in result.model.graph] == ["MatMul"] and not result.model.functions
    assert model_cost(result.model).macs == 8
    assert time.monotonic() - start < 60  # it was quadratic: minutes


def test_work_of_a_function_counts_once_per_call() -> None:
    assert model_cost(model_of(8, 2, "b = MatMul(a, a)")).known_macs == 2**7 * 8


def test_billions_of_nodes_stay_functions() -> None:
    model = model_of(40, 2)
    options = graphopt.Options(passes="inline-functions", numerics="off")
    result = graphopt.optimize(model, options=options)
    assert len(result.model.functions) == 39  # f0 has one call
    assert [node.op_type for node in result.model.graph] == ["f1", "f1"]
    reasons = [remark.reason for remark in result.run.ctx.remarks if remark.pass_name == "inline-functions"]
    assert "39 functions with several calls stay: all bodies would be over 100000 nodes" in reasons
    assert any("max_nodes" in reason and "this one has 2 calls" in reason for reason in reasons)


@pytest.mark.parametrize(("limit", "left"), [(256, 0), (255, 8)])
def test_the_bound_is_on_what_everything_would_be(tmp_path: Path, limit: int, left: int) -> None:
    write(model_of(9, 2), tmp_path / "m.onnx")
    passes = f"inline-functions{{max_nodes={limit}}}"
    result = graphopt.optimize(tmp_path / "m.onnx", options=graphopt.Options(passes=passes))
    assert len(result.model.functions) == left and result.numerics.status == "passed"
    write(result.model, tmp_path / "out.onnx")
    rows = verify_files(tmp_path / "m.onnx", tmp_path / "out.onnx", tolerance="exact")
    assert {row["status"] for row in rows} == {"passed"}


def test_a_call_that_nothing_needs_any_more() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["": 21, "L": 1]>
        g (float[2] x) => (float[2] y) { t = L.unused (x) y = L.ignores (x, t) }
        <domain: "L", opset_import: ["": 21, "L": 1]> unused (a) => (b) { c = L.ignores (a, a) b = Exp(c) }
        <domain: "L", opset_import: ["": 21]> ignores (a, z) => (b) { b = Tanh(a) }""")
    result = graphopt.optimize(model, options=graphopt.Options(passes="inline-functions"))
    assert [node.op_type for node in result.model.graph] == ["Tanh"] and not result.model.functions


def test_callees_come_first() -> None:
    assert [key[1] for key in callees_first(model_of(4, 2))] == ["f3", "f2", "f1", "f0"]
