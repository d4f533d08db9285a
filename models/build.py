"""Building the zoo's torch models: seed, construct, export to ONNX, keep in the cache.

The architectures are in models/cnn.py and models/transformer.py; here is what each is exported with.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError, MissingDependency
from graphopt.models.cache import cache_root, place
from graphopt.models.registry import ModelInfo, find

# Raise it when an architecture, a seed or an export option below changes: it is part of the cache key.
BUILDER_VERSION = 1
_SEED = 20260101


@dataclass(frozen=True)
class _Recipe:
    """What to export: the module, example inputs by name, output names, names of the dynamic dims of each input."""

    module: Any
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    dynamic: tuple[dict[int, str], ...] | None = None


def location(info: ModelInfo, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where a built model is, or would be.

    Raises:
        MissingDependency: torch or transformers is missing, so that there is no exporter to name the folder after.
    """
    folder = f"built-{BUILDER_VERSION}-torch-{_version(info, 'torch')}-transformers-{_version(info, 'transformers')}"
    return cache_root(cache_dir) / "models" / folder / f"{info.name}.onnx"


def build(info: ModelInfo, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Build a model unless the cache has it. The weights depend on nothing but the library versions.

    Raises:
        MissingDependency: torch or transformers is missing.
        GraphoptError: real weights cannot be fetched, or the cache cannot be written.
    """
    target = location(info, cache_dir)
    if target.exists():
        return target
    recipe = _recipe(info, cache_dir)
    return place(target, lambda made: _export(recipe, made))


def torch_module(name: str, cache_dir: str | os.PathLike[str] | None = None) -> tuple[Any, dict[str, Any]]:
    """The torch module that a built model is exported from, and its example inputs by name.

    Raises:
        MissingDependency: torch or transformers is missing.
        GraphoptError: no such built model, or real weights cannot be fetched.
    """
    info = find(name)
    if name not in _RECIPES:
        raise GraphoptError(f"model {name!r} is fetched, not built from a torch module")
    recipe = _recipe(info, cache_dir)
    return recipe.module.eval(), recipe.inputs


def _recipe(info: ModelInfo, cache_dir: str | os.PathLike[str] | None) -> _Recipe:
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("onnxscript")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            return _RECIPES[info.name](cache_dir)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"building {info.name}", "torch") from error


def _version(info: ModelInfo, package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        raise MissingDependency(f"building {info.name}", "torch") from None


def _export(recipe: _Recipe, made: Path) -> None:
    import torch

    names = list(recipe.inputs)
    with _quiet():
        program = torch.onnx.export(
            recipe.module.eval(),
            tuple(recipe.inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=list(recipe.outputs),
            dynamic_shapes=recipe.dynamic,
        )
        assert program is not None
        # Stack traces name folders of this machine: without them the same versions give the same file everywhere.
        for node in program.model.graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        program.save(str(made), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about itself (missing torchvision, foldings that failed) off the user's terminal."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _image(module: Any, size: int = 224) -> _Recipe:
    import torch

    return _Recipe(module, {"x": torch.randn(1, 3, size, size)}, ("logits",))


def _random_cnn(module: Any) -> _Recipe:
    import torch

    from graphopt.models.cnn import settle_norms

    settle_norms(module, torch.randn(4, 3, 224, 224))
    return _image(module)


def _tokens(module: Any, output: str, batch: int = 2, sequence: int = 16, *, dynamic: bool = True) -> _Recipe:
    import torch

    ids = torch.randint(1, 1000, (batch, sequence))
    dims = {0: "batch", 1: "sequence"}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return _Recipe(module, inputs, (output,), (dims, dims) if dynamic else None)


def _minilm(cache_dir: str | os.PathLike[str] | None, *, dynamic: bool) -> _Recipe:
    from graphopt.models.download import download
    from graphopt.models.transformer import minilm

    module = minilm(download(find("minilm-l6"), cache_dir))
    if dynamic:
        return _tokens(module, "last_hidden_state")
    return _tokens(module, "last_hidden_state", batch=1, sequence=128, dynamic=False)


def _mobilenet(cache_dir: str | os.PathLike[str] | None) -> _Recipe:
    import torch

    from graphopt.models.cnn import MobileNetV2
    from graphopt.models.download import download

    module = MobileNetV2()
    weights = download(find("mobilenet-v2"), cache_dir)
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return _image(module)


def _llama_kv() -> _Recipe:
    import torch

    from graphopt.models import transformer as t

    batch, sequence, past = 2, 3, 5
    ids = torch.randint(1, 1000, (batch, sequence))
    inputs = {"input_ids": ids, "attention_mask": torch.ones(batch, past + sequence, dtype=torch.int64)}
    dynamic = [{0: "batch", 1: "sequence"}, {0: "batch", 1: "total"}]
    outputs = ["logits"]
    for layer in range(t.LLAMA_LAYERS):
        for what in ("key", "value"):
            inputs[f"past_{what}_{layer}"] = torch.randn(batch, t.LLAMA_KV_HEADS, past, t.LLAMA_HEAD_SIZE)
            dynamic.append({0: "batch", 2: "past"})
            outputs.append(f"present_{what}_{layer}")
    # The cached decoder takes its past as *args, whose dims the exporter wants as one nested tuple.
    shapes: Any = (*dynamic[:2], tuple(dynamic[2:]))
    return _Recipe(t.llama_tiny_kv(), inputs, tuple(outputs), shapes)


def _cnn(name: str, *args: Any, **options: Any) -> Callable[[Any], _Recipe]:
    def recipe(_: Any) -> _Recipe:
        return _random_cnn(getattr(importlib.import_module("graphopt.models.cnn"), name)(*args, **options))

    return recipe


def _net(name: str, wrap: Callable[..., _Recipe], **options: Any) -> Callable[[Any], _Recipe]:
    def recipe(_: Any) -> _Recipe:
        return wrap(getattr(importlib.import_module("graphopt.models.transformer"), name)(), **options)

    return recipe


_RECIPES: dict[str, Callable[[str | os.PathLike[str] | None], _Recipe]] = {
    "minilm-l6-export": lambda cache_dir: _minilm(cache_dir, dynamic=True),
    "minilm-l6-export-static": lambda cache_dir: _minilm(cache_dir, dynamic=False),
    "bert-tiny-export": _net("bert_tiny", _tokens, output="last_hidden_state"),
    "vit-b16-export": _net("vit_b16", _image),
    "vit-tiny-export": _net("vit_tiny", _image, size=32),
    "convnext-t-export": _net("convnext_t", _image),
    "llama-tiny": _net("llama_tiny", _tokens, output="logits"),
    "llama-tiny-kv": lambda _: _llama_kv(),
    "mobilenet-v2-export": _mobilenet,
    "densenet121-export": _cnn("DenseNet"),
    "shufflenet-v2-export": _cnn("ShuffleNetV2"),
    "resnet18-export": _cnn("ResNet", (2, 2, 2, 2), bottleneck=False),
    "resnet50-export": _cnn("ResNet", (3, 4, 6, 3), bottleneck=True),
}
