"""The user's cache folder: where it is, and how files get into it whole or not at all.

Not here: what is put there (models/download.py, models/build.py).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from graphopt.errors import GraphoptError


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the given folder, else $GRAPHOPT_CACHE, else $XDG_CACHE_HOME/graphopt, else ~/.cache/graphopt."""
    if cache_dir is not None:
        return Path(cache_dir)
    if own := os.environ.get("GRAPHOPT_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "graphopt"
    return Path.home() / ".cache" / "graphopt"


def place(target: Path, produce: Callable[[Path], None]) -> Path:
    """Make `target` by calling produce(path), which writes a file or folder at path, and move it there in one step.

    A reader therefore sees the whole thing or nothing, and two processes may place the same target.

    Raises:
        GraphoptError: the cache folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
    except OSError as error:
        raise _not_writable(target.parent, error) from error
    try:
        made = scratch / target.name
        produce(made)
        _move(made, target)
    except OSError as error:
        raise _not_writable(target.parent, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _move(made: Path, target: Path) -> None:
    try:
        os.replace(made, target)
    except OSError:
        # A folder cannot replace a filled folder: another process was faster, and its result is the same.
        if not (made.is_dir() and target.is_dir()):
            raise


def _not_writable(folder: Path, error: OSError) -> GraphoptError:
    reason = error.strerror or str(error)
    return GraphoptError(f"cannot write the cache {folder}: {reason}; set GRAPHOPT_CACHE to another folder")
