"""Imports onnx_ir without sympy, which takes half of its 0.7 s and is needed only for arithmetic on symbolic dims.

A stand-in takes the place of each module that pulls sympy in, and becomes it when something asks it for a name.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_LATER = (
    "sympy",
    "onnx_ir._symbolic_shapes",
    "onnx_shape_inference._symbolic_shapes",
    "onnx_shape_inference._constraints",
)


class _Later(ModuleType):
    """A module that is imported at the first look-up of one of its names.

    importlib.util.LazyLoader would do, but up to Python 3.12 a second `import` of the same module makes it load.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


def import_without_sympy(name: str) -> ModuleType:
    """Import onnx_ir or a package on top of it; sympy is imported when something first uses it."""
    if name not in sys.modules:
        for later in _LATER:
            sys.modules.setdefault(later, _Later(later))
    return importlib.import_module(name)
