"""The targets: spelling, kernel table, placement on a GPU that is not there, files and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from onnx import parser

from graphopt.errors import GraphoptError
from graphopt.spec import build, parse_spec, unbuild
from graphopt.targets.onnxruntime import kernels, make_kernel_table
from graphopt.targets.onnxruntime.make_kernel_table import read_registry
from graphopt.targets.onnxruntime.target import Cpu, Cuda, OnnxRuntime

DET = """<ir_version: 10, opset_import: ["":21]> g(float[N,4,4] x) => (float[N,4,4] y) {
  shape = Shape(x) same = Reshape(x, shape) det = Det(same) relu = Relu(same)
  axes = Constant<value_ints=[1, 2]>() wide = Unsqueeze(det, axes) y = Add(relu, wide) }"""


def model(text: str) -> onnx_ir.Model:
    return onnx_ir.serde.deserialize_model(parser.parse_model(text))


def test_cpu_compiles_and_runs(tmp_path: Path) -> None:
    target = Cpu(threads=1)
    files = target.compile(model(DET), tmp_path)
    assert files.main == "model.onnx" and files.files == ("model.onnx",) and files.notes == ()
    assert files.settings["threads"] == 1
    x = np.eye(4, dtype=np.float32)[None] * -2
    with target.load(tmp_path / files.main, files.settings) as runner:
        np.testing.assert_allclose(runner.run({"x": x})["y"], np.maximum(x, 0) + 16, rtol=0, atol=1e-5)


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Cpu().compile(model(DET), tmp_path / name)
    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


def test_cuda_compiles_without_a_gpu_and_says_so(tmp_path: Path) -> None:
    target = Cuda()
    if target.available() is None:
        pytest.skip("this machine has a GPU")
    notes = target.compile(model(DET), tmp_path).notes
    assert notes[0].startswith("1 x Det on the CPU: ONNX Runtime's CUDA provider has no kernel for Det")
    assert notes[1].startswith("2 copies")  # same -> Det on the host, its result back
    assert notes[-1].startswith("compiled, not run: ")
    with pytest.raises(GraphoptError, match="CUDAExecutionProvider is not in the installed"):
        target.load(tmp_path / "model.onnx")


def test_shape_arithmetic_costs_no_copies() -> None:
    place = kernels.place(
        model(
            """<ir_version: 10, opset_import: ["":21]> g(float[N,4] x) => (float[M] y) {
            shape = Shape(x) zero = Constant<value_int=0>() n = Gather(shape, zero) four = Constant<value_int=4>()
            total = Mul(n, four) axes = Constant<value_ints=[0]>() target = Unsqueeze(total, axes)
            y = Reshape(x, target) }"""
        )
    )
    assert place.copies == () and place.on_cpu == ()
    assert place.counts["cpu"] >= 3


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("cpu{threads=2}", Cpu(threads=2).session_settings()),
        ("onnxruntime{threads=2}", Cpu(threads=2).session_settings()),
        ("onnxruntime{device=cuda}", Cuda().session_settings()),
        ("onnxruntime{device=cuda provider=tensorrt}", Cuda(provider="tensorrt").session_settings()),
        (
            "onnxruntime{device=cuda provider=tensorrt device_id=1 options=[trt_fp16_enable=1]}",
            Cuda(provider="tensorrt", device_id=1, options=("trt_fp16_enable=1",)).session_settings(),
        ),
        ("onnxruntime{device=cuda tf32=false}", Cuda(tf32=False).session_settings()),
        (
            "onnxruntime{threads=2 spinning=false arena=false denormals_as_zero=true precise_u8s8=true}",
            Cpu(2, False, False, denormals_as_zero=True, precise_u8s8=True).session_settings(),
        ),
    ],
)
def test_spellings(spec: str, settings: object) -> None:
    parsed = parse_spec(spec)
    classes = {"cpu": Cpu, "cuda": Cuda, "onnxruntime": OnnxRuntime}
    target = build(classes[parsed.name], parsed, "target")
    assert target.session_settings() == settings
    assert str(unbuild(target, parsed.name)) == spec


def test_wrong_options() -> None:
    with pytest.raises(GraphoptError, match="needs device=cuda"):
        OnnxRuntime(provider="tensorrt")
    with pytest.raises(
        GraphoptError, match="spinning is an option of device=cpu, not of device=cuda; that has device_id"
    ):
        OnnxRuntime(device="cuda", spinning=False)
    with pytest.raises(
        GraphoptError, match="options is an option of device=cuda, not of device=cpu; that has spinning"
    ):
        OnnxRuntime(options=("a=1",))
    with pytest.raises(GraphoptError, match="'trt' is not key=value"):
        OnnxRuntime(device="cuda", options=("trt",))
    with pytest.raises(GraphoptError, match="tf32=false is an option of provider=cuda"):
        OnnxRuntime(device="cuda", provider="tensorrt", tf32=False)
    with pytest.raises(GraphoptError, match="not key=value"):
        Cuda(options=("arena_extend_strategy",))
    with pytest.raises(GraphoptError, match="levels are 0 to 3"):
        Cpu().pipeline(4)
    assert [Cpu().pipeline(level) for level in range(4)] == ["O0", "O1", "O2", "O3"]


def test_the_general_spelling_makes_the_same_weights() -> None:
    assert OnnxRuntime(isa="avx2").quirks() == Cpu(isa="avx2").quirks()
    assert OnnxRuntime(isa="avx512vnni").quirks() == Cpu(isa="avx512vnni").quirks()
    assert Cpu(isa="avx2").quirks() != Cpu(isa="avx512vnni").quirks()


def test_the_manifest_has_the_options_of_the_general_spelling(tmp_path: Path) -> None:
    graph = model('<ir_version: 10, opset_import: ["":21]> g(float[2] x) => (float[2] y) { y = Relu(x) }')
    target = OnnxRuntime(device="cuda", provider="tensorrt", options=("trt_fp16_enable=1",))
    settings = target.compile(graph, tmp_path).settings
    assert settings["provider_options"] == {"device_id": "0", "trt_fp16_enable": "1"}
    with OnnxRuntime(arena=False, spinning=False).load(tmp_path / "model.onnx") as runner:
        assert not runner.settings.arena and not runner.settings.spinning


def test_supports_answers_from_the_table() -> None:
    assert Cpu().supports("", "Conv", 11, "FLOAT") is None
    assert "has no float16 kernel for Conv" in (Cpu().supports("", "Conv", 11, "FLOAT16") or "")
    assert Cuda().supports("ai.onnx", "Conv", 11, "FLOAT16") is None
    assert "no kernel for Mish" in (Cpu().supports("", "Mish", 22) or "")
    assert "of opset 19; it has 20+" in (Cpu().supports("", "Gelu", 19) or "")
    assert Cpu().supports("com.microsoft", "MultiHeadAttention", 1, "FLOAT") is None
    assert "no kernel for my.ops::Thing" in (Cpu().supports("my.ops", "Thing", 1) or "")


def test_table_is_that_of_the_installed_runtime() -> None:
    version, registry = read_registry("CPUExecutionProvider")
    if version not in kernels.table()["sources"]["cpu"]:
        pytest.skip(f"the table was made from another version than the installed {version}")
    assert registry == kernels.table()["cpu"]


def test_a_part_that_was_not_read_stays_in_the_table() -> None:
    shipped = kernels.table()
    read: dict[str, tuple[str, dict[str, list[Any]]]] = {
        "cpu": ("9.9.9", {"::Abs": [[13, None, ["float"]]]}),
        "cuda": ("9.9.9", {}),
    }
    made = make_kernel_table.table(read)
    assert made["cpu"] == {"::Abs": [[13, None, ["float"]]]} and made["sources"]["cpu"].startswith("onnxruntime 9.9.9")
    assert made["cuda"] == shipped["cuda"] and made["sources"]["cuda"] == shipped["sources"]["cuda"]
