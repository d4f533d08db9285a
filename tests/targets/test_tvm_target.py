"""The tvm target without TVM: spelling, what it takes and why not, how a model is split."""

from __future__ import annotations

import itertools
import platform
import subprocess
import sys
from pathlib import Path

import networkx
import onnx_ir
import pytest
from onnx import parser

from graphopt.analysis.shapes import Shapes
from graphopt.errors import GraphoptError
from graphopt.inspecting import inspect
from graphopt.manager.pipeline import parse
from graphopt.manager.registry import make_target
from graphopt.targets.tvm import machine as machines
from graphopt.targets.tvm import runtime
from graphopt.targets.tvm.partition import boundary_bytes, dependencies, partition


def model(text: str) -> onnx_ir.Model:
    return onnx_ir.serde.deserialize_model(parser.parse_model('<ir_version: 10, opset_import: ["":21]> g' + text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tvm{device=cpux}", "did you mean 'cpu'"),
        ("tvm{isa=avx51}", "did you mean 'avx512'"),
        ("tvm{isas=avx2}", "did you mean 'isa'"),
        ("tvm{device=aarch64 isa=avx2}", "device=aarch64 has no isa=avx2"),
        ("tvm{threads=-1}", "threads=-1 is negative"),
        ("tvm{device=cuda arch=sm_91}", "did you mean 'sm_90'"),
        ("tvm{arch=sm_90}", "arch=sm_90 is a GPU; it goes with device=cuda"),
        ("tvm{device=cuda isa=avx2}", "device=cuda has no isa=avx2"),
        ("tvm{device=cuda threads=2}", "device=cuda has no threads"),
        ("tvm{device=cuda emulator=qemu}", "emulator=qemu is for code of another machine"),
        ("tvm{emulator=cpu}", "emulator=cpu is for kernels of a GPU"),
        ("tvm{device=armv8}", "did you mean 'armv7'"),
        ("tvm{device=riscv64 isa=neon}", "device=riscv64 has no isa=neon"),
        ("tvm{device=armv7 emulator=qemu}", "TVM has no runtime for armv7"),
        ("tvm{device=cuda runtime=bundled}", "no runtime to bundle for device=cuda"),
        ("tvn", "did you mean 'tvm'"),
    ],
)
def test_wrong_options_say_what_is_meant(text: str, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        make_target(text)


def test_spelling_comes_back() -> None:
    assert str(make_target("tvm{isa=avx2, threads=2}")) == "tvm{isa=avx2 threads=2}"
    assert str(make_target("tvm{device=cpu}")) == "tvm"


@pytest.mark.parametrize("level", range(4))
def test_the_pipeline_makes_no_contrib_ops(level: int) -> None:
    target = make_target("tvm")
    assert parse(target.pipeline(level)).passes()
    assert target.supports("com.microsoft", "FusedConv", 1) is not None


def test_machines_describe_their_vectors() -> None:
    assert machines.of("avx2", 4).lanes() == 8 and machines.of("avx512").lanes(8) == 64
    assert machines.of("neon").triple == "aarch64-linux-gnu"
    assert machines.of("avx512vnni").llvm()["mattr"] == ["+avx512vnni"]
    assert machines.gpu("sm_90").cuda()["arch"] == "sm_90" and machines.gpu("sm_90").isa in ("avx2", "neon")


@pytest.mark.parametrize(
    ("text", "op", "reason"),
    [
        ("(float[2,2] x) => (int64[2,N] y) { y = NonZero(x) }", "NonZero", "has no lowering"),
        ("(float[N,2] x, int64[K] s) => (float[A,B] y) { y = Reshape(x, s) }", "Reshape", "--input-shapes"),
        (
            "(int64[2] s) => (float[A,B] y) { y = ConstantOfShape(s) }",
            "ConstantOfShape",
            "does not follow from the input",
        ),
        ("(float[0,2] x) => (float[0,2] y) { y = Relu(x) }", "Relu", "no elements"),
        ("(float[2] x, float[2] z) => (float[2] y) { y = Mod(x, z) }", "Mod", "without fmod=1"),
        ("(string[2] x) => (string[2] y) { y = Identity(x) }", "Identity", "on string"),
        (
            "(float[1,2,H,8] x, float[2,2,3,3] w) => (float[1,2,I,4] y) "
            '{ y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w) }',
            "Conv",
            "bind them with --dim",
        ),
        (
            "(float[T,1,4] x, float[1,20,4] w, float[1,20,5] r) => (float[T,1,1,5] y) { y = LSTM<hidden_size=5>(x, w, "
            "r) }",
            "LSTM",
            "dynamic length",
        ),
    ],
)
def test_inspect_says_what_is_not_taken(text: str, op: str, reason: str) -> None:
    rows = inspect(model(text), make_target("tvm"))["unsupported"]
    assert rows and rows[0]["op"] == op and reason in rows[0]["reason"], rows


def test_inspect_says_which_inputs_are_not_taken(tmp_path: Path) -> None:
    made = model("(float[2] x, string[2] s, seq(float[2]) q) => (float[2] y) { y = Relu(x) }")
    refused = inspect(made, make_target("tvm"))["unsupported_ends"]
    assert [(row["name"], row["reason"]) for row in refused] == [
        ("s", "it is tensor(string), which no library takes"),
        ("q", "it is seq(tensor(float)), which no library takes"),
    ]
    assert inspect(made, make_target("cpu"))["unsupported_ends"] == []


def test_names_of_dims_may_be_any_text() -> None:
    made = model("(float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    made.graph.inputs[0].shape = onnx_ir.Shape(["p2o.Dim.0", 2])
    assert inspect(made, make_target("tvm"))["unsupported"] == []


def test_inspect_takes_shape_arithmetic() -> None:
    text = """(float[N,2,3] x) => (float[N,6] y) { s = Shape<end=1>(x) m = Constant<value_ints=[-1]>()
        t = Concat<axis=0>(s, m) y = Reshape(x, t) }"""
    assert inspect(model(text), make_target("tvm"))["unsupported"] == []


CHAIN = """(float[4,4] x, float[4,4] w) => (float[4,4] y) { a = MatMul(x, w) b = Hardmax(a) c = MatMul(a, w)
    d = MatMul(b, c) e = Relu(d) f = Hardmax(e) h = Add(f, e) y = MatMul(h, w) }"""


def split(text: str) -> tuple[onnx_ir.Model, Shapes, list]:
    made = model(text)
    shapes = Shapes(made).infer()
    return made, shapes, partition(made, shapes, [node for node in made.graph if node.op_type == "Hardmax"])


def test_parts_are_convex_and_few() -> None:
    made, shapes, pieces = split(CHAIN)
    assert [piece.runtime for piece in pieces] == ["tvm", "onnxruntime", "tvm", "onnxruntime", "tvm"]
    graph = dependencies(made.graph)
    part = {node: index for index, piece in enumerate(pieces) for node in piece.nodes}
    assert all(part[a] <= part[b] for a, b in graph.edges)
    quotient = networkx.DiGraph((part[a], part[b]) for a, b in graph.edges if part[a] != part[b])
    assert networkx.is_directed_acyclic_graph(quotient)
    for before, after in itertools.pairwise(pieces):
        assert before.runtime != after.runtime
    assert boundary_bytes(pieces, shapes) == 64 * len([v for p in pieces for v in p.inputs if v.producer() is not None])


def test_a_small_part_without_products_is_not_worth_a_boundary() -> None:
    text = "(float[4,4] x) => (float[4,4] y) { a = Hardmax(x) b = Relu(a) c = Hardmax(b) y = MatMul(c, c) }"
    _, _, pieces = split(text)
    assert [(piece.runtime, len(piece.nodes)) for piece in pieces] == [("onnxruntime", 3), ("tvm", 1)]


def test_a_constant_output_is_in_a_part_of_onnx_runtime() -> None:
    text = """(float[4,4] x) => (float[4,4] z, float[2] k, float[4,4] x) { k = Constant<value_floats=[1.0, 2.0]>()
        a = MatMul(x, x) b = Hardmax(a) z = MatMul(b, x) }"""
    made, _, pieces = split(text)
    assert [[value.name for value in piece.outputs] for piece in pieces] == [["a"], ["b", "k"], ["z"]]
    alone = partition(made, Shapes(made).infer(), [])
    assert [(piece.runtime, [value.name for value in piece.outputs]) for piece in alone] == [
        ("tvm", ["z"]),
        ("onnxruntime", ["k"]),
    ]


def test_without_tvm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    target = make_target("tvm{isa=avx2}")
    assert "pip install" in target.available() and "graphopt[tvm]" in target.available()
    with pytest.raises(GraphoptError, match=r"graphopt\[tvm\]"):
        target.compile(model(CHAIN), tmp_path)


def test_listing_does_not_import_tvm() -> None:
    code = (
        "import sys; from graphopt.manager.registry import targets; targets(); "
        "assert not {'tvm', 'tvm_ffi', 'torch', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", f"{platform.machine()}-linux-gnu"])
def test_the_runtime_is_made_anew_when_what_it_is_made_of_changes(
    triple: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(triple: str, folder: Path) -> None:
        folder.mkdir()
        made.append(folder.name)

    monkeypatch.setattr(runtime, "_make", make)
    monkeypatch.setattr(runtime, "versions", lambda packages: {"numpy": "1", "apache-tvm": "9.9"})
    first = runtime.runtime_for(triple, tmp_path)
    assert runtime.runtime_for(triple, tmp_path) == first and made == [first.name]
    monkeypatch.setattr(runtime, "versions", lambda packages: {"numpy": "2", "apache-tvm": "9.10"})
    second = runtime.runtime_for(triple, tmp_path)
    (tmp_path / "run.cc").write_text(runtime.SOURCE.read_text() + "\n")
    monkeypatch.setattr(runtime, "SOURCE", tmp_path / "run.cc")
    third = runtime.runtime_for(triple, tmp_path)
    assert made == [first.name, second.name, third.name] and len(set(made)) == 3
    if triple.startswith(platform.machine()):
        assert "-9.9-" in first.name and "-9.10-" in second.name
