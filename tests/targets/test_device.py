"""What keeps a CPU from passing for a GPU: a session that lost the provider that was asked for is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import GraphoptError
from graphopt.ir.text import from_text
from graphopt.ir.writer import write
from graphopt.targets.onnxruntime import session
from graphopt.targets.onnxruntime.settings import SessionSettings

CUDA = SessionSettings(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    write(from_text(text), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_package_without_the_provider_is_named(model: Path) -> None:
    if "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(GraphoptError, match=r"CUDAExecutionProvider is not in the installed ONNX Runtime"):
        session.Session(model, CUDA)


def test_a_provider_that_did_not_load_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    real = ort.InferenceSession

    def lost(path: str, options: object, providers: object, **rest: object) -> object:
        return real(path, options, providers=["CPUExecutionProvider"], **rest)  # as the runtime does, with a warning

    monkeypatch.setattr(session, "check_providers", lambda settings: None)
    monkeypatch.setattr(ort, "InferenceSession", lost)
    with pytest.raises(GraphoptError, match=r"without CUDAExecutionProvider: the provider's libraries are missing"):
        session.Session(model, CUDA)
    assert session.Session(model, SessionSettings()).providers == ("CPUExecutionProvider",)
