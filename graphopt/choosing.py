"""Chooses among targets by measuring: `cpu{backend=auto}` compiles with each and ships the fastest that verifies.

    artifact = compile_fastest(compile_one, "model.onnx", make_target("cpu{backend=auto}"), Path("build"), options)

What was not proven is no match for the reference's own runtime. Not here: which targets are candidates
(`Target.candidates`), timing (timing.py).
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt import artifact as artifacts
from graphopt import ir
from graphopt.artifact import Artifact
from graphopt.errors import FrozenError, GraphoptError, PassError
from graphopt.frontends.capture import capture
from graphopt.manager.registry import make_target
from graphopt.running import feeds_for, runnable
from graphopt.timing import BenchPlan, BenchReport, bench

if TYPE_CHECKING:
    from graphopt.driver import Options
    from graphopt.frontends.capture import Source
    from graphopt.target import Runner, Target

    CompileOne = Callable[[Source, Target, Path, Options], Artifact]

ASKED = "asked_target"
"""Key of the manifest: the target that was asked for, where another one was chosen for it."""
_TIMING = BenchPlan(seconds=4.0)


@dataclass(frozen=True)
class _Tried:
    """One candidate: its artifact, and why it is no choice: there is none, or it was not proven."""

    target: str
    artifact: Artifact | None = None
    error: GraphoptError | None = None

    @property
    def choice(self) -> Artifact | None:
        return self.artifact if self.error is None else None


def compile_fastest(compile_one: CompileOne, source: Source, asked: Target, out: Path, options: Options) -> Artifact:
    """Compile for every candidate of a target, time those that verify in turns, and write the fastest to `out`.

    Where numbers could not be checked, the reference's own runtime is shipped if it is a candidate.

    Args:
        compile_one: compiles for one target into a folder: the driver's.
        source: as for `driver.compile`; an IR model is left as it is.
        asked: a target with candidates.
        out: folder to write.
        options: with `frozen`, only the candidate that is there already is compiled, and nothing is timed.

    Raises:
        GraphoptError: no candidate compiles and verifies: the error of the first.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch, artifacts.publish(out) as folder:
        alternatives = [(_frozen_choice(out, asked),)] if options.frozen else asked.candidates()
        one = replace(options, frozen=False)
        tried = [item for texts in alternatives for item in _first_good(compile_one, source, texts, Path(scratch), one)]
        tried = _without_unproven(tried)
        good = [item.choice for item in tried if item.choice is not None]
        if not good:
            raise next(item.error for item in tried if item.error is not None)
        start = time.perf_counter()
        timed = _time(good, options) if len(good) > 1 else None
        best = _fastest(good, timed)
        manifest = {
            **best.manifest,
            ASKED: str(asked),
            "not_reproducible": sorted({*best.manifest["not_reproducible"], *best.manifest["files"]}),
        }
        report = {**best.report, "candidates": _rows(tried, best, timed)}
        report["seconds"] = {**best.report["seconds"], "choosing": time.perf_counter() - start}
        if options.frozen:
            artifacts.check_frozen(out, manifest)
        for name in best.manifest["files"]:
            shutil.move(best.path / name, folder / name)
        (folder / artifacts.MANIFEST).write_text(artifacts.dump(manifest), encoding="utf-8")
        (folder / artifacts.REPORT).write_text(artifacts.dump(report), encoding="utf-8")
    return Artifact(out, manifest, report)


def _frozen_choice(out: Path, asked: Target) -> str:
    """The target that was chosen for the artifact that is there."""
    if not artifacts.is_artifact(out):
        raise FrozenError(f"--frozen: there is no artifact at {out} to compare with; compile it once without --frozen")
    manifest = artifacts.load(out).manifest
    if manifest.get(ASKED) != str(asked):
        there = manifest.get(ASKED, manifest["target"])
        raise FrozenError(f"--frozen: target differs: {there} in the artifact, {asked} now")
    return str(manifest["target"])


def _first_good(
    compile_one: CompileOne, source: Source, texts: Sequence[str], scratch: Path, options: Options
) -> list[_Tried]:
    """Try targets in order until one compiles and verifies.

    Raises:
        PassError: a pass is broken; that is nobody's choice.
    """
    tried = []
    for text in texts:
        target = make_target(text)
        reason = target.available()
        try:
            if reason is not None:
                raise GraphoptError(f"it cannot run here: {reason}")
            given = source.clone() if isinstance(source, ir.Model) else source
            place = Path(tempfile.mkdtemp(dir=scratch))
            own = options if target.tunes else replace(options, tune=None, remote=None)
            tried.append(_Tried(text, compile_one(given, target, place, own)))
            break
        except PassError:
            raise
        except GraphoptError as error:
            tried.append(_Tried(text, error=error))
    return tried


def _without_unproven(tried: Sequence[_Tried]) -> list[_Tried]:
    """Take what was not proven out of the choice, where the reference's own runtime is one."""
    reference = next((item for item in tried if item.choice and make_target(item.target).is_reference()), None)
    if reference is None:
        return list(tried)
    return [item if item.choice is None else _if_proven(item, item.choice, reference.target) for item in tried]


def _if_proven(item: _Tried, made: Artifact, reference: str) -> _Tried:
    numbers = made.manifest["numerics"]
    if numbers["status"] == "passed" or make_target(item.target).is_reference():
        return item
    is_loss = numbers["tolerance"] == "lossy"
    hint = "a gate on accuracy judges that" if is_loss else f"{reference} computes as the reference"
    return replace(item, error=GraphoptError(f"its numbers were not checked: {numbers['reason']}; {hint}"))


def _time(found: Sequence[Artifact], options: Options) -> BenchReport:
    """All candidates in turns, on the user's data or on made inputs."""
    models = {model.path: model for model in (runnable(item.path) for item in found)}
    first = next(iter(models.values()))
    with first.open() as runner:
        feeds = feeds_for(capture(first.graph)[0], runner, options.data)

    def opener(path: Path) -> Runner:
        return models[path].open(force_spinning_stop=True)

    return bench(list(models), feeds, opener, _TIMING)


def _fastest(found: Sequence[Artifact], timed: BenchReport | None) -> Artifact:
    if timed is None:
        return found[0]
    ratios = [1.0, *(row.ratio for row in timed.rows[2:])]
    return found[min(range(len(found)), key=ratios.__getitem__)]


def _rows(tried: Sequence[_Tried], best: Artifact, timed: BenchReport | None) -> list[dict[str, Any]]:
    """What the report tells of each candidate: whether it is `shipped`, the verdict on its numbers, its time, or why it
    is out."""
    rows = iter([timed.rows[0], *timed.rows[2:]] if timed is not None else [])
    out: list[dict[str, Any]] = []
    for item in tried:
        row: dict[str, Any] = {"target": str(make_target(item.target)), "shipped": item.artifact is best}
        if item.artifact is not None:
            row["numerics"] = item.artifact.manifest["numerics"]
        if item.error is not None:
            row["refused"] = str(item.error)
        elif timed is not None:
            found = dataclasses.asdict(next(rows))
            row |= {key: found[key] for key in ("median_ms", "ratio", "ratio_low", "ratio_high", "peak_memory")}
        out.append(row)
    return out
