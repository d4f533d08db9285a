"""Runs every golden file: what a pass makes of a model, or why it leaves it alone, and that the numbers stay.

A file is `<pass-name>.txt`:

    # pipeline: fix(eliminate-identity,dce)
    # target: cpu                                           only for passes that ask what a target supports
    ## title of a case
    ### before
    g (float[N] x) => (float[N] y) { y = Identity(x) }      ONNX text; without a header opset 21 is meant
    ### expected
    model (opset ...                                        as graphopt.ir.text.to_text prints it
    ## title of a case that must not change
    # pipeline: ...                                         only where this case has one of its own
    ### before
    ...
    ### unchanged: part of a missed-remark's reason         empty when the rule makes no remark there
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.calibrating import Calibrating
from graphopt.ir.sites import name_nodes
from graphopt.ir.text import from_text, to_text
from graphopt.manager import registry
from graphopt.manager.base import Pass
from graphopt.manager.context import Context
from graphopt.manager.pattern import RewritePass
from graphopt.manager.pipeline import Pipeline, parse
from graphopt.manager.runner import RunResult, run
from graphopt.manager.worklist import NodePass

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.txt"))
HEADER = '<ir_version: 10, opset_import: ["": 21]>'
REASSOCIATES = 1e-4
"""Largest difference that a pass which reassociates may make on a case, relative to the output's maximum."""
LOSSY = 4e-3
"""The same for a pass that rounds to fewer bits: four steps of float16."""


@dataclass(frozen=True)
class Case:
    """One case: its text before, the expected text or the reason to stay unchanged, and what may be lost of outputs."""

    path: Path
    pipeline: str
    title: str
    before: str
    expected: str | None
    reason: str | None
    target: str | None = None
    loss: float | None = None

    def model(self) -> Any:
        text = self.before.strip()
        model = from_text(text if text.startswith("<") else f"{HEADER}\n{text}")
        name_nodes(model)  # as capture does: remarks speak of sites
        return model


def _cases(path: Path) -> list[Case]:
    text = path.read_text(encoding="utf-8")
    head, *blocks = re.split(r"^## ", text, flags=re.MULTILINE)
    found = re.search(r"^# pipeline: (.+)$", head, flags=re.MULTILINE)
    assert found and blocks, f"{path.name}: wants a '# pipeline: ...' line and '## title' cases"
    target = re.search(r"^# target: (.+)$", head, flags=re.MULTILINE)
    loss = re.search(r"^# loss: (.+)$", head, flags=re.MULTILINE)
    cases = [_case(path, found[1].strip(), block) for block in blocks]
    changes = {"target": target[1].strip() if target else None, "loss": float(loss[1]) if loss else None}
    return [replace(case, **changes) for case in cases]


def _case(path: Path, pipeline: str, block: str) -> Case:
    title, _, rest = block.partition("\n")
    parts = re.split(r"^### (.*)$", rest, flags=re.MULTILINE)
    where = f"{path.name}, case {title!r}"
    assert len(parts) == 5 and parts[1] == "before", f"{where}: wants ### before, then ### expected or ### unchanged"
    own = re.search(r"^# pipeline: (.+)$", parts[0], flags=re.MULTILINE)
    pipeline = own[1].strip() if own else pipeline
    before, kind, after = parts[2], parts[3], parts[4]
    if kind.startswith("unchanged:"):
        return Case(path, pipeline, title, before, None, kind.removeprefix("unchanged:").strip())
    assert kind == "expected", f"{where}: unknown section '### {kind}'"
    return Case(path, pipeline, title, before, after.strip() + "\n", None)


CASES = [case for path in FILES for case in _cases(path)]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.path.stem}: {case.title}" for case in CASES])
def test_case(case: Case, update_golden: bool, run_model: Any, evaluate: Any, difference: Any, tmp_path: Path) -> None:
    model, before = case.model(), case.model()
    pipeline = parse(case.pipeline)
    target = registry.make_target(case.target) if case.target else None
    ctx = Context(model, target=target, evaluate=evaluate)
    if any(item.calibrated for item in pipeline.passes()):
        ctx.calibration = Calibrating(model, _feeds(before, special=False), tmp_path)
    result = run(model, pipeline, ctx)
    if case.reason is not None:
        _stays(case, result)
        return
    applied = result.effects()
    assert applied.get(case.path.stem), f"{case.path.stem} applied nothing: {_reasons(result)}"
    for inputs in _feeds(before, special=_exact(pipeline)):
        want, got = run_model(before, inputs), run_model(model, _typed(inputs, model))
        assert list(got) == list(want)
        if any(item.changes_interface for item in pipeline.passes()):
            got = {name: value.astype(want[name].dtype) for name, value in got.items()}
        for name in want:
            gap = difference(want[name], got[name])
            assert gap <= (case.loss or _limit(pipeline)), f"output {name!r} differs by {gap:.3g}"
    now = to_text(model)
    if update_golden:
        _write(case, now)
    else:
        assert now == case.expected


