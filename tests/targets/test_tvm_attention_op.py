"""The standard Attention on TVM against ONNX's reference implementation, and which forms the attention kernel takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

pytestmark = [pytest.mark.tvm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("tvm")

from graphopt.targets.tvm.machine import host  # noqa: E402

QKV = "float[2,4,5,8] q, float[2,4,6,8] k, float[2,4,6,8] v"
SIZES = {"B": 2, "L": 5, "M": 6, "P": 3, "T": 9}
NEGATIVE = [2, -1]  # more queries than keys that count, and none at all
FORMS = {
    "plain": f"({QKV}) => (float[2,4,5,8] y) {{ a = Attention(q, k, v) y = Neg(a) }}",
    "causal": f"({QKV}) => (float[2,4,5,8] y) {{ a = Attention<is_causal=1>(q, k, v) y = Neg(a) }}",
    "of one head size for values": """(float[2,4,5,8] q, float[2,4,6,8] k, float[2,4,6,10] v) => (float[2,4,5,10] y) {
        a = Attention<scale=0.1>(q, k, v) y = Neg(a) }""",
    "groups, by position": """(float[2,5,32] q, float[2,6,16] k, float[2,6,16] v, float[5,6] m) => (float[2,5,32] y) {
        a = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v, m) y = Neg(a) }""",
    "by position, mask of bool": """(float[2,5,32] q, float[2,6,32] k, float[2,6,32] v, bool[2,1,5,6] m) =>
        (float[2,5,32] y) { a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v, m) y = Neg(a) }""",
    "mask of bool, causal": f"""({QKV}, bool[5,6] m) => (float[2,4,5,8] y) {{
        a = Attention<is_causal=1>(q, k, v, m) y = Neg(a) }}""",
    "short mask": f"({QKV}, float[5,4] m) => (float[2,4,5,8] y) {{ a = Attention(q, k, v, m) y = Neg(a) }}",
    "softcap": f"({QKV}, float[6] m) => (float[2,4,5,8] y) {{ a = Attention<softcap=0.5>(q, k, v, m) y = Neg(a) }}",
    "past": """(float[2,4,5,8] q, float[2,2,6,8] k, float[2,2,6,8] v, float[2,2,3,8] pk, float[2,2,3,8] pv) =>
        (float[2,4,5,8] y, float[2,2,9,8] nk, float[2,2,9,8] nv) {
        a, nk, nv = Attention<is_causal=1>(q, k, v, , pk, pv) y = Neg(a) }""",
    "padding": f"""({QKV}, int64[2] c) => (float[2,4,5,8] y) {{
        a = Attention<is_causal=1>(q, k, v, , , , c) y = Neg(a) }}""",
    "weights": f"""({QKV}, bool[5,6] m) => (float[2,4,5,8] y, float[2,4,5,6] s) {{
        a, , , s = Attention<qk_matmul_output_mode=3>(q, k, v, m) y = Neg(a) }}""",
    "biased": f"""({QKV}, float[5,6] m) => (float[2,4,5,8] y, float[2,4,5,6] s) {{
        a, , , s = Attention<qk_matmul_output_mode=2, softcap=2.0>(q, k, v, m) y = Neg(a) }}""",
    "window": f"""({QKV}) => (float[2,4,5,8] y) {{
        a = Attention<left_window_size=2, right_window_size=1>(q, k, v) y = Neg(a) }}""",
    "dynamic": """(float[B,L,32] q, float[B,M,16] k, float[B,M,16] v, bool[L,T] m, float[B,2,P,8] pk,
        float[B,2,P,8] pv) => (float[B,L,32] y, float[B,2,X,8] nk, float[B,2,X,8] nv) {
        a, nk, nv = Attention<is_causal=1, q_num_heads=4, kv_num_heads=2>(q, k, v, m, pk, pv) y = Neg(a) }""",
}
NOT_FUSED = ("softcap", "weights", "biased", "dynamic")


def made(form: str, opset: int = 25) -> onnx_ir.Model:
    text = f'<ir_version: 11, opset_import: ["" : {opset}]> g {FORMS[form]}'
    return onnx_ir.serde.deserialize_model(parser.parse_model(text))


def feeds_of(model: onnx_ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None and value.name is not None
        shape = [dim if isinstance(dim, int) else SIZES[str(dim.value)] for dim in value.shape]
        feeds[value.name] = rng.standard_normal(shape).astype(value.dtype.numpy())
        if value.name == "m" and value.dtype == onnx_ir.DataType.BOOL:
            feeds["m"] = rng.integers(0, 2, shape).astype(bool)
            feeds["m"][..., 1, :] = False  # a query that attends to nothing
        if value.name == "c":
            feeds["c"] = np.array(NEGATIVE)
    return feeds


@pytest.mark.parametrize("form", FORMS)
def test_attention_computes_what_the_reference_does(form: str, tmp_path: Path) -> None:
    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.library import Library
    from graphopt.targets.tvm.lowering.graph import lower

    model, machine = made(form), host(1)
    feeds = feeds_of(model)
    expected = ReferenceEvaluator(onnx_ir.to_proto(model)).run(None, feeds)
    assert machine is not None
    assert build(lower(model), machine, tmp_path / "model.so", scheduled).not_scheduled is None
    got = Library(tmp_path / "model.so").run(list(feeds.values()))
    for result, wanted in zip(got, expected, strict=True):
        assert result.dtype == wanted.dtype and result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=2e-5, atol=2e-6)


def functions(model: onnx_ir.Model) -> str:
    """Names of the functions that a model becomes."""
    from tvm import relax

    from graphopt.targets.tvm.cpu import optimize
    from graphopt.targets.tvm.lowering.graph import lower

    machine = host(1)
    assert machine is not None
    module: Any = relax.transform.ConvertToDataflow(min_size=1)(lower(model))
    module = optimize(relax.transform.DeadCodeElimination()(module), machine)
    return " ".join(name.name_hint for name, _ in module.functions_items())


@pytest.mark.parametrize("form", FORMS)
def test_the_attention_kernel_is_used_where_it_fits(form: str) -> None:
    names = functions(made(form))
    assert ("softmax" in names) == (form in NOT_FUSED)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("(bfloat16[1,2,3,4] q) => (bfloat16[1,2,3,4] y) { y = Attention(q, q, q) }", "bfloat16"),
        ("(float[1,2,3,4] q) => (float[1,2,3,4] y) { y = Attention<softmax_precision=16>(q, q, q) }", "bfloat16"),
        ("(float[1,H,3,4] q) => (float[1,H,3,4] y) { y = Attention(q, q, q) }", "heads"),
        ("(float[1,2,3,4] q, float16[1,2,3,4] v) => (float[1,2,3,4] y) { y = Attention(q, q, v) }", "several"),
    ],
)
def test_what_is_refused(head: str, reason: str) -> None:
    from graphopt.analysis.shapes import Shapes
    from graphopt.targets.tvm.lowering.graph import unsupported

    text = f'<ir_version: 11, opset_import: ["" : 24]> g {head}'
    model = onnx_ir.serde.deserialize_model(parser.parse_model(text))
    ((_, why),) = unsupported(model, Shapes(model).infer())
    assert reason in why
