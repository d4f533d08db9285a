"""Weights of 4 bits on TVM: products of codes against dequantize-then-multiply, MatMulNBits against ONNX Runtime."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import driver
from graphopt.analysis.shapes import Shapes
from graphopt.driver import Options
from graphopt.frontends.onnx import load
from graphopt.manager.registry import make_target

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import ISAS, compiled  # noqa: E402

from graphopt.targets.tvm.machine import Isa, host_isa, of  # noqa: E402

RELATIVE = 2e-5


def close(ours: np.ndarray, expected: np.ndarray) -> None:
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=RELATIVE * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(12))
def test_products_of_codes(seed: int, isa: Isa) -> None:
    from tvm import te, topi

    from graphopt.targets.tvm.cpu.rules import four_bits

    rng, values = random.Random(seed), np.random.default_rng(seed)
    leading, m = rng.choice([(), (1,), (2, 2)]), rng.choice([1, 2, 4, 5, 33])
    k, n = rng.choice([32, 144, 256, 416]), rng.choice([1, 16, 31, 100, 256])
    rows = rng.choice([16, 32, 64, k])
    low = rng.choice([0, -8])
    codes = values.integers(low, low + 16, (k, n), dtype="int8")
    scale = values.uniform(0.01, 0.1, (-(-k // rows), n)).astype("float32")
    zero = (values.integers(low, low + 16, scale.shape) if seed % 2 else np.full(scale.shape, low + 8)).astype(
        "float32"
    )
    assert four_bits.fits(codes, rows)
    x = values.standard_normal((*leading, m, k), "float32")
    packed = four_bits.pack(x.shape, codes, scale, zero, of(isa, 2))
    assert len(packed) == 3 if seed % 2 else len(packed) == 2
    arrays = (x, *packed, values.standard_normal(n, "float32"))
    places = [te.placeholder(value.shape, str(value.dtype), f"p{i}") for i, value in enumerate(arrays)]
    out = topi.add(four_bits.define(rows, n)(*places[:-1]), places[-1])
    spread = [np.repeat(value, rows, axis=0)[:k].astype("float64") for value in (scale, zero)]
    close(compiled(places, out, arrays, isa), x @ ((codes - spread[1]) * spread[0]) + arrays[-1])


def test_codes_that_do_not_pair_are_refused() -> None:
    from graphopt.targets.tvm.cpu.rules import four_bits

    codes = np.zeros((15, 4), "int8")
    assert not four_bits.fits(codes, 5) and not four_bits.fits(codes, 15)
    assert not four_bits.fits(np.zeros((30, 4), "int8"), 5) and four_bits.fits(np.zeros((30, 4), "int8"), 10)


# ---- models --------------------------------------------------------------------------------------------------------


def save(nodes: list[Any], shape: tuple[int, ...], constants: dict[str, Any], file: Path, version: int = 21) -> Path:
    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
        for name, value in constants.items()
    ]
    for tensor, name in zip(tensors, constants, strict=True):
        tensor.name = name
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", None))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    imports = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), file)
    return file


def four_bit(codes: np.ndarray, kind: str) -> onnx.TensorProto:
    return helper.make_tensor("", getattr(TensorProto, kind), codes.shape, codes.reshape(-1).astype("int8"))


def functions_and_outputs(file: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Names of the functions that a model becomes, its output, and ONNX Runtime's."""
    import onnxruntime
    import tvm
    from tvm import relax

    from graphopt.targets.tvm.cpu import optimize
    from graphopt.targets.tvm.lowering.graph import lower

    isa = host_isa()
    assert isa is not None
    machine = of(isa, 1)
    module = relax.transform.ConvertToDataflow(min_size=1)(lower(load(file)))
    module = optimize(relax.transform.DeadCodeElimination()(module), machine)
    options = onnxruntime.SessionOptions()  # optimized, it rounds x to 8 bits
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options)
    x = np.random.default_rng(5).standard_normal(session.get_inputs()[0].shape).astype("float32")
    virtual = relax.VirtualMachine(tvm.compile(module, machine.target()), tvm.cpu())
    ours = virtual["main"](tvm.runtime.tensor(x))[0].numpy()
    return " ".join(name.name_hint for name, _ in module.functions_items()), ours, session.run(None, {"x": x})[0]


