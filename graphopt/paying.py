"""Keeps only what pays: a quantized model that is slower here than the float model is not shipped, nor are slow places.

    settled = settle(job, files, folder, twin)       # the run whose result is to be shipped

The first answer to slow places is the same pipeline with them left out, where the target tells the times of nodes; the
last is the float model. Not here: finding the places (slowness.py), timing (timing.py).
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.artifact import empty
from graphopt.evaluation import Compiled, Latency
from graphopt.gating import FloatTwin, compiled, feeds_of, lossy_passes, rerun_as
from graphopt.manager.pipeline import Fix, Pipeline
from graphopt.slowness import slow_sites, time_nodes

if TYPE_CHECKING:
    from graphopt.driver import Options, _Job
    from graphopt.gating import MakeJob
    from graphopt.quantization.metrics import Interval
    from graphopt.target import CompiledFiles

QUANTIZERS = frozenset({"quantize-static", "quantize-dynamic", "quantize-weights", "search-precision"})
"""Passes that change the numbers that a model computes in to make it faster."""
_PLACES = {"quantize-static": "nodes", "quantize-dynamic": "sites", "search-precision": "nodes"}
"""Passes that can leave places out by their option `skip`, and where their plans name the places."""
_FASTER = 1.0


@dataclass
class Settled:
    """What is to be shipped.

    Attributes:
        job: the run that made it.
        files: what the target wrote.
        record: for the report: what is `shipped` (quantized, mixed or float), the `ratios` to the time of float, the
            smallest difference that was told (`resolution`), and the slow `sites`.
    """

    job: _Job
    files: CompiledFiles
    record: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """What the report says; nothing when nothing was timed."""
        return {"slowness": self.record} if self.record else {}

    def hint(self) -> str:
        """What to say when what is left misses a gate."""
        if not self.record or self.record["shipped"] == "quantized":
            return ""
        left = "int8 is" if self.record["shipped"] == "float" else f"{len(self.record['sites'])} places are"
        return f"; {left} left out, being slower than float on this machine: --keep-slow keeps int8"

    def measured(self) -> tuple[str, ...]:
        """Files that depend on what was measured here."""
        return self.files.files if self.record else ()


@dataclass(frozen=True)
class _Candidate:
    kind: str
    job: _Job
    files: CompiledFiles
    compiled: Compiled


def wanted(options: Options, job: _Job) -> bool:
    """Whether a run is to be timed: it was asked for, a quantizer changed something, and the target runs here."""
    assert job.result is not None and job.target is not None
    effects = job.result.effects()
    quantized = any(effects.get(name) for name in QUANTIZERS)
    return options.keep_slow is False and quantized and job.target.available() is None


def settle(job: _Job, files: CompiledFiles, folder: Path, twin: FloatTwin) -> Settled:
    """Where it is wanted, time the quantized model against float; where it has slow places, one without them as well.

    The fastest is moved into `folder`. A model that is slower than float is never chosen, unless by less than what the
    float model differs from itself.

    Args:
        job: the run that quantized.
        files: what the target wrote into `folder`.
        folder: what will be shipped.
        twin: makes the float model, and runs like it.
    """
    if not wanted(job.options, job):
        return Settled(job, files)
    start = time.perf_counter()
    assert job.target is not None
    float_job, float_files, float_folder = twin.make()
    base = compiled(job.target, float_files, float_folder)
    first = _Candidate("quantized", job, files, compiled(job.target, files, folder))
    feeds = feeds_of(job.options, job.check, float_job.model)
    slow = _slow(job, base, first.compiled, feeds)
    mixed = _without(job, slow, twin.make_job) if slow else None
    candidates = [first] if mixed is None else [first, mixed]
    latency = Latency([item.compiled for item in candidates], base, feeds)
    latency.make_sure(_FASTER)
    ratios = {item.kind: latency.ratio(index) for index, item in enumerate(candidates)}
    chosen = min(candidates, key=lambda item: ratios[item.kind].value)
    if ratios[chosen.kind].value > _FASTER + latency.error:
        chosen = _Candidate("float", float_job, float_files, base)
    if chosen is not first:
        _move(chosen, folder)
    _remark(chosen, _quantizer(job), slow, ratios)
    chosen.job.seconds["timing"] = time.perf_counter() - start
    record: dict[str, Any] = {
        "shipped": chosen.kind,
        "ratios": {kind: dataclasses.asdict(ratio) for kind, ratio in ratios.items()},
        "resolution": latency.error,
        "sites": slow,
    }
    return Settled(chosen.job, chosen.files, record)


def _slow(job: _Job, base: Compiled, first: Compiled, feeds: Mapping[str, Any]) -> dict[str, float]:
    """Slow places among what the plans of the quantizers name; none where the target does not time nodes."""
    from graphopt.frontends.onnx import load

    assert job.result is not None and job.target is not None
    sites = {site for found in _planned(job).values() for site in found}
    if not sites or not job.target.times_nodes():
        return {}
    floats = job.result.ctx.floats
    if floats is None:
        times = time_nodes([base.runnable, first.runnable], feeds)
        return slow_sites(load(base.runnable.path), sites, times[0], times[1], feeds, load(first.runnable.path))
    # What int8 was made of has the names of the places; passes that prepare for int8 give new ones to what they scale.
    folder = job.scratch / "before-int8"
    folder.mkdir()
    before = compiled(job.target, job.target.compile(floats, folder), folder)
    times = time_nodes([before.runnable, first.runnable], feeds)
    return slow_sites(load(before.runnable.path), sites, times[0], times[1], feeds)


def _planned(job: _Job) -> dict[str, set[str]]:
    """The places that each pass of `_PLACES` has put into int8."""
    assert job.result is not None
    found: dict[str, set[str]] = {}
    for plan in job.result.ctx.plans.made:
        if plan.name in _PLACES:
            found.setdefault(plan.name, set()).update(plan.decisions.get(_PLACES[plan.name], ()))
    return found


def _without(job: _Job, slow: Mapping[str, float], make_job: MakeJob) -> _Candidate | None:
    """The same run with the slow places left out; None when no pass can leave places out."""
    pipeline = leave_out(job.pipeline, {name: sites & set(slow) for name, sites in _planned(job).items()})
    if pipeline == job.pipeline or job.options.plan is not None:
        return None
    assert job.target is not None
    folder = job.scratch / "mixed-compiled"
    folder.mkdir()
    again = rerun_as(job, pipeline, make_job)
    if not lossy_passes(again):
        return None  # nothing is left in int8: that is the float model
    files = job.target.compile(again.model, folder, job.options.external_data)
    return _Candidate("mixed", again, files, compiled(job.target, files, folder))


def leave_out(pipeline: Pipeline, sites: Mapping[str, set[str]]) -> Pipeline:
    """The pipeline whose passes, by name, skip these places as well."""

    def change(item: Any) -> Any:
        if isinstance(item, Fix):
            return replace(item, items=tuple(change(inner) for inner in item.items))
        more = sites.get(item.name)
        return replace(item, skip=tuple(dict.fromkeys((*item.skip, *sorted(more))))) if more else item

    return Pipeline(tuple(change(item) for item in pipeline.items))


def _remark(chosen: _Candidate, name: str, slow: Mapping[str, float], ratios: Mapping[str, Interval]) -> None:
    """Say what was left out, and why."""
    assert chosen.job.result is not None
    remarks = chosen.job.result.ctx.remarks
    if chosen.kind == "quantized":
        return
    if chosen.kind == "float":
        text = f"int8 takes {ratios['quantized'].value:.2f}x of float on this machine"
        if "mixed" in ratios:
            text += f", and {ratios['mixed'].value:.2f}x where the {len(slow)} slow places stay float"
        remarks.note(name, f"{text}: the float model is shipped, --keep-slow keeps int8")
        return
    ops = {remark.site: remark.op for remark in remarks if remark.pass_name == name}
    for site, ratio in sorted(slow.items()):
        remarks.missed(name, site, ops.get(site, ""), f"int8 takes {ratio:.2f}x of float here; --keep-slow keeps int8")
    remarks.note(name, f"{len(slow)} places stay float, where int8 is slower on this machine; --keep-slow keeps int8")


def _quantizer(job: _Job) -> str:
    return next(item.name for item in job.pipeline.passes() if item.name in QUANTIZERS)


def _move(chosen: _Candidate, folder: Path) -> None:
    """Put a candidate's files into the folder that will be shipped, in place of those that are there."""
    empty(folder)
    for name in chosen.files.files:
        shutil.move(chosen.compiled.runnable.path.parent / name, folder / name)
