"""Entry points of installed packages, without paying for importlib.metadata (30 ms) when there are none.

Not here: what the entries must be (registry.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def entry_points(group: str) -> Sequence[EntryPoint]:
    """The entry points of a group, from every package on the import path."""
    if not any(_names(Path(folder), group) for folder in sys.path):
        return ()
    import importlib.metadata

    return tuple(importlib.metadata.entry_points(group=group))


def _names(folder: Path, group: str) -> bool:
    """Whether something installed in a folder of the import path may have entry points of the group."""
    if folder.suffix in (".zip", ".egg"):
        return folder.exists()  # cannot be looked into this cheaply
    try:
        installed = [entry.path for entry in os.scandir(folder) if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:
        return False
    for path in installed:
        with contextlib.suppress(OSError), open(f"{path}/entry_points.txt", encoding="utf-8") as file:
            if group in file.read():
                return True
    return False
