"""convert-opset: the numbers of old nodes in the new opset, bit for bit, and that nothing is converted by halves."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import GraphoptError
from graphopt.ir import optable
from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.ir.verifier import Interface, verify
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run
from graphopt.passes.capture._opset_rules import rules
from graphopt.passes.capture._opset_table import NEWEST, unchanged

# opset: nodes. x is float[2, 4, 6, 6], y comes out. Weights without data are seeded by their names.
CASES = {
    "avgpool-ceil": (7, "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)"),
    "avgpool-ceil-include-pad": (
        10,
        (
            "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1, "
            "count_include_pad = 1> (x)"
        ),
    ),
    "avgpool-ceil-11": (
        11,
        "y = AveragePool <kernel_shape = [2, 3], strides = [3, 3], pads = [0, 1, 0, 1], ceil_mode = 1> (x)",
    ),
    "batchnorm-7": (7, "y = BatchNormalization <spatial = 1, epsilon = 0.001> (x, four, bias4, mean4, var4)"),
    "batchnorm-9": (9, "y = BatchNormalization (x, four, bias4, mean4, var4)"),
    "clip-both": (7, "y = Clip <min = -0.5, max = 0.25> (x)"),
    "clip-low": (10, "y = Clip <min = 0.0> (x)"),
    "clip-none": (8, "y = Clip (x)"),
    "dropout-7": (7, "y = Dropout <ratio = 0.3> (x)"),
    "dropout-10": (10, "t, mask = Dropout (x) \n y = Relu (t)"),
    "hardmax": (9, "y = Hardmax <axis = 1> (x)"),
    "logsoftmax": (11, "y = LogSoftmax <axis = 2> (x)"),
    "lppool": (7, "y = LpPool <kernel_shape = [3, 3], p = 2, strides = [2, 2]> (x)"),
    "maxpool-7": (7, "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (x)"),
    "maxpool-10": (10, "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)"),
    "pad-constant": (7, 'y = Pad <mode = "constant", pads = [0, 0, 1, 1, 0, 0, 2, 0], value = 1.5> (x)'),
    "pad-zero": (10, "y = Pad <pads = [0, 1, 1, 1, 0, 0, 2, 0]> (x)"),
    "pad-reflect": (9, 'y = Pad <mode = "reflect", pads = [0, 0, 1, 1, 0, 0, 2, 0]> (x)'),
    "resize-10-nearest": (10, 'y = Resize <mode = "nearest"> (x, up)'),
    "resize-10-down": (10, 'y = Resize <mode = "nearest"> (x, down)'),
    "resize-10-linear": (10, 'y = Resize <mode = "linear"> (x, up)'),
    "resize-11-linear": (
        11,
        'y = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (x, none, up)',
    ),
    "resize-11-pytorch": (
        11,
        'y = Resize <mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"> (x, none, down)',
    ),
    "resize-11-cubic": (11, 'y = Resize <mode = "cubic", cubic_coeff_a = -0.75> (x, none, up)'),
    "resize-11-sizes": (11, 'y = Resize <mode = "nearest", nearest_mode = "round_prefer_ceil"> (x, none, none, sizes)'),
    "resize-13-sizes": (
        13,
        'y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , sizes)',
    ),
    "scatter-9": (9, "y = Scatter <axis = 2> (x, index, updates)"),
    "slice-all": (7, "y = Slice <starts = [1, -3], ends = [3, 100], axes = [1, 3]> (x)"),
    "slice-no-axes": (9, "y = Slice <starts = [0, 1], ends = [1, 3]> (x)"),
    "softmax-default": (7, "y = Softmax (x)"),
    "softmax-axis-0": (9, "y = Softmax <axis = 0> (x)"),
    "softmax-last": (11, "y = Softmax <axis = 3> (x)"),
    "softmax-negative": (11, "y = Softmax <axis = -2> (x)"),
    "softmax-pooled": (8, "t = GlobalAveragePool (x) \n y = Softmax <axis = 1> (t)"),
    "split-even": (7, "y, b = Split <axis = 1> (x)"),
    "split-sizes": (11, "a, y = Split <axis = 1, split = [3, 1]> (x)"),
    "split-input-13": (13, "a, y = Split <axis = 1> (x, three_one)"),
    "split-even-13": (13, "a, y = Split <axis = 3> (x)"),
    "squeeze": (7, "t = Unsqueeze <axes = [0, 3]> (x) \n u = Relu (t) \n y = Squeeze <axes = [3]> (u)"),
    "squeeze-all": (11, "t = Unsqueeze <axes = [-1]> (x) \n u = Relu (t) \n y = Squeeze (u)"),
    "topk-1": (7, "y, i = TopK <k = 2, axis = 3> (x)"),
    "topk-10": (10, "y, i = TopK <axis = 1> (x, two)"),
    "upsample-7": (7, 'y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]> (x)'),
    "upsample-7-linear": (8, 'y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 2.5]> (x)'),
    "upsample-9": (9, 'y = Upsample <mode = "nearest"> (x, up)'),
    "roi-align": (10, "y = RoiAlign <output_height = 2, output_width = 2, spatial_scale = 0.5> (x, rois, batch)"),
    "grid-sample": (16, 'y = GridSample <mode = "bilinear", align_corners = 1> (x, grid)'),
    "grid-sample-cubic": (16, 'y = GridSample <mode = "bicubic", padding_mode = "border"> (x, grid)'),
    "group-norm": (18, "y = GroupNormalization <num_groups = 2> (x, two_f, bias2)"),
    "group-norm-computed": (18, "s = Neg (two_f) \n y = GroupNormalization <num_groups = 2> (x, s, bias2)"),
    "dft": (17, "t = Unsqueeze (x, last) \n y = DFT <axis = 2, onesided = 1> (t)"),
    "prelu-7": (7, "y = PRelu (x, slope)"),
    "lrn": (7, "y = LRN <size = 3> (x)"),
    "gemm-7": (7, "t = Flatten (x) \n y = Gemm <transB = 1, alpha = 0.5> (t, wide, two_f)"),
    "lstm-7": (7, "t = Squeeze <axes = [0]> (first) \n y, h = LSTM <hidden_size = 2> (t, lstm_w, lstm_r)"),
    "if-softmax": (
        10,
        """ok = Constant <value = bool {1}> ()
        y = If (ok) <then_branch = g () => (float[2, 4, 6, 6] a) { a = Softmax <axis = 1> (x) },
                     else_branch = h () => (float[2, 4, 6, 6] b) { b = Clip <min = 0.0> (x) }>""",
    ),
    **{
        f"reduce-{name.lower()}": (11, f"t = Abs (x) \n y = Reduce{name} <axes = [1, -1], keepdims = {keep}> (t)")
        for keep, name in enumerate(
            ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
        )
        for keep in [keep % 2]
    },
    "reduce-all": (7, "y = ReduceMean <keepdims = 0> (x)"),
    "reduce-sum-all": (12, "y = ReduceSum (x)"),
}
DECLARED = """<float[4] four, float[4] bias4, float[4] mean4, float[4] var4, float[4] up = {1, 1, 2, 1.5},
    float[4] down = {1, 1, 0.5, 0.7},
    float[0] none = {}, int64[4] sizes = {2, 4, 9, 5},
    int64[2, 4, 6, 6] index, float[2, 4, 6, 6] updates, int64[2] three_one = {3, 1},
    int64[1] two = {2}, float[3, 4] rois = {0, 0, 5, 5, 1, 1, 8, 9, 2, 0, 11, 4}, int64[3] batch = {0, 1, 1},
    float[2, 3, 3, 2] grid,
    float[2] two_f = {0.5, -2}, float[2] bias2, int64[1] last = {-1}, float[4, 1, 1] slope, float[2, 144] wide,
    float[1, 3, 2, 4] first, float[1, 8, 4] lstm_w, float[1, 8, 2] lstm_r>"""


def _model(opset: int, nodes: str) -> Any:
    ir_version = 10 if opset >= 13 else 7
    words = re.findall(r"\w+", nodes)
    used = ", ".join(part for part in _declared() if part.split("=")[0].split()[-1] in words)
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
    text = f"{head} g (float[2, 4, 6, 6] x) => (y) <{used}> {{ {nodes} }}"
    model = from_text(text)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    name_nodes(model)
    return model


def _declared() -> list[str]:
    return re.findall(r"(?:float|int64)\[[^\]]*\] \w+(?: = \{[^}]*\})?", DECLARED)


def _same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("title", CASES)
@pytest.mark.parametrize("to", [21, 23])
def test_the_numbers_stay_bit_for_bit(title: str, to: int, run_model: Any) -> None:
    opset, nodes = CASES[title]
    if title == "roi-align" and to > 21:
        pytest.skip("ONNX Runtime has no kernel for RoiAlign of opset 22")
    model, before = _model(opset, nodes), _model(opset, nodes)
    result = run(model, parse(f"convert-opset{{to={to}}}"), Context(model))
    assert model.opset_imports[""] == to, [remark.reason for remark in result.ctx.remarks]
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    want, got = run_model(before, {"x": x})["y"], run_model(model, {"x": x})["y"]
    if "avgpool" in title:  # the runtime's kernel for opset 19 and later divides instead of multiplying
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
        return
    assert _same_bits(want, got), np.abs(want - got).max() if want.shape == got.shape else (want.shape, got.shape)


def test_every_version_is_either_unchanged_or_has_a_rule() -> None:
    safe, handled = unchanged(), rules()
    for op in optable.op_names():
        first, *later = optable.versions("", op)
        first = max([first, *(version for version in later if version <= 7)])
        for version in later:
            if max(7, first) < version <= NEWEST:
                known = version in safe.get(op, ()) or version in handled.get(op, ((), None))[0]
                assert known, f"{op} {version}"
                assert not (version in safe.get(op, ()) and version in handled.get(op, ((), None))[0]), (
                    f"{op} {version}"
                )


REFUSED = {
    "mask of Dropout": (9, "t, y = Dropout (x)", "mean something else"),
    "rank unknown to Softmax": (
        11,
        "s = Shape (x) \n k = ReduceMax (s) \n t = Reshape (x, where) \n y = Softmax <axis = 1> (t)",
        "rank",
    ),
    "spatial": (8, "y = BatchNormalization <spatial = 0> (x, four, bias4, mean4, var4)", "spatial"),
    "half pixels": (
        11,
        'y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, none, up)',
        "tf_half_pixel_for_nn",
    ),
    "both ways": (10, "y = Resize (x, mixed)", "grows some axes"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_cannot_be_converted_leaves_the_model_as_it_is(title: str) -> None:
    opset, nodes, reason = REFUSED[title]
    extra = "float[4] mixed = {1, 1, 2, 0.5}, "
    declared = ", ".join(_declared())
    inputs = "float[2, 4, 6, 6] x, int64[K] where" if "where" in nodes else "float[2, 4, 6, 6] x"
    head = f'<ir_version: 7, opset_import: ["": {opset}]>'
    body = f"a = Unsqueeze <axes = [0]> (x) \n {nodes}"
    model = from_text(f"{head} g ({inputs}) => (y) <{extra}{declared}> {{ {body} }}")
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    name_nodes(model)
    result = run(model, parse("convert-opset"), Context(model))
    assert model.opset_imports[""] == opset and model.ir_version == 7 and not result.rewrites
    assert "axes" in next(node for node in all_nodes(model) if node.op_type == "Unsqueeze").attributes
    assert any(reason in remark.reason for remark in result.ctx.remarks if remark.status == "missed")
    assert any("stays in opset" in remark.reason for remark in result.ctx.remarks)


def test_functions_are_converted_in_their_own_opset(run_model: Any) -> None:
    text = """<ir_version: 8, opset_import: ["": 10, "my": 1]>
        g (float[2, 4] x) => (float[2, 4] y) { t = my.f (x) \n y = Clip <min = 0.0> (t) }
        <domain: "my", opset_import: ["": 11]> f (a) => (b) { s = ReduceSum <axes = [1]> (a) \n b = Sub (a, s) }"""
    model, before = from_text(text), from_text(text)
    name_nodes(model)
    interface = Interface.of(model)
    run(model, parse("convert-opset"), Context(model))
    verify(model, interface)
    assert [function.opset_imports[""] for function in model.functions.values()] == [21]
    x = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
    assert _same_bits(run_model(before, x)["y"], run_model(model, x)["y"])


def test_attribute_parameters_of_functions_are_not_converted() -> None:
    text = """<ir_version: 8, opset_import: ["": 12, "my": 1]>
        g (float[2, 4] x) => (float[2, 4] y) { y = my.f <low = 0.5> (x) }
        <domain: "my", opset_import: ["": 10]> f <low> (a) => (b) { b = Clip <min: float = @low> (a) }"""
    model = from_text(text)
    name_nodes(model)
    result = run(model, parse("convert-opset"), Context(model))
    assert not result.rewrites and model.opset_imports[""] == 12
    assert any("parameter of the function" in remark.reason for remark in result.ctx.remarks)


def test_average_pools_stay_below_opset_19_unless_it_is_asked_for(run_model: Any) -> None:
    model = _model(*CASES["avgpool-ceil-11"])
    result = run(model, parse("convert-opset"), Context(model))
    assert model.opset_imports[""] == 18 and any("rounds differently" in remark.reason for remark in result.ctx.remarks)
    x = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    assert _same_bits(run_model(_model(*CASES["avgpool-ceil-11"]), x)["y"], run_model(model, x)["y"])


def test_a_newer_model_is_left_alone() -> None:
    model = from_text('<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
    name_nodes(model)
    result = run(model, parse("convert-opset{to=17}"), Context(model))
    assert not result.rewrites and any("newer opsets only" in remark.reason for remark in result.ctx.remarks)


@pytest.mark.parametrize("to", [6, 99])
def test_an_opset_out_of_range_is_refused(to: int) -> None:
    with pytest.raises(GraphoptError, match="not an opset between"):
        parse(f"convert-opset{{to={to}}}")


def test_the_bisect_limit_stops_before_anything_is_changed() -> None:
    model = _model(7, CASES["clip-both"][1])
    run(model, parse("convert-opset"), Context(model, limit=0))
    assert model.opset_imports[""] == 7 and "min" in next(all_nodes(model)).attributes
