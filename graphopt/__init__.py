"""graphopt: a graph-level optimizing compiler for neural networks.

The public names are loaded on first use, so importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from graphopt.blame import bisect
    from graphopt.driver import Options, compile, optimize
    from graphopt.errors import GraphoptError
    from graphopt.frontends.onnx import load
    from graphopt.frontends.torch import from_torch
    from graphopt.ir.builder import NoMatch
    from graphopt.ir.writer import write as save
    from graphopt.manager.base import Pass
    from graphopt.manager.pattern import RewritePass
    from graphopt.manager.worklist import NodePass
    from graphopt.target import Runner, Target

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