def nbits(rows: int, k: int, n: int, block: int, zero: str, file: Path, **attributes: int) -> Path:
    values, blocks = np.random.default_rng(k + n), -(-k // block)
    constants: dict[str, Any] = {
        "b": values.integers(0, 256, (n, blocks, block // 2), dtype="uint8"),
        "s": values.uniform(0.01, 0.1, (n, blocks)).astype("float32"),
        "bias": values.standard_normal(n, "float32"),
    }
    if zero == "packed":
        constants["z"] = values.integers(0, 256, (n, (blocks + 1) // 2), dtype="uint8")
    if zero == "float":
        constants["z"] = values.uniform(0, 15, (n, blocks)).astype("float32")
    inputs = ["x", "b", "s", "z" if zero != "none" else "", "", "bias"]
    given = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": 1, **attributes}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **given)
    return save([node], (rows, k), constants, file)


@pytest.mark.parametrize("zero", ["none", "packed", "float"])
@pytest.mark.parametrize(("rows", "k", "n", "block"), [(1, 160, 40, 32), (6, 144, 33, 64), (2, 64, 16, 16)])
def test_matmul_nbits(rows: int, k: int, n: int, block: int, zero: str, tmp_path: Path) -> None:
    names, ours, theirs = functions_and_outputs(nbits(rows, k, n, block, zero, tmp_path / "m.onnx"))
    assert "four_bit_matmul_add" in names and "dequantize" not in names
    close(ours, theirs)


def test_matmul_nbits_of_odd_depth_becomes_floats(tmp_path: Path) -> None:
    names, ours, theirs = functions_and_outputs(nbits(2, 33, 8, 16, "packed", tmp_path / "m.onnx"))
    assert "four_bit" not in names and "dequantize" not in names
    close(ours, theirs)


def dequantized(form: str, file: Path) -> Path:
    """x times constants of 4 bits, written in one of the standard ways."""
    values = np.random.default_rng(len(form))
    kind, low = ("INT4", -8) if "signed" in form else ("UINT4", 0)
    attributes: dict[str, int] = {"axis": 0, "block_size": 32}
    shape, scales = (96, 24), (3, 24)
    if "rows of Gemm" in form:
        shape, scales, attributes["axis"] = (24, 96), (24, 3), 1
    if "column" in form:
        scales, attributes = (24,), {"axis": 1}
    if "tensor" in form:
        scales, attributes = (), {}
    constants: dict[str, Any] = {
        "w": four_bit(values.integers(low, low + 16, shape), kind),
        "s": np.asarray(values.uniform(0.01, 0.1, scales), "float32"),
    }
    if "zero" in form:
        constants["z"] = four_bit(np.asarray(values.integers(low, low + 16, scales)), kind)
    inputs = ["w", "s"] + (["z"] if "zero" in form else [])
    nodes = [helper.make_node("DequantizeLinear", inputs, ["d"], **attributes)]
    if "rows of Gemm" in form:
        nodes.append(helper.make_node("Gemm", ["x", "d"], ["y"], transB=1))
    elif "other use" in form:
        nodes += [
            helper.make_node("MatMul", ["x", "d"], ["p"]),
            helper.make_node("ReduceMax", ["d"], ["t"], keepdims=0),
        ]
        nodes.append(helper.make_node("Add", ["p", "t"], ["y"]))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "d"], ["y"]))
    return save(nodes, (3, 96), constants, file)


@pytest.mark.parametrize(
    "form",
    ["blocks", "blocks, zero", "signed blocks", "signed blocks, zero", "rows of Gemm", "signed rows of Gemm, zero",
     "column, zero", "signed column", "tensor, zero", "other use, zero"],
)  # fmt: skip
def test_products_with_dequantized_constants(form: str, tmp_path: Path) -> None:
    names, ours, theirs = functions_and_outputs(dequantized(form, tmp_path / "m.onnx"))
    assert "four_bit_matmul" in names and "dequantize" not in names
    close(ours, theirs)


def test_other_dequantized_constants(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (2, 3, 4))
    constants = {"w": four_bit(codes, "INT4"), "s": np.full(3, 0.5, "float32"), "z": four_bit(np.arange(3), "INT4")}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    _, ours, theirs = functions_and_outputs(save(nodes, (2, 3, 4), constants, tmp_path / "m.onnx"))
    np.testing.assert_array_equal(ours, theirs)


def test_what_is_taken_is_what_the_table_says(tmp_path: Path) -> None:
    target = make_target("tvm")
    assert target.supports("com.microsoft", "MatMulNBits", 1) is None
    assert "on float16 has no lowering" in str(target.supports("com.microsoft", "MatMulNBits", 1, "FLOAT16"))
    assert target.supports("", "DequantizeLinear", 21, "INT4") is None
    assert "int4 has no lowering" in str(target.supports("", "Add", 21, "INT4"))
    assert "does not know Conv of domain com.microsoft" in str(target.supports("com.microsoft", "Conv", 1))
    assert "MatMulNBits has no lowering" in str(target.supports("", "MatMulNBits", 1))

    def reason(file: Path) -> str:
        model = load(file)
        shapes = Shapes(model).infer()
        return str(target.supports_node(model.graph[-1], shapes, 21))

    assert reason(nbits(1, 64, 8, 32, "none", tmp_path / "a.onnx")) == "None"
    assert "of 8 bits" in reason(nbits(1, 64, 8, 32, "none", tmp_path / "b.onnx", bits=8))
    nodes = [helper.make_node("Cast", ["x"], ["q"], to=TensorProto.INT4)]
    nodes.append(helper.make_node("DequantizeLinear", ["q", "s"], ["y"]))
    file = save(nodes, (4, 4), {"s": np.float32(0.5)}, tmp_path / "c.onnx")
    assert "codes in int4 computed at run time" in reason(file)


def test_libraries_hold_the_codes(tmp_path: Path) -> None:
    file = nbits(1, 1024, 1024, 32, "none", tmp_path / "m.onnx")
    artifact = driver.compile(file, "tvm{threads=1}", tmp_path / "build", Options(require_numerics=True))
    assert artifact.manifest["numerics"]["status"] == "passed"
    assert artifact.main.stat().st_size < 1024 * 1024 * (4 + 1) // 8 + (256 << 10)  # 4 bits, a scale for 32 of them
