"""The IR is onnx_ir's object model, re-exported, with what it lacks beside it.

Nothing heavy is imported until a name is used: listing passes must not pay for onnx_ir.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_ir import *  # noqa: F403

# Newest standard opset that ONNX Runtime 1.23+, torch's exporter and the version converter share (docs/dev/facts.md).
WORKING_OPSET = 21


def __getattr__(name: str) -> Any:
    # `from graphopt.ir import sites` asks here first; answering it must not import onnx_ir.
    if name.startswith("__") or (Path(__file__).parent / f"{name}.py").exists():
        raise AttributeError(name)
    from graphopt.ir.lazy_import import import_without_sympy

    value = getattr(import_without_sympy("onnx_ir"), name)
    globals()[name] = value
    return value
