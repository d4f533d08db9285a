"""Attention as one kernel on TVM: what is recognised, and that it computes what ONNX Runtime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest

from graphopt.ir.text import from_text

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import ISAS  # noqa: E402

from graphopt.targets.tvm.machine import Isa, of  # noqa: E402

MASKS = {
    "none": "r = Identity(s)",
    "full": "r = Add(s, full)",
    "per head": "r = Add(per_head, s)",
    "keys": "r = Add(s, keys)",
}


def model(length: int, heads: int, depth: int, body: str, turned: bool = True) -> onnx_ir.Model:
    """Attention over x [2, length, heads * depth] that is its own query, key and value."""
    width = heads * depth
    end = "t = Transpose<perm=[0,2,1,3]>(o) y = Reshape(t, flat)" if turned else "y = Relu(o)"
    out = f"2,{length},{width}" if turned else f"2,{heads},{length},{depth}"
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 17]> g (float[2,{length},{width}] x, float[2,{length},{width}] z)
        => (float[{out}] y)
        <int64[4] split = {{2, {length}, {heads}, {depth}}}, int64[3] flat = {{2, {length}, {width}}},
         float scale = {{0.3}}, float zero = {{0}}, float[1,1,{length},{length}] full,
         float[{heads},1,{length}] per_head, float[2,1,1,{length}] keys>
        {{ h = Reshape(x, split) i = Reshape(z, split)
           q = Transpose<perm=[0,2,1,3]>(h) k = Transpose<perm=[0,2,3,1]>(i) v = Transpose<perm=[0,2,1,3]>(i)
           {body} {end} }}"""
    )


def compiled(made: onnx_ir.Model, isa: Isa, x: dict[str, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
    """Names of the functions, the output, and ONNX Runtime's."""
    import onnxruntime
    import tvm
    from tvm import relax

    from graphopt.targets.tvm.cpu import optimize
    from graphopt.targets.tvm.lowering.graph import lower

    machine = of(isa, 2)
    module = relax.transform.ConvertToDataflow(min_size=1)(lower(made))
    module = optimize(relax.transform.DeadCodeElimination()(module), machine)
    virtual = relax.VirtualMachine(tvm.compile(module, machine.target()), tvm.cpu())
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(made).SerializeToString())
    ours = virtual["main"](*(tvm.runtime.tensor(value) for value in x.values()))[0].numpy()
    return " ".join(name.name_hint for name, _ in module.functions_items()), ours, session.run(None, x)[0]


def feeds(made: onnx_ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {str(v.name): rng.standard_normal([int(d) for d in v.shape], "float32") for v in made.graph.inputs}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("length", "heads", "depth", "mask", "turned"),
    [(32, 4, 16, "none", True), (37, 3, 20, "full", True), (70, 2, 8, "per head", False), (16, 1, 5, "keys", True)],
)
def test_attention(length: int, heads: int, depth: int, mask: str, turned: bool, isa: Isa) -> None:
    body = f"m = MatMul(q, k) s = Mul(m, scale) {MASKS[mask]} p = Softmax<axis=-1>(r) o = MatMul(p, v)"
    made = model(length, heads, depth, body, turned)
    names, ours, theirs = compiled(made, isa, feeds(made))
    assert "attention" in names and "softmax" not in names and "transpose" not in names
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_rows_without_a_number_are_zero_where_the_model_says_so() -> None:
    body = """m = MatMul(q, k) n = Add(m, keys) p = Softmax<axis=-1>(n) c = IsNaN(p) w = Where(c, zero, p)
              o = MatMul(w, v)"""
    made = model(16, 2, 8, body)
    made.graph.initializers["keys"].const_value = onnx_ir.tensor(
        np.stack([np.full((1, 1, 16), -np.inf, "float32"), np.zeros((1, 1, 16), "float32")]), name="keys"
    )
    names, ours, theirs = compiled(made, ISAS[0], feeds(made))
    assert "attention" in names
    assert not ours[0].any() and ours[1].any()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(q, k) p = Softmax<axis=-2>(m) o = MatMul(p, v)",
        "m = MatMul(q, k) p = Softmax<axis=-1>(m) u = ReduceSum<keepdims=1>(p) w = MatMul(p, v) o = Add(w, u)",
        "m = MatMul(q, k) r = Relu(m) p = Softmax<axis=-1>(r) o = MatMul(p, v)",
        "m = MatMul(q, k) p = Softmax<axis=-1>(m) c = IsNaN(p) w = Where(c, scale, p) o = MatMul(w, v)",
    ],
)
def test_other_products_are_left(body: str) -> None:
    made = model(16, 2, 8, body)
    names, ours, theirs = compiled(made, ISAS[0], feeds(made))
    assert "attention" not in names
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_blocks_of_queries_fit_the_cache() -> None:
    from graphopt.targets.tvm.cpu.rules.attention import queries

    machine = of("avx512", 1)
    chosen: list[Any] = [queries(length, length, machine) for length in (128, 197, 1024, 10007)]
    assert chosen == [64, 197, 64, None]
