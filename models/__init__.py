"""The model zoo: real models fetched from pinned packages, and architectures built by code.

Listing imports nothing heavy; torch and transformers are imported when a model is built.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.models.registry import MODELS, ModelInfo, find

__all__ = ["ModelInfo", "fetch", "list_models", "path", "synthetic"]


def list_models() -> tuple[ModelInfo, ...]:
    """Return every model of the zoo, fetched ones first."""
    return tuple(MODELS.values())


def fetch(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Fetch or build a model unless the cache has it, and return its path.

    Args:
        name: a name of `list_models()`.
        cache_dir: instead of $GRAPHOPT_CACHE, $XDG_CACHE_HOME/graphopt or ~/.cache/graphopt.

    Returns:
        An .onnx file; for packages of weights a .pth file or a folder.

    Raises:
        GraphoptError: no such model, no network, a wrong hash, or a folder that cannot be written.
        MissingDependency: the model is built with torch or transformers, which are not installed.
    """
    info = find(name)
    if info.kind == "fetched":
        from graphopt.models.download import download

        return download(info, cache_dir)
    from graphopt.models.build import build

    return build(info, cache_dir)


def path(name: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a model that was fetched before; touches no network and builds nothing.

    Raises:
        GraphoptError: no such model, or it is not in the cache.
    """
    info = find(name)
    if info.kind == "fetched":
        from graphopt.models.download import location
    else:
        from graphopt.models.build import location
    where = location(info, cache_dir)
    if not where.exists():
        raise GraphoptError(
            f"the model {name!r} is not fetched ({where} is not there); run: graphopt models fetch {name}"
        )
    return where


def __getattr__(name: str) -> Any:
    if name == "synthetic":
        import importlib

        return importlib.import_module("graphopt.models.synthetic")
    raise AttributeError(f"module 'graphopt.models' has no attribute {name!r}")
