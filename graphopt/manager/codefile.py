"""Python files that users name: passes (`--load`), samples and metrics (`file.py:function`)."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def run_file(path: Path, prefix: str) -> ModuleType:
    """Import a `.py` file that exists. It is code: it runs, and may raise anything. No bytecode is left beside it.

    Args:
        path: the file.
        prefix: of the module's name; the rest is made of the whole path, as two files of one name are two modules.
    """
    name = f"{prefix}{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _without_bytecode():
        spec.loader.exec_module(module)
    return module


@contextmanager
def _without_bytecode() -> Iterator[None]:
    was = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = was
