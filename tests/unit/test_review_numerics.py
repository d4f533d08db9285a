"""Faults found by review in the verdicts: what must fail, what must not, and who is blamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt import driver, ir
from graphopt.blame import bisect
from graphopt.checks import Numbers
from graphopt.driver import Options
from graphopt.errors import VerificationError
from graphopt.ir.text import from_text
from graphopt.manager import registry
from graphopt.manager.base import Pass
from graphopt.verifying import verify_files

WEIGHT = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
SCALE = np.float32(0.3)


def save_text(path: Path, text: str) -> Path:
    onnx.save(ir.to_proto(from_text(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')), path)
    return path


def save_scaled(path: Path, tail: list[Any], kind: str = "tensor", first: bool = False) -> Path:
    """x @ w * s, or (x * s) @ w with `first`: equal but for rounding; then `tail`, from m to y."""
    if first:
        nodes = [helper.make_node("Mul", ["x", "s"], ["p"]), helper.make_node("MatMul", ["p", "w"], ["m"])]
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Mul", ["p", "s"], ["m"])]
    make = helper.make_tensor_value_info if kind == "tensor" else helper.make_tensor_sequence_value_info
    graph = helper.make_graph(
        [*nodes, *tail],
        "g",
        [helper.make_tensor_value_info("x", 1, [8, 64])],
        [make("y", 1, [8, 64])],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(SCALE, "s")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def verdict(a: Path, b: Path, tolerance: Any = "reassociates", data: Path | None = None) -> tuple[str, str]:
    row = next(row for row in verify_files(a, b, data, tolerance) if row["check"] == "numerics")
    return row["status"], row["reason"]


@pytest.mark.parametrize(
    ("outputs", "status"),
    [("y, z", "passed"), ("z, y", "failed"), ("y, z, x2", "failed"), ("y", "failed")],
)
def test_outputs_are_compared_by_place_and_number_too(tmp_path: Path, outputs: str, status: str) -> None:
    body = "{ y = Relu(x) \n z = Neg(x) \n x2 = Abs(x) }"
    one = save_text(tmp_path / "a.onnx", f"g (float[4] x) => (float[4] y, float[4] z) {body}")
    typed = ", ".join(f"float[4] {name}" for name in outputs.split(", "))
    two = save_text(tmp_path / "b.onnx", f"g (float[4] x) => ({typed}) {body}")
    assert verdict(one, two)[0] == status


def test_a_sequence_output_has_a_noise_floor(tmp_path: Path) -> None:
    tail = [helper.make_node("SequenceConstruct", ["m", "x"], ["y"])]
    one = save_scaled(tmp_path / "a.onnx", tail, "sequence")
    two = save_scaled(tmp_path / "b.onnx", tail, "sequence", first=True)
    assert verdict(one, two)[0] == "passed"
    assert verdict(one, two, "exact")[0] == "failed"
    wrong = [helper.make_node("Neg", ["m"], ["n"]), helper.make_node("SequenceConstruct", ["n", "x"], ["y"])]
    three = save_scaled(tmp_path / "c.onnx", wrong, "sequence")
    assert verdict(one, three)[0] == "failed"


def test_feeds_that_cannot_be_moved_by_one_ulp_are_no_error(tmp_path: Path) -> None:
    text = """g (float n) => (float[K] y) <float zero = {0}, float one = {1}, float[4] w = {1, 2, 3, 4}>
        { r = Range(zero, n, one) \n y = Add(r, w) }"""
    path = save_text(tmp_path / "a.onnx", text)
    np.savez(tmp_path / "feeds.npz", n=np.float32(4))  # an ulp more, and there are five elements
    assert verdict(path, path, data=tmp_path / "feeds.npz")[0] == "passed"


def test_numerics_each_judges_by_the_loosest_pass_so_far(tmp_path: Path) -> None:
    tail = [helper.make_node("Identity", ["m"], ["i"]), helper.make_node("Relu", ["i"], ["y"])]
    path = save_scaled(tmp_path / "a.onnx", tail)
    options = graphopt.Options(passes="fuse-matmul-scale,eliminate-identity", numerics="each", repro=None)
    result = graphopt.optimize(path, options=options)
    assert result.run.effects() == {"fuse-matmul-scale": 1, "eliminate-identity": 1}
    assert (result.numerics.status, result.numerics.tolerance) == ("passed", "reassociates")
    options = graphopt.Options(passes="eliminate-identity", numerics="each", repro=None)
    assert graphopt.optimize(path, options=options).numerics.tolerance == "exact"


@dataclass(frozen=True)
class BreakNames(Pass):
    """Gives the output of a Relu the name of an input."""

    name = "break-names"

    def run(self, model: Any, ctx: Any) -> None:
        node = next((node for node in model.graph if node.op_type == "Relu"), None)
        if node is not None and node.outputs[0].name != "x":
            ctx.rewriter.count(node)
            node.outputs[0].name = "x"


def test_bisect_does_not_blame_rounding_for_a_broken_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", {"break-names": BreakNames})
    tail = [helper.make_node("Relu", ["m"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    path = save_scaled(tmp_path / "a.onnx", tail)
    blame = bisect(path, options=graphopt.Options(passes="fuse-matmul-scale,break-names", repro=None))
    assert blame.rewrite is not None
    assert (blame.rewrite.pass_name, blame.rewrite.number) == ("break-names", 2)


@pytest.mark.parametrize("differs", [True, False])
def test_only_numbers_that_differ_are_a_matter_for_bisect(differs: bool, tmp_path: Path) -> None:
    text = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
    path = save_text(tmp_path / "model.onnx", text)
    job = driver._Job(path, None, Options(), tmp_path)
    details = {"outputs": [{"name": "y"}] if differs else []}
    with pytest.raises(VerificationError) as caught:
        job.judge(Numbers("failed", "the reason", details=details))
    assert ("graphopt bisect" in str(caught.value)) is differs
