"""Finds passes and targets: built-in ones by walking the folders, other people's through entry points and `--load`.

Listing imports neither onnx nor onnx_ir; a broken plug-in is reported, not fatal.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import inspect
import pkgutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean, in_one_line
from graphopt.manager.base import Pass, is_concrete
from graphopt.manager.plugins import entry_points
from graphopt.spec import Spec, build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint

_loaded: dict[str, type[Pass]] = {}


def _walk(package: str) -> list[ModuleType]:
    root = importlib.import_module(package)
    names = [
        info.name
        for info in pkgutil.walk_packages(root.__path__, f"{package}.")
        if not info.name.rsplit(".", 1)[-1].startswith(("_", "make_", "worker"))
    ]
    with _permanent():
        return [importlib.import_module(name) for name in sorted(names)]


@contextmanager
def _permanent() -> Iterator[None]:
    """What is imported here stays for good: the garbage collector does not look at it, neither now nor at the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def _folders(package: str) -> list[str]:
    root = importlib.import_module(package)
    return sorted(info.name for info in pkgutil.iter_modules(root.__path__, f"{package}.") if info.ispkg)


def _builtin_targets() -> Iterator[Any]:
    """Targets in `target.py` of every folder in `targets/`: what stands beside it is its own, and may import slowly."""
    from graphopt.target import Target

    for folder in _folders("graphopt.targets"):
        for cls in _own_classes(importlib.import_module(f"{folder}.target")):
            if issubclass(cls, Target) and isinstance(cls.__dict__.get("name"), str):
                yield cls


def _classes(module: ModuleType) -> list[type[Pass]]:
    return [cls for cls in _own_classes(module) if is_concrete(cls)]


def _own_classes(module: ModuleType) -> list[Any]:
    """Classes that a module defines, by name; quicker than inspect.getmembers(), which `graphopt passes` would feel."""
    found = sorted(vars(module).items())
    return [item for _, item in found if isinstance(item, type) and item.__module__ == module.__name__]


_LOSSY = "graphopt.passes.quantize"
"""The folder whose passes are in no level."""


@functools.cache
def _in_folder(folder: str) -> dict[str, type[Pass]]:
    return {cls.name: cls for module in _walk(folder) for cls in _classes(module)}


def _of_levels() -> dict[str, type[Pass]]:
    """Built-in passes that may be in a level."""
    return {
        name: cls
        for folder in _folders("graphopt.passes")
        if folder != _LOSSY
        for name, cls in _in_folder(folder).items()
    }


def _builtin() -> dict[str, type[Pass]]:
    return {**_of_levels(), **_in_folder(_LOSSY)}


@functools.cache
def _plugins() -> tuple[dict[str, type[Pass]], tuple[str, ...]]:
    table: dict[str, type[Pass]] = {}
    problems = []
    for entry in entry_points("graphopt.passes"):
        try:
            cls = entry.load()
        except Exception as error:  # another package's import may fail in any way; it must not take ours down
            problems.append(_does_not_load(entry, error))
            continue
        if not is_concrete(cls) or cls.name != entry.name:
            problems.append(f"plug-in {entry.name!r} ({entry.value}) is not a pass of that name")
            continue
        table[cls.name] = cls
    return table, tuple(problems)


def problems() -> tuple[str, ...]:
    """Plug-in passes that could not be loaded, one line each."""
    return _plugins()[1]


def target_problems() -> tuple[str, ...]:
    """Plug-in targets that could not be loaded, one line each; loads the targets, which listing passes must not."""
    return _targets()[1]


def _does_not_load(entry: EntryPoint, error: Exception) -> str:
    return f"plug-in {entry.name!r} ({entry.value}) does not load: {in_one_line(error)}"


def passes() -> dict[str, type[Pass]]:
    """Every pass by name: built-in, installed plug-ins, and those loaded from files."""
    return {**_plugins()[0], **_builtin(), **_loaded}


def leveled() -> dict[str, type[Pass]]:
    """The passes by name that a level may have. Built-in lossy ones, which none has, are not imported for it."""
    return passes() if _plugins()[0] else {**_of_levels(), **_loaded}


