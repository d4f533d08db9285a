"""graphopt: a graph-level optimizing compiler for neural networks.

The public names are loaded on first use, so importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # "as" tells type checkers that the names are meant to be imported from here
    from graphopt.blame import bisect as bisect
    from graphopt.driver import Options as Options
    from graphopt.driver import compile as compile
    from graphopt.driver import optimize as optimize
    from graphopt.errors import GraphoptError as GraphoptError
    from graphopt.frontends.onnx import load as load
    from graphopt.frontends.torch import from_torch as from_torch
    from graphopt.ir.builder import NoMatch as NoMatch
    from graphopt.ir.writer import write
    from graphopt.manager.base import Pass as Pass
    from graphopt.manager.pattern import RewritePass as RewritePass
    from graphopt.manager.worklist import NodePass as NodePass
    from graphopt.target import Runner as Runner
    from graphopt.target import Target as Target

    save = write

_WHERE = {
    "GraphoptError": "graphopt.errors",
    "Options": "graphopt.driver",
    "bisect": "graphopt.blame",
    "compile": "graphopt.driver",
    "optimize": "graphopt.driver",
    "from_torch": "graphopt.frontends.torch",
    "load": "graphopt.frontends.onnx",
    "save": "graphopt.ir.writer:write",
    "NoMatch": "graphopt.ir.builder",
    "Pass": "graphopt.manager.base",
    "NodePass": "graphopt.manager.worklist",
    "RewritePass": "graphopt.manager.pattern",
    "Runner": "graphopt.target",
    "Target": "graphopt.target",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    module, _, attribute = _WHERE.get(name, "").partition(":")
    if not module:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value
