"""What every registered pass must keep, checked without knowing the pass: new passes are found by themselves.

The graphs are those of tests/unit/graphs.py. What a pass should achieve is in tests/golden.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from graphopt.calibrating import Calibrating
from graphopt.errors import GraphoptError, PassError, VerificationError
from graphopt.ir import hash as ir_hash
from graphopt.ir.sites import name_nodes
from graphopt.ir.verifier import Interface, verify
from graphopt.manager import registry
from graphopt.manager.base import STAGES, Pass
from graphopt.manager.context import Context
from graphopt.manager.pipeline import Pipeline, parse
from graphopt.manager.runner import run

PASSES = registry.passes()
EXAMPLES = {"bind-dims": "bind-dims{N=2}"}
"""How passes that cannot be made without options are written here."""

LIMIT = {"exact": 0.0, "reassociates": 1e-4}
"""Largest difference relative to the output's maximum."""

FOLDERS = {
    "capture": {"capture"},
    "simplify": {"simplify", "layout"},
    "compress": {"prune", "factorize", "binarize", "compress"},
    "fuse-portable": {"fuse"},
    "quantize": {"quantize"},
    "fuse-target": {"fuse_target"},
    "cleanup": {"cleanup", "simplify", "layout"},
}
"""Where the file of a pass may lie, by its stage."""


def _load_graphs() -> Any:
    path = Path(__file__).parents[1] / "unit" / "graphs.py"
    spec = importlib.util.spec_from_file_location("awkward_graphs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


graphs = _load_graphs()
every_pass = pytest.mark.parametrize("name", sorted(PASSES))


def _make(name: str) -> Pass:
    required = [
        field.name
        for field in dataclasses.fields(PASSES[name])
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    assert not required or name in EXAMPLES, f"pass {name!r} needs {required}: write an example into EXAMPLES"
    items = list(parse(EXAMPLES.get(name, name)).passes())
    assert len(items) == 1
    return items[0]


class _Graph:
    """An awkward graph with its reference outputs; built anew only after a pass has changed it."""

    def __init__(self, name: str, run_model: Any) -> None:
        self.name = name
        self.runs = name not in graphs.NO_KERNEL and name not in graphs.RANDOM
        self.feeds = graphs.feeds(graphs.AWKWARD[name]())
        self.reference = run_model(graphs.AWKWARD[name](), self.feeds) if self.runs else None
        self._ready: Context | None = None

    def take(self, evaluate: Any) -> Context:
        ctx, self._ready = self._ready, None
        if ctx is not None:
            return ctx
        model = graphs.AWKWARD[self.name]()
        name_nodes(model)
        return Context(model, evaluate=evaluate)

    def give_back(self, ctx: Context) -> None:
        self._ready = ctx


@pytest.fixture(scope="module")
def graph(run_model: Any) -> Any:
    return functools.cache(lambda name: _Graph(name, run_model))


def _apply(item: Pass, ctx: Context) -> int:
    before = ctx.rewriter.changes
    run(ctx.model, Pipeline((item,)), ctx)
    return ctx.rewriter.changes - before


@every_pass
def test_options_are_declared(name: str) -> None:
    assert not registry.options_not_declared(PASSES[name])


@every_pass
def test_survives_awkward_graphs(
    name: str, graph: Any, run_model: Any, evaluate: Any, difference: Any, tmp_path: Path
) -> None:
    item = _make(name)
    for title in graphs.AWKWARD:
        awkward = graph(title)
        ctx = awkward.take(evaluate)
        if item.calibrated:
            ctx.calibration = Calibrating(ctx.model, "random", tmp_path)
        model, where = ctx.model, f"{name} on {title!r}"
        was, interface = ir_hash.fingerprint(model), Interface.of(model)
        try:
            applied = _apply(item, ctx)
        except GraphoptError as error:
            # Asked for by name, such a pass refuses a model that has nothing of that name.
            known = not isinstance(error, PassError | VerificationError)
            refuses = item.changes_interface or (item.calibrated and not awkward.runs)
            assert known and refuses and ir_hash.fingerprint(model) == was, f"{where}: {error}"
            continue
        changed = ir_hash.fingerprint(model) != was
        assert changed == bool(applied), f"{where}: {applied} rewrites were counted, changed is {changed}"
        if not applied:
            awkward.give_back(ctx)
            continue
        verify(model, None if item.changes_interface else interface)
        if awkward.runs and not item.changes_interface and item.tolerance in LIMIT:
            got = run_model(model, awkward.feeds)
            for output, want in awkward.reference.items():
                gap = difference(want, got[output])
                assert gap <= LIMIT[item.tolerance], f"{where}: output {output!r} differs by {gap:.3g}"
        assert _apply(item, ctx) == 0, f"{where}: not idempotent"
        again = Context(model, evaluate=evaluate, calibration=ctx.calibration)
        assert _apply(item, again) == 0, f"{where}: not idempotent with analyses made anew"


@every_pass
def test_text_round_trip(name: str) -> None:
    item = _make(name)
    assert list(parse(str(item)).passes()) == [item]
    assert str(next(parse(str(item)).passes())) == str(item)
    assert hash(item) == hash(next(parse(str(item)).passes()))


@every_pass
def test_is_described(name: str) -> None:
    cls = PASSES[name]
    own = cls.__dict__.get("__doc__") or ""
    assert own and not own.startswith(f"{cls.__name__}("), "a dataclass without a docstring of its own"
    assert 10 <= len(cls.summary()) <= 160, f"the first line is the equation or what the pass does: {cls.summary()!r}"
    assert cls.stage in STAGES and cls.tolerance in ("exact", "reassociates", "lossy")
    assert cls.level in (None, 1, 2, 3)
    assert cls.level != 1 or cls.tolerance == "exact", "level 1 is for exact passes"
    assert set(cls.after) <= set(PASSES), f"`after` names no pass: {set(cls.after) - set(PASSES)}"
    assert set(cls.needs) | set(cls.keeps) <= {"shapes", "ranges"}


@every_pass
def test_name_and_place_agree(name: str) -> None:
    cls = PASSES[name]
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name), "a name is kebab-case"
    if not cls.__module__.startswith("graphopt.passes."):
        return
    folder, stem = cls.__module__.split(".")[-2:]
    assert folder in FOLDERS[cls.stage], f"a pass of stage {cls.stage!r} lies in one of {sorted(FOLDERS[cls.stage])}"
    beside = [other for other, its in PASSES.items() if its.__module__ == cls.__module__]
    words = {word for other in beside for word in other.split("-")}
    assert set(stem.split("_")) <= words, f"file {stem}.py holds {beside}: its words should be of their names"


def test_names_are_unique() -> None:
    modules = [module for folder in registry._folders("graphopt.passes") for module in registry._walk(folder)]
    names = [cls.name for module in modules for cls in registry._classes(module)]
    assert sorted(names) == sorted(set(names))


def test_what_levels_do_not_import_has_no_level() -> None:
    assert {name for name, cls in registry.passes().items() if cls.level is not None} <= set(registry.leveled())


@every_pass
def test_is_a_frozen_dataclass(name: str) -> None:
    cls = PASSES[name]
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert inspect.getmodule(cls) is not None