def get(name: str) -> type[Pass]:
    """The pass class of that name.

    Raises:
        GraphoptError: unknown, with the nearest name.
    """
    found = leveled().get(name) or passes().get(name)
    if found is None:
        raise GraphoptError(f"there is no pass {name!r}{did_you_mean(name, passes()) or '; see: graphopt passes'}")
    return found


def make(spec: Spec) -> Pass:
    """A pass instance from its spec."""
    return build(get(spec.name), spec, "pass")


def register(cls: type[Pass]) -> type[Pass]:
    """Make a pass class known by its name in this process; usable as a decorator.

    Raises:
        GraphoptError: it is no pass, has the name of a built-in one, or options without being a dataclass.
    """
    if not is_concrete(cls):
        raise GraphoptError(
            f"{getattr(cls, '__name__', cls)!r} is not a pass: it needs a `name` and all methods of its base"
        )
    if forgotten := ", ".join(options_not_declared(cls)):
        raise GraphoptError(f"pass {cls.name!r} has the options {forgotten}: @dataclass(frozen=True) is missing")
    if _builtin().get(cls.name, cls) is not cls:
        raise GraphoptError(f"pass {cls.name!r} is built in: a pass of your own needs another name")
    _loaded[cls.name] = cls
    return cls


def options_not_declared(cls: type[Pass]) -> list[str]:
    """Annotated fields of a class that no dataclass decorator has seen."""
    own = vars(cls).get("__annotations__", {}).items()
    known = {field.name for field in dataclasses.fields(cls)}
    return [name for name, kind in own if name not in known and "ClassVar" not in str(kind)]


_LOADED = "graphopt_loaded_"


def load_file(path: str | Path) -> list[type[Pass]]:
    """Import a Python file and register the passes it defines (`--load`). The file is code: it runs."""
    path = Path(path)
    if not path.is_file():
        raise GraphoptError(f"--load {path}: there is no such file")
    from graphopt.manager.codefile import run_file

    if path.suffix != ".py":
        raise GraphoptError(f"--load {path}: not a Python file")
    try:
        module = run_file(path, _LOADED)
    except GraphoptError:
        raise
    except (Exception, SystemExit) as error:
        raise GraphoptError(f"--load {path}: {in_one_line(error)}") from error
    found = _classes(module)
    if not found:
        raise GraphoptError(f"--load {path}: defines no pass; a pass is a subclass of graphopt.Pass with a `name`")
    return [register(cls) for cls in found]


def loaded_from(cls: type[Pass]) -> Path | None:
    """The file that `load_file` took a pass from, as an absolute path; None for any other pass."""
    if not cls.__module__.startswith(_LOADED):
        return None
    file = sys.modules[cls.__module__].__file__
    return Path(file).absolute() if file is not None else None


def targets() -> dict[str, Any]:
    """Every target class by name."""
    return _targets()[0]


@functools.cache
def _targets() -> tuple[dict[str, Any], tuple[str, ...]]:
    from graphopt.target import Target

    table: dict[str, Any] = {cls.name: cls for cls in _builtin_targets()}
    problems = []
    for entry in entry_points("graphopt.targets"):
        try:
            cls = entry.load()
        except Exception as error:  # as for passes
            problems.append(_does_not_load(entry, error))
            continue
        if not (inspect.isclass(cls) and issubclass(cls, Target)):
            problems.append(f"plug-in {entry.name!r} ({entry.value}) is not a target")
            continue
        table.setdefault(entry.name, cls)
    return table, tuple(problems)


def make_target(text: str) -> Any:
    """A target instance from text such as `cpu` or `onnxruntime{device=cuda}`; `cuda:1` is `cuda{device_id=1}`.

    Raises:
        GraphoptError: unknown target or option, with the nearest name.
    """
    from graphopt.spec import parse_spec

    name, colon, number = text.partition(":")
    spec = parse_spec(f"{name}{{device_id={number}}}" if colon and number.isdigit() else text)
    builtin = (cls for cls in _builtin_targets() if cls.name == spec.name)  # folders behind it are not imported
    found = next(builtin, None) or targets().get(spec.name)
    if found is None:
        raise GraphoptError(f"there is no target {spec.name!r}{did_you_mean(spec.name, targets())}")
    return build(found, spec, "target")
