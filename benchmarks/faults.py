"""Figure 7: wrong rewrites planted into the default pipeline of real models; `bisect` must name pass and node.

    python -m benchmarks.faults [--models NAME ...]

The passes are benchmarks/faulty_passes.py. Each is planted between the stages simplify and fuse-portable, at the middle
one of the nodes where it can be.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figure import ROOT, Figure, Table, arguments, choose_models, pick, say
from graphopt import models

# The bars: what a model must offer, and evaluations beyond log2 of the rewrites that the whole pipeline applies.
MIN_REWRITES, MORE_EVALUATIONS = 200, 4

# Where each fault is planted: models that have the ops, and for the frozen size symbolic dims.
PLANTED: Mapping[str, tuple[str, ...]] = {
    "plant-wrong-axis": ("ppocr-rec-v4", "vit-b16-export"),
    "plant-wrong-constant": ("ppocr-rec-v4", "llama-tiny"),
    "plant-frozen-size": ("llama-tiny", "llama-tiny-kv"),
    "plant-lost-guard": ("llama-tiny-kv",),
    "plant-shared-producer": ("ppocr-rec-v4", "vit-b16-export"),
}
# The fused attention ops need no guard against NaN: fusing after it was lost mends the model. The feeds of this fault
# come from the user: a NaN in every input whose name starts so.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {"plant-lost-guard": ("fuse-attention",)}
NAN_IN: Mapping[str, str] = {"plant-lost-guard": "past_key"}
PLUGIN = ROOT / "benchmarks" / "faulty_passes.py"
TARGET = "cpu"


def split_pipeline(left_out: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """The items of the target's default pipeline before and from its first fusion on."""
    from graphopt.manager.base import Pass
    from graphopt.manager.pipeline import Fix, parse
    from graphopt.manager.registry import make_target

    def stages(item: Pass | Fix) -> set[str]:
        return {item.stage} if isinstance(item, Pass) else {part.stage for part in item.items if isinstance(part, Pass)}

    items = list(parse(make_target(TARGET).pipeline(2)).without(left_out).items)
    cut = next(index for index, item in enumerate(items) if "fuse-portable" in stages(item))
    return items[:cut], items[cut:]


def candidates(fault: type, name: str, before: list[Any], folder: Path) -> tuple[list[str], Path]:
    """Names of the nodes where a fault can be planted after the passes `before`, and the model at that point."""
    from graphopt.driver import Options, optimize
    from graphopt.ir.builder import NoMatch
    from graphopt.ir.sites import all_nodes
    from graphopt.manager.context import Context
    from graphopt.manager.match import Match
    from graphopt.manager.pipeline import Pipeline

    path = folder / "simplified.onnx"
    options = Options(passes=str(Pipeline(tuple(before))), numerics="off")
    model = optimize(str(models.fetch(name)), TARGET, options, path).model
    ctx = Context(model)
    ctx.analysis("shapes")
    found = []
    for node in list(all_nodes(model)):
        if node.op_type not in fault.ops or node.domain or node.graph is not model.graph:  # type: ignore[attr-defined]
            continue
        op = ctx.rewriter.builder(node)
        try:
            fault(at=node.name).rewrite_node(op, Match(ctx, node), node)
            found.append(str(node.name))
        except NoMatch:
            pass  # the fault cannot be made here
        finally:
            op.discard()
    return found, path


def first_count(path: Path, site: str) -> int:
    """How many elements the mean at `site` takes on the first feeds that the numerics check uses."""
    from graphopt.checks import Check
    from graphopt.frontends.onnx import load
    from graphopt.targets.onnxruntime.runner import open_runner

    model = load(path)
    node = next(node for node in model.graph if node.name == site)
    value = str(node.inputs[0].name)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as scratch, open_runner(path) as runner, runner.with_taps([value]) as tapped:
        feeds = Check(model, path, None, Path(scratch)).cases()[0].feeds
        shape = tapped.run(feeds, [value])[value].shape
    return math.prod(shape[2:]) if node.op_type == "GlobalAveragePool" else shape[-1]


