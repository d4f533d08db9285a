"""What is proven to be +-1 is packed and equals ONNX Runtime; what is not stays in floats, with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from graphopt import driver
from graphopt.driver import Options
from graphopt.ir.text import from_text
from graphopt.ir.writer import write

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import ISAS  # noqa: E402

from graphopt.targets.tvm.machine import of  # noqa: E402

HEAD = """<ir_version: 10, opset_import: ["" : 17]> g (float[2,64,6,5] x) => (float[2,24,6,5] y)
<float[24,64,3,3] w, float zero = {0}, float one = {1}, float minus = {-1}, float two = {2}, float tenth = {0.1},
 float half = {0.5}, float minus_half = {-0.5},
 int64[4] shape = {2, 64, 6, 5}> { """
CONV = " y = Conv<pads=[1,1,1,1]>(s, w) }"
PROVEN = {
    "where": "p = GreaterOrEqual(x, zero) s = Where(p, one, minus)",
    "where, the other way": "p = Less(x, zero) s = Where(p, minus, one)",
    "cast": "p = GreaterOrEqual(x, zero) c = Cast<to=1>(p) d = Mul(c, two) s = Sub(d, one)",
    "the sign of a shifted sign": "a = Sign(x) b = Add(a, tenth) s = Sign(b)",
    "integers": "p = Less(x, zero) i = Cast<to=6>(p) j = Cast<to=1>(i) k = Sub(half, j) s = Mul(k, two)",
    "halves": "p = Less(x, zero) s = Where(p, half, minus_half)",
    "moved": "p = Less(x, zero) q = Where(p, one, minus) f = Flatten(q) s = Reshape(f, shape)",
}
UNPROVEN = {
    "zero stays zero": ("s = Sign(x)", "its input may be -1, 0, 1"),
    "not centred": ("p = Less(x, zero) s = Where(p, one, two)", "its input may be 1, 2"),
    "anything": ("s = Relu(x)", "its input comes from an input of the model"),
    "an average": ("q = Sign(x) s = AveragePool<kernel_shape=[1,1]>(q)", "its input comes from nn.avg_pool2d"),
}


def signs(*shape: int) -> np.ndarray:
    return np.where(np.random.default_rng(len(shape)).standard_normal(shape) > 0, 1, -1).astype("float32")


def made(text: str, weights: np.ndarray) -> onnx_ir.Model:
    """The model with these weights for `w`."""
    model = from_text(text)
    model.graph.initializers["w"].const_value = onnx_ir.tensor(weights, name="w")
    return model


def optimized(model: onnx_ir.Model) -> Any:
    from tvm import relax

    from graphopt.targets.tvm.cpu import optimize
    from graphopt.targets.tvm.lowering.graph import lower

    module = relax.transform.ConvertToDataflow(min_size=1)(lower(model))
    return optimize(relax.transform.DeadCodeElimination()(module), of(ISAS[0], 1))


def anchors(module: Any) -> str:
    return " ".join(name.name_hint for name, _ in module.functions_items())


def notes(module: Any) -> list[str]:
    return [str(note) for note in (module.attrs or {}).get("graphopt.notes", ())]


def both(model: onnx_ir.Model, module: Any) -> tuple[np.ndarray, np.ndarray]:
    """The output of the module and of ONNX Runtime on one input that has zeros in it."""
    import onnxruntime
    import tvm

    x = np.random.default_rng(1).integers(-2, 3, [int(dim) for dim in model.graph.inputs[0].shape]).astype("float32")
    machine = tvm.relax.VirtualMachine(tvm.compile(module, of(ISAS[0], 1).target()), tvm.cpu())
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    return machine["main"](tvm.runtime.tensor(x))[0].numpy(), session.run(None, {"x": x})[0]


@pytest.mark.parametrize("form", PROVEN)
def test_forms_of_signs_are_packed_and_exact(form: str) -> None:
    model = made(HEAD + PROVEN[form] + CONV, signs(24, 64, 3, 3))
    module = optimized(model)
    assert "binary_conv2d" in anchors(module) and not notes(module)
    np.testing.assert_array_equal(*both(model, module))


@pytest.mark.parametrize("form", UNPROVEN)
def test_what_may_be_other_than_signs_stays_in_floats(form: str) -> None:
    text, reason = UNPROVEN[form]
    module = optimized(made(HEAD + text + CONV, signs(24, 64, 3, 3)))
    assert "binary" not in anchors(module)
    [note] = notes(module)
    assert note == f"Conv (24, 64, 3, 3) has weights of +-1 but is computed in floats: {reason}"


def test_weights_of_one_size_per_channel_are_scaled_behind() -> None:
    sizes = np.random.default_rng(0).uniform(0.1, 3, (24, 1, 1, 1)).astype("float32")
    model = made(HEAD + PROVEN["where"] + CONV, signs(24, 64, 3, 3) * sizes)
    module = optimized(model)
    assert "fused_binary_conv2d_multiply" in anchors(module)
    np.testing.assert_allclose(*both(model, module), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("changed", [0.0, 2.0, np.nan])
def test_other_weights_are_left(changed: float) -> None:
    weights = signs(24, 64, 3, 3)
    weights[3, 5, 1, 1] = changed
    module = optimized(made(HEAD + PROVEN["where"] + CONV, weights))
    assert "binary" not in anchors(module) and not notes(module)


def test_groups_are_left() -> None:
    text = HEAD.replace("[24,64,3,3]", "[24,32,3,3]") + PROVEN["where"] + CONV.replace("<", "<group=2,")
    assert "binary" not in anchors(optimized(made(text, signs(24, 32, 3, 3))))


def test_products_share_packed_inputs() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[3,96] x) => (float[3,40] y)
    <float[96,40] w, float zero = {0}, float one = {1}, float minus = {-1}>
    { p = Less(x, zero) s = Where(p, minus, one) a = MatMul(s, w) n = Neg(w) b = Gemm(s, n, a) y = Mul(a, b) }"""
    model = made(text, signs(96, 40))
    model.graph.remove(model.graph[3])  # Neg of a constant would not be a constant of the module
    other = onnx_ir.Value(name="n", const_value=onnx_ir.tensor(-signs(96, 40).reshape(40, 96).T.copy(), name="n"))
    model.graph.initializers["n"] = other
    model.graph[3].replace_input_with(1, other)
    module = optimized(model)
    assert anchors(module).count("pack_bits") == 1 and anchors(module).count("binary_matmul") == 2
    np.testing.assert_array_equal(*both(model, module))


def test_a_network_compiles_and_says_what_is_not_packed(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[1,3,10,10] x) => (float[1,5] y)
    <float[64,3,3,3] w0, float[64,64,3,3] w, float[64] scale, float[64] shift, float[64] mean, float[64] var,
     float tenth = {0.1}, float[64,5] head>
    { a = Conv<pads=[1,1,1,1]>(x, w0) b = Sign(a) c = Add(b, tenth) d = Sign(c) e = Conv<pads=[1,1,1,1]>(d, w)
      f = BatchNormalization(e, scale, shift, mean, var) h = Sign(f) i = Conv<strides=[2,2]>(h, w)
      j = GlobalAveragePool(i) k = Flatten(j) y = MatMul(k, head) }"""
    write(made(text, signs(64, 64, 3, 3)), tmp_path / "net.onnx")
    options = Options(require_numerics=True)
    artifact = driver.compile(tmp_path / "net.onnx", "tvm{threads=1}", tmp_path / "build", options)
    assert artifact.manifest["numerics"]["status"] == "passed"
    [note] = [note for note in artifact.manifest["notes"] if "+-1" in note]
    assert note.startswith("model.so: Conv (64, 64, 3, 3) has weights") and note.endswith("may be -1, 0, 1")
