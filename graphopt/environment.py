"""What a run depends on besides its inputs: versions of packages (in the manifest) and the machine (in the report)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of the packages that decide what is written; `more` are those of a target."""
    import importlib.metadata

    import graphopt

    found = {"graphopt": graphopt.__version__}
    for name in ("numpy", "onnx", "onnx-ir", "onnx-shape-inference", "onnxruntime", "onnxruntime-gpu", *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the measured numbers of a report belong to."""
    import os
    import platform

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def physical_bytes() -> int:
    """Size of the machine's memory."""
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
