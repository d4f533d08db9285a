"""benchmarks/gpu_check: the part that needs no GPU, what it says where packages are missing, and its bookkeeping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import figure, gpu_check, gpu_profile, gpu_table, gpu_tvm
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.manager.registry import make_target

pytest.importorskip("onnxruntime")
TEXT = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w> { h = Conv<pads=[1,1,1,1]>(x, w) y = Relu(h) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(from_text(TEXT), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if make_target("cuda").available() is None:
        pytest.skip("this machine can run the CUDA provider")
    monkeypatch.setattr(gpu_check, "gpus", lambda: [])


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_rest_runs_and_what_did_not_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figure, "PAGES", tmp_path / "pages")
    arguments = ["--models", str(model), "--folder", str(tmp_path / "out"), "--runtimes", "onnxruntime"]
    assert gpu_check.main(arguments) == 0
    page = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    results = {(check, name): result for check, name, result, _ in rows[1:]}
    assert results["kernel table", "cpu"] == "passed"
    for short in gpu_check.TARGETS:
        assert results[f"compile, {short}", "tiny"] == "passed"
        assert results[f"numerics, {short}", "tiny"] == "not run"
        assert results[f"copies and latency, {short}", "tiny"] == "not run"
    assert "it passed on the CPU" in page and "No GPU here" in page and "checks were not run" in page
    assert (tmp_path / "out" / "gpu" / "tiny-CUDA" / "manifest.json").is_file()
    assert not (tmp_path / "pages").exists(), "a page about a GPU is written only where there is one"


@pytest.mark.tvm
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.skipif(bool(gpu_tvm.why_not()), reason="needs TVM and NVIDIA's nvcc")
def test_kernels_of_tvm_are_checked_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(from_text(TEXT.replace("N,", "2,")), tmp_path / "tiny.onnx")
    arguments = ["--models", str(tmp_path / "tiny.onnx"), "--folder", str(tmp_path), "--runtimes", "tvm", "--emulate"]
    assert gpu_check.main([*arguments, "--cases", "0", "--no-write"]) == 0
    page = capsys.readouterr().out
    for check in ("compile, TVM", "numerics, TVM in emulation"):
        assert any(line.startswith(f"| {check} |") and "| passed |" in line for line in page.splitlines()), page
    assert "latency, TVM | tiny | not run" in page


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_without_its_packages_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "gpus", lambda: ["Some GPU"])
    assert gpu_check.main(["--models", "ppocr-cls"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "Some GPU is here, but" in err and "onnxruntime-gpu[cuda,cudnn]" in err


@pytest.mark.usefixtures("no_gpu")
def test_a_provider_that_opens_no_session_is_said() -> None:
    assert "CUDAExecutionProvider" in gpu_check.why_no_session()


def test_a_promise_without_a_kernel_is_found() -> None:
    registry = {"::Relu": [[6, 13, ["float"]], [14, None, ["float", "double"]]], "::Any": [[1, None, None]]}
    good = {"::Relu": [[6, 13, ["float"]], [14, None, ["double"]]], "::Any": [[3, None, ["int4"]]]}
    assert gpu_table.promises_without_kernel(good, registry) == set()
    bad: dict[str, Any] = {"::Relu": [[5, None, ["float"]], [14, None, ["float16"]]], "::Conv": [[1, None, ["float"]]]}
    assert gpu_table.promises_without_kernel(bad, registry) == {"::Relu 5", "::Relu 14 float16", "::Conv 1"}


def test_a_profile_counts_nodes_once_and_copies_apart() -> None:
    def event(name: str, op: str, provider: str) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": {"op_name": op, "provider": provider}}

    events = [
        *(event("a", "Conv", "CUDAExecutionProvider"), event("a", "Conv", "CUDAExecutionProvider")),
        *(event("m", "MemcpyToHost", "CUDAExecutionProvider"), event("s", "Shape", "CPUExecutionProvider")),
        {"cat": "Session", "name": "model_run", "args": {}},
    ]
    assert gpu_profile.read(events) == gpu_profile.Profile(
        {"CUDAExecutionProvider": 1, "CPUExecutionProvider": 1}, copies=1
    )


def test_a_real_profile_names_the_provider(model: Path) -> None:
    feeds = {"x": np.zeros((2, 3, 8, 8), np.float32)}
    found = gpu_profile.profile(model, make_target("cpu").settings(), feeds)
    assert found.copies == 0 and set(found.nodes) == {"CPUExecutionProvider"} and sum(found.nodes.values()) >= 1