def _stays(case: Case, result: RunResult) -> None:
    assert not result.effects().get(case.path.stem), "the pass applied a rewrite"
    reasons = _reasons(result, case.path.stem)
    if case.reason:
        assert any(case.reason in reason for reason in reasons), f"no reason has {case.reason!r}: {reasons}"
    else:
        assert not reasons, f"a remark was made: {reasons}; name a part of it behind '### unchanged:'"


def _reasons(result: RunResult, name: str | None = None) -> list[str]:
    mine = [remark for remark in result.ctx.remarks if name in (None, remark.pass_name)]
    return [remark.reason for remark in mine if remark.status != "applied"]


def _exact(pipeline: Pipeline) -> bool:
    return all(item.tolerance == "exact" for item in pipeline.passes())


def _limit(pipeline: Pipeline) -> float:
    if _exact(pipeline):
        return 0.0
    return LOSSY if any(item.tolerance == "lossy" for item in pipeline.passes()) else REASSOCIATES


def _write(case: Case, now: str) -> None:
    text = case.path.read_text(encoding="utf-8")
    start = text.index(f"## {case.title}\n")
    at = text.index("### expected", start) + len("### expected\n")
    end = text.find("\n## ", start)
    case.path.write_text(text[:at] + now + (text[end:] if end >= 0 else ""), encoding="utf-8")


def _feeds(model: Any, special: bool) -> list[dict[str, Any]]:
    """Seeded inputs at two bindings of the symbols; for exact pipelines also with NaN, Inf, -0.0 and denormals."""
    sets = [_binding(model, {"N": 2}, 3), _binding(model, {"N": 5}, 4)]
    if special:
        sets.append({name: _with_specials(value) for name, value in sets[0].items()})
    return sets


def _binding(model: Any, known: dict[str, int], other: int) -> dict[str, Any]:
    return {
        value.name: _feed(value, known, other)
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    }


def _feed(value: Any, known: dict[str, int], other: int) -> Any:
    """Floats are normal, integers 0 or 1, bools mixed; a nameless dim has the size `other`, an unknown rank is 2."""
    dims = value.shape if value.shape is not None else (2, other)
    shape = [dim if isinstance(dim, int) else known.get(str(dim.value), other) for dim in dims]
    random = np.random.default_rng(zlib.crc32(value.name.encode()) + other)
    if value.dtype.is_floating_point():
        return random.standard_normal(shape).astype(value.dtype.numpy())
    return random.integers(0, 2, shape).astype(value.dtype.numpy())


def _typed(feeds: dict[str, Any], model: Any) -> dict[str, Any]:
    """The feeds in the types that the model has now."""
    types = {value.name: value.dtype.numpy() for value in model.graph.inputs if value.dtype is not None}
    return {name: value.astype(types.get(name, value.dtype)) for name, value in feeds.items()}


def _with_specials(array: Any) -> Any:
    if array.dtype.kind != "f" or not array.size:
        return array
    out = array.copy().reshape(-1)
    values = [np.nan, np.inf, -np.inf, -0.0, 0.0, float(np.finfo(array.dtype).smallest_subnormal)]
    spots = np.random.default_rng(0).permutation(out.size)[: max(1, out.size // 2)]
    out[spots] = np.resize(np.array(values, array.dtype), spots.size)
    return out.reshape(array.shape)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_about_an_installed_pass_and_has_a_negative_case(path: Path) -> None:
    cases = _cases(path)
    assert path.stem in {item.name for item in parse(cases[0].pipeline).passes()}
    assert any(case.reason is not None for case in cases), "no '### unchanged' case"
    assert any(case.expected is not None for case in cases), "no '### expected' case"
    titles = [case.title for case in cases]
    assert len(set(titles)) == len(titles), "two cases have the same title"


RULES = [cls for cls in registry.passes().values() if issubclass(cls, NodePass) and cls not in (NodePass, RewritePass)]


@pytest.mark.parametrize("rule", RULES, ids=lambda cls: cls.name)
def test_every_rule_has_a_golden_file(rule: type[Pass]) -> None:
    assert (FOLDER / f"{rule.name}.txt").is_file(), f"tests/golden/{rule.name}.txt is missing"
