"""integer-io: codes under the same names, conversions gone where the model has codes, and the loss is measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graphopt import driver
from graphopt.calibrating import Calibrating
from graphopt.codes import float_facing
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.ir.writer import write
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.quantization.interface import KEY, read_codes
from graphopt.target import TensorSpec

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
NET = """g (float[N, 3, 8, 8] x, int64[K] k) => (float[N, 5] y, int64[K] i) <float[8, 3, 3, 3] w, float[8, 5] v> {
  i = Identity (k)
  c = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (c)
  m = GlobalAveragePool (r)
  f = Flatten (m)
  y = MatMul (f, v) }"""
FEEDS = {
    "x": np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32),
    "k": np.arange(3, dtype=np.int64),
}
STATIC = "quantize-static{method=minmax saturation=safe}"


def made(passes: str, folder: Path, net: str = NET, feeds: Any = None) -> tuple[Any, Context]:
    model = from_text(f"{HEAD}\n{net}")
    name_nodes(model)
    ctx = Context(model, calibration=Calibrating(model, [FEEDS if feeds is None else feeds], folder))
    run(model, parse(passes), ctx)
    verify(model, Interface.of(model))
    return model, ctx


def test_codes_take_the_place_of_floats(tmp_path: Path, run_model: Any) -> None:
    plain, _ = made(STATIC, tmp_path)
    model, ctx = made(f"{STATIC},integer-io,to-qoperator,dce", tmp_path)
    types = {value.name: value.dtype.name for value in (*model.graph.inputs, *model.graph.outputs)}
    assert types == {"x": "UINT8", "k": "INT64", "y": "UINT8", "i": "INT64"}
    ops = [node.op_type for node in model.graph]
    # The first convolution reads the codes as they come, the last product gives codes.
    assert ops.count("QLinearConv") == ops.count("QLinearMatMul") == 1 and "Conv" not in ops and "MatMul" not in ops
    assert not [name for name, value in model.graph.initializers.items() if not value.uses()]
    codes = read_codes(model)
    assert set(codes) == {"x", "y"}
    assert {remark.site for remark in ctx.remarks if remark.pass_name == "integer-io"} == {"x", "y"}
    x = np.clip(np.rint(FEEDS["x"] / codes["x"].scale) + codes["x"].zero_point, 0, 255).astype(np.uint8)
    got = run_model(model, {"x": x, "k": FEEDS["k"]})["y"]
    real = (got.astype(np.float32) - codes["y"].zero_point) * codes["y"].scale
    want = run_model(plain, FEEDS)["y"]
    assert got.dtype == np.uint8
    assert np.abs(real - want).max() <= 2 * codes["y"].scale + 0.02 * np.abs(want).max()


@pytest.mark.parametrize("ends", ["inputs", "outputs"])
def test_one_end_alone(ends: str, tmp_path: Path) -> None:
    model, _ = made(f"{STATIC},integer-io{{{ends}=false}}", tmp_path)
    assert (model.graph.inputs[0].dtype.name == "FLOAT") == (ends == "inputs")
    assert (model.graph.outputs[0].dtype.name == "FLOAT") == (ends == "outputs")


def test_a_float_model_gets_ranges_from_samples(tmp_path: Path, run_model: Any) -> None:
    model, _ = made("integer-io{type=int8}", tmp_path)
    codes = read_codes(model)
    assert codes["x"].type.name == "int8"
    low, high = FEEDS["x"].min(), FEEDS["x"].max()
    assert np.isclose(float(codes["x"].scale), (high - low) / 255, rtol=1e-3)
    ops = [node.op_type for node in model.graph]
    assert ops.count("DequantizeLinear") == 1 and ops.count("QuantizeLinear") == 1


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    model, ctx = made(f"{STATIC},integer-io,integer-io", tmp_path)
    assert len([remark for remark in ctx.remarks if remark.pass_name == "integer-io"]) == 2
    assert len(read_codes(model)) == 2


@pytest.mark.parametrize("before", [f"{STATIC},", ""])
def test_no_constant_is_left_behind(tmp_path: Path, before: str) -> None:
    model, _ = made(f"{before}integer-io", tmp_path)
    assert not [name for name, value in model.graph.initializers.items() if not value.uses()]


def test_the_loss_is_measured_and_gates_judge_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = NET.replace(", int64[K] k", "").replace(", int64[K] i", "").replace("  i = Identity (k)\n", "")
    write(from_text(f"{HEAD}\n{net}"), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=FEEDS["x"])
    options = Options(passes=f"{STATIC},integer-io", calibration_data=Path("x.npz"), gates=("cosine>=0.99", "sqnr>=20"))
    artifact = driver.compile("model.onnx", "cpu", "out", options)
    assert artifact.manifest["interface"]["inputs"][0]["type"] == "UINT8"
    assert artifact.manifest["numerics"]["status"] == "passed"
    from graphopt.running import runnable

    with runnable("out").open() as codes, runnable("out").open_float() as floats:
        assert [spec.type for spec in (*codes.inputs, *codes.outputs)] == ["tensor(uint8)"] * 2
        assert [spec.type for spec in (*floats.inputs, *floats.outputs)] == ["tensor(float)"] * 2
        assert floats.run({"x": FEEDS["x"]})["y"].dtype == np.float32
        assert len(floats.time({"x": FEEDS["x"]}, 2)) == 2


def test_metadata_that_says_something_else_is_refused(tmp_path: Path) -> None:
    model = from_text(f"{HEAD}\n{NET}")
    model.metadata_props[KEY] = '{"x": 3}'
    write(model, tmp_path / "model.onnx")
    runner = SimpleNamespace(inputs=(TensorSpec("x", "tensor(uint8)", None),), outputs=())
    with pytest.raises(GraphoptError, match=r"the model's metadata 'graphopt.codes' cannot be read"):
        float_facing(tmp_path / "model.onnx", runner)  # type: ignore[arg-type]
