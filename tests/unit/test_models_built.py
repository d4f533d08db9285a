"""Built models: the exported graph computes what the torch module computes, at other sizes than the example's too."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import models
from graphopt.errors import MissingDependency
from graphopt.models import build


def test_missing_torch_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_torch(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(build, "version", no_torch)
    for call in (models.fetch, models.path):
        with pytest.raises(MissingDependency, match=r"graphopt\[torch\]"):
            call("vit-tiny-export", tmp_path)


def _against_torch(name: str, feeds: list[dict[str, Any]], cache: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    ort = pytest.importorskip("onnxruntime")
    path = models.fetch(name, cache)
    onnx.checker.check_model(str(path), full_check=True)
    torch.manual_seed(build._SEED)
    recipe = build._RECIPES[name](cache)
    module = recipe.module.eval()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for feed in [{key: value.numpy() for key, value in recipe.inputs.items()}, *feeds]:
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(value) for value in feed.values()))
        wanted = [wanted] if isinstance(wanted, torch.Tensor) else wanted
        for a, b in zip(wanted, session.run(None, feed), strict=True):
            np.testing.assert_allclose(b, a.numpy(), atol=2e-5 * float(abs(a).max()), rtol=0)


def _tokens(batch: int, sequence: int, past: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    mask = np.ones((batch, past + sequence), "int64")
    if past + sequence > 1:
        mask[0, -1] = 0
    return {"input_ids": rng.integers(0, 1000, (batch, sequence)), "attention_mask": mask}


@pytest.mark.torch
def test_bert_tiny(tmp_path: Path) -> None:
    _against_torch("bert-tiny-export", [_tokens(1, 1), _tokens(3, 7)], tmp_path)


@pytest.mark.torch
def test_vit_tiny(tmp_path: Path) -> None:
    _against_torch("vit-tiny-export", [{"x": np.ones((1, 3, 32, 32), "float32")}], tmp_path)


@pytest.mark.torch
def test_llama_tiny(tmp_path: Path) -> None:
    # Masked from the right: a query that may attend to nothing is zeros in torch, and something else once exported.
    feed = _tokens(3, 7)
    feed["attention_mask"][0] = [1, 1, 0, 1, 1, 0, 0]
    _against_torch("llama-tiny", [feed, _tokens(1, 4)], tmp_path)


@pytest.mark.torch
def test_llama_tiny_kv(tmp_path: Path) -> None:
    feeds = []
    for batch, sequence, past in ((1, 1, 7), (2, 4, 0), (3, 2, 1)):
        feed = _tokens(batch, sequence, past)
        feed["attention_mask"][:] = 1
        rng = np.random.default_rng(past)
        for layer in range(4):
            for what in ("key", "value"):
                feed[f"past_{what}_{layer}"] = rng.standard_normal((batch, 2, past, 32), "float32")
        feeds.append(feed)
    _against_torch("llama-tiny-kv", feeds, tmp_path)


@pytest.mark.torch
def test_build_is_quiet_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    first = models.fetch("vit-tiny-export", tmp_path)
    assert capfd.readouterr() == ("", "")
    assert b"/graphopt/" not in first.read_bytes()  # no folder of the machine in it
    stamp = first.stat().st_mtime_ns
    assert models.fetch("vit-tiny-export", tmp_path) == first == models.path("vit-tiny-export", tmp_path)
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in first.parent.iterdir()] == ["vit-tiny-export.onnx"]


@pytest.mark.torch
@pytest.mark.zoo
def test_mobilenet_takes_torchvisions_state_dict() -> None:
    pytest.importorskip("torch")
    recipe = build._RECIPES["mobilenet-v2-export"](None)
    norm = recipe.module.features[0][1]
    assert float(norm.running_var.std()) > 0.01  # trained statistics, not the initial ones
