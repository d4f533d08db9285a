"""convert-float16 beyond its golden cases: options, targets, interrupted runs, large weights, the table it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibrating import Calibrating
from graphopt.errors import GraphoptError
from graphopt.ir import make_typetable
from graphopt.ir.constants import model_bytes
from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.typetable import operands
from graphopt.ir.verifier import Interface, verify
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
NET = """g (float[N, 3, 8, 8] x) => (float[N, 5] y)
  <float[8, 3, 3, 3] w, float[8] b, float[8, 5] v, int64[2] axes = {2, 3}> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu (c)
  m = ReduceMean <keepdims = 0> (r, axes)
  z = MatMul (m, v)
  y = Softmax <axis = -1> (z) }"""


def model_of(text: str) -> Any:
    model = from_text(text if text.startswith("<") else f"{HEAD}\n{text}")
    name_nodes(model)
    return model


def convert(model: Any, spec: str = "convert-float16", target: str | None = None, limit: int | None = None) -> Context:
    chosen = registry.make_target(target) if target else None
    ctx = Context(model, target=chosen, limit=limit)
    interface = Interface.of(model)
    run(model, parse(spec), ctx)
    verify(model, interface)
    return ctx


def halves(model: Any) -> list[str]:
    """Ops that make float16, in the order of the graph."""
    return [n.op_type for n in all_nodes(model) if any(out.dtype == ir.DataType.FLOAT16 for out in n.outputs)]


def reasons(ctx: Context) -> dict[str, str]:
    return {r.op: r.reason for r in ctx.remarks if r.status == "missed"}


def notes(ctx: Context) -> str:
    return "\n".join(r.reason for r in ctx.remarks if r.status == "note")


def cosine(a: Any, b: Any) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_halves_the_weights_and_keeps_numbers_and_interface(run_model: Any) -> None:
    before, model = model_of(NET), model_of(NET)
    ctx = convert(model)
    assert halves(model) == ["Cast", "Conv", "Relu", "ReduceMean", "MatMul", "Softmax"]
    floats = model_bytes(before) - 16  # without the axes
    assert model_bytes(model) == floats // 2 + 16
    assert f"5 nodes run in float16, 0 stay in float32; {floats // 2} bytes" in notes(ctx)
    assert "only constants were checked" in notes(ctx)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    want, got = run_model(before, feeds)["y"], run_model(model, feeds)["y"]
    assert got.dtype == np.float32
    assert cosine(want, got) > 0.99999 and not np.array_equal(want, got)


def test_second_run_changes_nothing() -> None:
    model = model_of(NET)
    assert convert(model).rewriter.changes == 5
    again = convert(model)
    assert again.rewriter.changes == 0
    assert not notes(again)


@pytest.mark.parametrize("limit", range(6))
def test_an_interrupted_run_leaves_a_model_that_runs(limit: int, run_model: Any) -> None:
    model = model_of(NET)
    ctx = convert(model, limit=limit)
    assert ctx.rewriter.changes == min(limit, 5)
    unused = [v.name for v in model.graph.initializers.values() if not v.uses()]
    assert not unused
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32)}
    assert cosine(run_model(model_of(NET), feeds)["y"], run_model(model, feeds)["y"]) > 0.99999


def test_keep_names_ops_and_sites() -> None:
    model = model_of(NET)
    ctx = convert(model, "convert-float16{keep=[Conv MatMul_0]}")
    assert halves(model) == [] and ctx.rewriter.changes == 0
    assert reasons(ctx)["Conv"] == reasons(ctx)["MatMul"] == "stays in float32: asked for by keep"
    model = model_of(NET)
    convert(model, "convert-float16{keep=[Softmax]}")
    assert halves(model) == ["Cast", "Conv", "Relu", "ReduceMean", "MatMul"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("convert-float16{keep=[MatMull]}", "keep=MatMull is neither an op nor a node of the model.*MatMul"),
        ("convert-float16{max=0}", "max=0 is not above 0 and at most 65504"),
        ("convert-float16{max=1e5}", "max=100000 is not above 0 and at most 65504"),
        ("convert-float16{ranges=missing.json}", "missing.json: cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(GraphoptError, match=message) as caught:
        convert(model_of(NET), spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "not a list"),
        ('{"c": [1]}', r"wants \[min, max\] for 'c', not \[1\]"),
        ('{"c": [2, 1]}', "wants .min, max. for 'c'"),
        ('{"c": [NaN, 1]}', "wants .min, max. for 'c'"),
        ('{"c": [true, 1]}', "wants .min, max. for 'c'"),
        ('{"other": [0, 1]}', "none of its 1 values is in the model"),
    ],
)
def test_ranges_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(text)
    with pytest.raises(GraphoptError, match=message):
        convert(model_of(NET), f'convert-float16{{ranges="{path}"}}')


def test_observed_ranges_keep_what_overflows(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"c": [-7.0, 70000.0], "m": [-1, 1]}))
    model = model_of(NET)
    ctx = convert(model, f'convert-float16{{ranges="{path}"}}')
    assert halves(model) == ["Cast", "MatMul", "Softmax"]
    assert reasons(ctx)["Conv"] == "stays in float32: 'c' reached 7e+04 on the data"
    assert "only constants" not in notes(ctx)
    path.write_text(json.dumps({"c": [-7.0, 700.0]}))
    model = model_of(NET)
    convert(model, f'convert-float16{{ranges="{path}"}}')
    assert "Conv" in halves(model)
    model = model_of(NET)
    convert(model, f'convert-float16{{max=500 ranges="{path}"}}')
    assert "Conv" not in halves(model)


def test_calibration_data_keeps_what_overflows(tmp_path: Path) -> None:
    def converted(scale: float, spec: str = "convert-float16") -> tuple[Any, Context]:
        model = model_of(NET)
        x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32) * np.float32(scale)
        ctx = Context(model, calibration=Calibrating(model, {"x": x}, tmp_path))
        run(model, parse(spec), ctx)
        return model, ctx

    model, ctx = converted(1)
    assert halves(model) == ["Cast", "Conv", "Relu", "ReduceMean", "MatMul", "Softmax"]
    assert "only constants" not in notes(ctx)
    model, ctx = converted(1e6)
    assert "Conv" not in halves(model) and "reached" in reasons(ctx)["Conv"]
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"c": [-1, 1]}))  # what the user says goes before what is observed
    model, _ = converted(1e6, f'convert-float16{{ranges="{path}"}}')
    assert "Conv" in halves(model)


def test_a_value_that_is_infinite_on_the_data_stays(tmp_path: Path) -> None:
    model = model_of("g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { t = Exp (x) \n y = MatMul (t, w) }")
    x = np.full((2, 4), 200, np.float32)
    ctx = Context(model, calibration=Calibrating(model, {"x": x}, tmp_path))
    run(model, parse("convert-float16"), ctx)
    assert halves(model) == [] and "inf" in reasons(ctx)["MatMul"]


def test_the_target_decides_about_kernels() -> None:
    text = "g (float[4, 4] x) => (float[4, 4] y, float[4, 4] z) <float[4, 4] w> {"
    text += " t = MatMul (x, w) \n y = Softplus (t) \n z = Atan (t) }"
    model = model_of(text)
    ctx = convert(model, target="cuda")
    assert halves(model) == ["Cast", "MatMul", "Softplus"]
    assert reasons(ctx)["Atan"] == "stays in float32: ONNX Runtime's CUDA provider has no kernel for Atan"
    model = model_of(text)
    convert(model)
    assert halves(model) == ["Cast", "MatMul", "Softplus", "Atan"]


MASK = """g (float[2, 4] x, {kind}[2, 4] mask) => (float[2, 4] y{more}) <float[4, 4] w, float low = {{-3.4e38}}> {{
  m = Cast <to = 1> (mask)
  bias = Mul (m, low)
  t = MatMul (x, w)
  s = Add (t, bias)
  y = {last} (s) }}"""


@pytest.mark.parametrize(
    ("kind", "more", "last", "cut"),
    [
        ("int64", "", "Softmax", True),
        ("bool", "", "Softmax", True),
        ("double", "", "Softmax", False),  # 0.001 * low masks, and 0.001 * the cut would not
        ("int64", ", float[2, 4] bias", "Softmax", False),
        ("int64", "", "LogSoftmax", False),
    ],
)
def test_only_masks_are_cut(kind: str, more: str, last: str, cut: bool, run_model: Any) -> None:
    text = MASK.format(kind=kind, more=more, last=last)
    before, model = model_of(text), model_of(text)
    ctx = convert(model)
    assert ("Add" in halves(model)) is cut
    assert ("cut at 32752, as it only masks a Softmax: 'low'" in notes(ctx)) is cut
    mask = np.array([[0, 1, 0, 1], [1, 1, 1, 1]])  # partly and fully masked
    types = {"int64": np.int64, "bool": np.bool_, "double": np.float64}
    feeds = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4), "mask": mask.astype(types[kind])}
    want, got = run_model(before, feeds)["y"], run_model(model, feeds)["y"]
    np.testing.assert_allclose(got[0], want[0], rtol=2e-3, atol=1e-6)
    # A row that is masked altogether has no right answer; it must be a distribution all the same, and no NaN.
    if last == "Softmax":
        np.testing.assert_allclose(got[1].sum(), 1, rtol=2e-3)


def test_bounds_of_clip_beyond_the_range_are_cut(run_model: Any) -> None:
    text = "g (float[2, 4] x) => (float[2, 4] y) <float[4, 4] w, float low = {0}, float high = {3e38}> {"
    text += " t = MatMul (x, w) \n y = Clip (t, low, high) }"
    model = model_of(text)
    convert(model)
    assert halves(model) == ["Cast", "MatMul", "Clip"]
    assert [float(v.const_value.numpy()) for v in model.graph.initializers.values() if v.name == "high_half"] == [65504]
    feeds = {"x": np.full((2, 4), 0.5, np.float32)}
    np.testing.assert_allclose(run_model(model, feeds)["y"], run_model(model_of(text), feeds)["y"], rtol=2e-3)


def test_what_is_too_large_stays_so_around_a_loop() -> None:
    model = model_of("""g (float[2, 2] x, int64 n) => (float[2, 2] y)
      <float[2, 2] w, bool go = {1}, float big = {1e6}> {
      t = Loop (n, go, x) <body = b (int64 i, bool c, float[2, 2] v) => (bool d, float[2, 2] u) {
        d = Identity (c)
        p = MatMul (v, w)
        u = Mul (p, big) }>
      y = MatMul (t, w) }""")
    ctx = convert(model)
    assert halves(model) == []
    assert "1e+06" in reasons(ctx)["MatMul"]


def test_function_bodies_stay() -> None:
    model = model_of("""<ir_version: 10, opset_import: ["": 21, "local": 1]>
      g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w> { t = MatMul (x, w) \n y = local.twice (t) }
      <domain: "local", opset_import: ["": 21]> twice (x) => (y) { y = MatMul (x, x) }""")
    ctx = convert(model)
    assert halves(model) == ["Cast", "MatMul"]
    assert "inline-functions opens it" in reasons(ctx)["twice"]


def test_a_weight_used_in_both_types_is_there_twice() -> None:
    model = model_of("""g (float[4, 4] x) => (float[4, 4] y, float[4, 4] z) <float[4, 4] w> {
      y = MatMul (x, w) \n z = Pow (w, w) }""")
    convert(model)
    assert {v.name: v.dtype.name for v in model.graph.initializers.values()} == {"w": "FLOAT", "w_half": "FLOAT16"}


def test_large_weights_are_converted_when_they_are_read() -> None:
    rows = (4 << 20) // 1024 + 1
    model = model_of(f"g (float[1, {rows}] x, float[{rows}, 1024] w) => (float[1, 1024] y) {{ y = MatMul (x, w) }}")
    weight = np.full((rows, 1024), 0.1, np.float32)
    value = model.graph.inputs.pop(1)
    value.const_value = ir.Tensor(weight, name="w")
    model.graph.register_initializer(value)
    convert(model)
    (half,) = model.graph.initializers.values()
    assert isinstance(half.const_value, ir.LazyTensor)
    assert half.const_value.nbytes == weight.nbytes // 2
    np.testing.assert_array_equal(half.const_value.numpy(), weight.astype(np.float16))


@pytest.mark.parametrize("name", ["cuda{precision=fp16}", "onnxruntime{device=cuda precision=fp16}"])
def test_precision_of_the_target(name: str) -> None:
    target = registry.make_target(name)
    assert str(target) == name
    names = [item.name for item in parse(target.pipeline(2)).passes()]
    assert names.index("convert-float16") > names.index("fuse-attention")
    assert [item.name for item in parse(target.pipeline(0)).passes()] == ["convert-float16"]
    plain = registry.make_target(name.replace("precision=fp16", "precision=fp32"))
    assert "precision" not in str(plain) and plain.pipeline(2) == "O2"


def test_the_cpu_has_no_half_precision() -> None:
    with pytest.raises(GraphoptError, match="precision=fp16 needs device=cuda"):
        registry.make_target("onnxruntime{precision=fp16}")
    with pytest.raises(GraphoptError, match="precision"):
        registry.make_target("cuda{precision=fp8}")


def test_type_table_is_that_of_the_installed_schemas() -> None:
    assert json.loads(make_typetable.OUT.read_text()) == make_typetable.build()


def test_type_table_reads_versions_groups_and_repeats() -> None:
    resize = operands("", "Resize", 21)
    assert resize is not None and resize.input_allows(0, "FLOAT16") and not resize.input_allows(2, "FLOAT16")
    concat = operands("", "Concat", 21)
    assert concat is not None and concat.input_allows(9, "BFLOAT16") and concat.output_allows(0, "FLOAT16")
    assert operands("", "Conv", 21) != operands("", "Conv", 22)  # bfloat16 came with 22
    conv = operands("", "Conv", 21)
    assert conv is not None and not conv.input_allows(7, "FLOAT16")
    assert operands("", "Not", 21) is None and operands("elsewhere", "Conv", 1) is None