def feeds_with_nan(path: Path, prefix: str, folder: Path) -> Path:
    """Write legal feeds with one NaN in each input whose name starts with `prefix`."""
    import numpy as np

    from graphopt.feeds import make_feeds
    from graphopt.frontends.onnx import load

    feeds = make_feeds(load(path))
    for name in feeds:
        if name.startswith(prefix):
            feeds[name].reshape(-1)[0] = np.nan
    np.savez(folder / "feeds.npz", **feeds)
    return folder / "feeds.npz"


def plant(figure: Figure, table: Table, fault: type, name: str, folder: Path) -> None:
    """Plant one fault into one model and let bisect find it."""
    from graphopt.blame import bisect
    from graphopt.driver import Options
    from graphopt.errors import GraphoptError
    from graphopt.manager.pipeline import Pipeline

    what = fault.name  # type: ignore[attr-defined]
    before, after = split_pipeline(LEFT_OUT.get(what, ()))
    sites, simplified = candidates(fault, name, before, folder)
    if not figure.require(bool(sites), f"{name}: {what} cannot be planted"):
        return
    site = sites[len(sites) // 2]
    extra = {"count": first_count(simplified, site)} if what == "plant-frozen-size" else {}
    text = str(Pipeline((*before, fault(at=site, **extra), *after)))
    data = feeds_with_nan(models.fetch(name), NAN_IN[what], folder) if what in NAN_IN else None
    try:
        blame = bisect(str(models.fetch(name)), TARGET, Options(passes=text, data=data), runtime=False)
    except GraphoptError as error:
        figure.require(False, f"{name}: {what} at {site}: {error}")
        return
    allowed = math.floor(math.log2(max(blame.rewrites, 1)) + MORE_EVALUATIONS)
    named = (blame.rewrite.pass_name, blame.rewrite.site) if blame.rewrite is not None else (blame.culprit, "")
    right = named == (what, site)
    case = blame.reason.rpartition(" on ")[2]
    table.add(name, what, site, "yes" if right else " ".join(named), case, blame.rewrites, blame.evaluations, allowed)
    figure.require(blame.rewrites >= MIN_REWRITES, f"{name}: only {blame.rewrites} rewrites")
    figure.require(right, f"{name}: {what} at {site}: bisect says {blame}")
    figure.require(blame.evaluations <= allowed, f"{name}: {what}: {blame.evaluations} evaluations, {allowed} allowed")


def main() -> int:
    from graphopt.manager import registry

    parser = arguments(__doc__)
    choose_models(parser)
    options = parser.parse_args()
    everywhere = dict.fromkeys(name for names in PLANTED.values() for name in names)
    chosen = pick(everywhere, options.models)
    faults = {cls.name: cls for cls in registry.load_file(PLUGIN)}
    figure = Figure(
        "faults",
        "Wrong rewrites found by bisection",
        "One wrong rewrite is planted into the `-O2 --target cpu` pipeline of a real model; `graphopt bisect` has to "
        "name the pass and the node. `rewrites` are those of the whole pipeline, `seen on` the feeds that showed it.",
        (
            f"models with {MIN_REWRITES} or more rewrites",
            "the planted pass and node are named",
            f"at most log2(rewrites) + {MORE_EVALUATIONS} evaluations",
        ),
    )
    table = Table(("model", "fault", "planted at", "named", "seen on", "rewrites", "evaluations", "allowed"), words=5)
    for what, names in PLANTED.items():
        for name in [name for name in names if name in chosen]:
            say(f"{what} in {name} ...")
            with tempfile.TemporaryDirectory() as folder:
                plant(figure, table, faults[what], name, Path(folder))
    described = [f"- `{what}`: {faults[what].summary()}" for what in PLANTED]
    figure.notes.append("\n".join(described))
    figure.tables.append(table)
    return figure.finish(write=not (options.no_write or options.models))


if __name__ == "__main__":
    raise SystemExit(main())
