"""`keep_io=false` of the half-precision passes: the interface changes, says so, and numbers are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import driver, ir
from graphopt.driver import Options
from graphopt.errors import VerificationError
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text, to_text
from graphopt.ir.verifier import Interface, verify
from graphopt.ir.writer import write
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.running import runnable

HEAD = '<ir_version: 10, opset_import: ["": 22]>'
NET = """g (float[N, 3, 8, 8] x, int64[K] k) => (float[N, 5] y, int64[K] i) <float[8, 3, 3, 3] w, float[8, 5] v> {
  i = Identity (k)
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  m = GlobalAveragePool (r)
  f = Flatten (m)
  y = MatMul (f, v) }"""
PLAIN = NET.replace(", int64[K] k", "").replace(", int64[K] i", "").replace("  i = Identity (k)\n", "")
SPEC = "convert-float16{keep_io=false}"


def model_of(text: str = NET) -> Any:
    model = from_text(f"{HEAD}\n{text}")
    name_nodes(model)
    return model


def converted(model: Any, spec: str = SPEC, limit: int | None = None) -> Context:
    ctx = Context(model, limit=limit)
    run(model, parse(spec), ctx)
    verify(model)
    return ctx


def types(model: Any) -> list[str]:
    return [value.dtype.name for value in (*model.graph.inputs, *model.graph.outputs)]


@pytest.mark.parametrize(("name", "type_"), [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_float32_ends_change_and_no_cast_is_left(name: str, type_: str) -> None:
    model = model_of()
    ctx = converted(model, f"convert-{name}{{keep_io=false}}")
    assert types(model) == [type_, "INT64", type_, "INT64"]
    assert "Cast" not in {node.op_type for node in model.graph}
    applied = {remark.site: remark.reason for remark in ctx.remarks if remark.status == "applied" and not remark.op}
    assert applied == {"x": f"{name} instead of float32", "y": f"{name} instead of float32"}


def test_the_change_is_declared_only_where_it_is_asked_for() -> None:
    assert [item.changes_interface for item in parse(f"{SPEC},convert-float16").passes()] == [True, False]
    before = Interface.of(model_of())
    model = model_of()
    converted(model, "convert-float16")
    verify(model, before)
    converted(model)
    with pytest.raises(VerificationError, match=r"input 'x' changed from .*FLOAT.* to .*FLOAT16"):
        verify(model, before)


def test_a_second_run_changes_nothing() -> None:
    model = model_of()
    converted(model)
    text = to_text(model)
    assert converted(model).rewriter.changes == 0 and to_text(model) == text


def test_the_spec_parses_back() -> None:
    assert str(parse(SPEC)) == SPEC and str(parse("convert-float16{keep_io=true}")) == "convert-float16"


@pytest.mark.parametrize("limit", range(7))
def test_an_interrupted_run_leaves_a_model_that_runs(limit: int, run_model: Any) -> None:
    model = model_of()
    total = converted(model_of()).rewriter.changes
    ctx = converted(model, limit=limit)
    assert total == 6 and ctx.rewriter.changes == min(limit, total)
    type_ = np.float16 if limit >= total else np.float32
    got = run_model(model, {"x": np.ones((1, 3, 8, 8), type_), "k": np.arange(3)})["y"]
    want = run_model(model_of(), {"x": np.ones((1, 3, 8, 8), np.float32), "k": np.arange(3)})["y"]
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=1e-2, atol=1e-2)


def test_what_the_data_shows_out_of_range_stays(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"x": [0, 1e5], "y": [-1, 1]}))
    model = model_of()
    ctx = converted(model, f'convert-float16{{ranges="{path}" keep_io=false}}')
    assert types(model) == ["FLOAT", "INT64", "FLOAT16", "INT64"]
    assert [remark.reason for remark in ctx.remarks if remark.site == "x"] == [
        "stays float32: 'x' reached 1e+05 on the data"
    ]


def test_users_of_another_type_read_what_came_in(run_model: Any) -> None:
    text = """g (float[N, 4] x) => (double[N, 4] d, float16[N, 4] h, float[N, 4] e) <float[4, 4] w> {
      d = Cast <to = 11> (x)
      h = Cast <to = 10> (x)
      t = MatMul (x, w)
      e = Exp (x) }"""
    model = model_of(text)
    converted(model)
    assert types(model) == ["FLOAT16", "DOUBLE", "FLOAT16", "FLOAT16"]
    x = np.linspace(-1, 1, 8, dtype=np.float16).reshape(2, 4)
    got = run_model(model, {"x": x})
    np.testing.assert_array_equal(got["d"], x.astype(np.float64))
    np.testing.assert_array_equal(got["h"], x)
    np.testing.assert_array_equal(got["e"], np.exp(x.astype(np.float32)).astype(np.float16))


def compiled(folder: Path, passes: str, *gates: str) -> Any:
    write(from_text(f"{HEAD}\n{PLAIN}"), folder / "model.onnx")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32))
    options = Options(passes=passes, calibration_data=folder / "x.npz", gates=gates)
    return driver.compile(folder / "model.onnx", "cpu", folder / "out", options)


def test_the_loss_is_measured_in_float32_and_gates_judge_it(tmp_path: Path) -> None:
    artifact = compiled(tmp_path, SPEC, "cosine>=0.999", "sqnr>=40")
    assert artifact.manifest["interface"]["inputs"][0]["type"] == "FLOAT16"
    assert artifact.manifest["interface"]["outputs"][0]["type"] == "FLOAT16"
    assert artifact.manifest["numerics"]["status"] == "passed"
    numerics = artifact.report["numerics"]
    assert 0 < numerics["outputs"][0]["max_rel"] < 4e-3
    assert any("compared as float32" in note and "x, y" in note for note in numerics["notes"])
    with runnable(tmp_path / "out").open() as halves, runnable(tmp_path / "out").open_float() as floats:
        assert [spec.type for spec in (*halves.inputs, *halves.outputs)] == ["tensor(float16)"] * 2
        assert [spec.type for spec in (*floats.inputs, *floats.outputs)] == ["tensor(float)"] * 2
        x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
        got = floats.run({"x": x})["y"]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, halves.run({"x": x.astype(np.float16)})["y"].astype(np.float32))


def test_wrong_weights_behind_a_half_interface_are_seen(tmp_path: Path) -> None:
    from graphopt.reference import Reference
    from graphopt.targets.onnxruntime.runner import runner_factory

    write(from_text(f"{HEAD}\n{PLAIN}"), tmp_path / "model.onnx")
    model = model_of(PLAIN)
    converted(model)
    write(model, tmp_path / "right.onnx")
    weight = model.graph.initializers["v_half"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name="v_half")
    write(model, tmp_path / "wrong.onnx")
    with Reference.open(tmp_path / "model.onnx", model_of(PLAIN), runner_factory()) as reference:
        right = reference.judge(tmp_path / "right.onnx", "lossy").outputs[0].max_rel
        wrong = reference.judge(tmp_path / "wrong.onnx", "lossy").outputs[0].max_rel
    assert right < 4e-3 and 0.5 < wrong < 2
    # A reference in half precision is fed and compared in half precision.
    converted_model = ir.load(tmp_path / "right.onnx")
    with Reference.open(tmp_path / "right.onnx", converted_model, runner_factory()) as reference:
        assert reference.cases[0].feeds["x"].dtype == np.float16
        report = reference.judge(tmp_path / "right.onnx", "exact")
    assert report.status == "passed" and not any("compared as float32" in note for note in report.notes)
