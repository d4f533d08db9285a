"""Figure 1: nodes and file size after `opt -O2 --target cpu`, against onnxslim and onnxsim on the same models.

    python -m benchmarks.nodes [--models NAME ...] [--keep]

Subgraphs and functions are counted. A peer's file counts only where ONNX Runtime loads it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import zoo
from benchmarks.figure import Figure, Table, arguments, choose_models, pick, say
from benchmarks.peers import PEERS, Attempt, Tool, graphopt_tool, peer_tool
from graphopt import models

# The bars: our nodes over the better peer's, and our file over the smaller of the input and the peers' smallest.
MAX_NODES, MAX_BYTES = 1.0, 1.05

TOOLS: dict[str, tuple[str, ...]] = {
    "-O1": ("-O1", "--numerics", "off"),
    "-O2": ("-O2", "--numerics", "off"),
}


@dataclass(frozen=True)
class Result:
    """What a tool made of a model; `error` says why there is nothing."""

    error: str = ""
    ops: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def nodes(self) -> int:
        return sum(self.ops.values())


def measure(model: Path, tool: Tool, folder: Path, *, keep: bool, load: bool) -> Result:
    """Run a tool into `folder`; with `keep`, take what an earlier run left there."""
    output = folder / "model.onnx"
    failed = folder / "failed.txt"
    if not keep or not (output.exists() or failed.exists()):
        shutil.rmtree(folder, ignore_errors=True)
        attempt: Attempt = tool(model, output)
        error = attempt.error or (zoo.loads(output) if load else "")
        if error:
            failed.write_text(error, encoding="utf-8")
    if failed.exists():
        return Result(failed.read_text(encoding="utf-8"))
    return Result("", zoo.ops(output), zoo.file_bytes(output))


def judge(figure: Figure, name: str, before: Result, ours: Result, peers: dict[str, Result]) -> bool:
    """Hold one model to the bars; return whether they are met."""
    if not figure.require(not ours.error, f"{name}: {ours.error}"):
        return False
    good = {peer: result for peer, result in peers.items() if not result.error}
    if not good:
        return True
    best = min(good, key=lambda peer: good[peer].nodes)
    limit = good[best].nodes * MAX_NODES
    fewer = figure.require(ours.nodes <= limit, f"{name}: {ours.nodes} nodes; {best} has {good[best].nodes}")
    smallest = min([before.bytes, *(result.bytes for result in good.values())])
    size = f"{name}: {ours.bytes:,} bytes are {ours.bytes / smallest:.3f}x of {smallest:,}"
    return figure.require(ours.bytes <= smallest * MAX_BYTES, size) and fewer


def difference(ours: Result, peer: Result) -> str:
    """Ops that we have more (+) or fewer (-) of than a peer."""
    names = sorted(ours.ops.keys() | peer.ops.keys(), key=lambda op: (peer.ops[op] - ours.ops[op], op))
    return ", ".join(f"{op} {ours.ops[op] - peer.ops[op]:+d}" for op in names if ours.ops[op] != peer.ops[op])


def cell(result: Result) -> str:
    return "fails" if result.error else str(result.nodes)


def light_rows(figure: Figure, names: list[str], folder: Path, ours: Tool) -> None:
    """The light-* models: numerics only, since both peers fold their generated weights into files of 100 MB."""
    table = Table(("model", "nodes in", "nodes out", "numerics"), "Models with generated weights: numerics only")
    for name in names:
        say(f"{name} ...")
        before = Result("", zoo.ops(models.fetch(name)))
        result = measure(models.fetch(name), ours, folder / name / "checked", keep=False, load=True)
        figure.require(not result.error, f"{name}: {result.error}")
        table.add(name, before.nodes, cell(result), "passed" if not result.error else "failed")
    if names:
        figure.tables.append(table)


def main() -> int:
    parser = arguments(__doc__)
    choose_models(parser)
    parser.add_argument("--keep", action="store_true", help="reuse the peers' files of an earlier run")
    options = parser.parse_args()
    chosen = pick(zoo.onnx_models(), options.models)
    folder = options.folder / "nodes"
    figure = Figure(
        "nodes",
        "Nodes and file size after optimizing",
        "Nodes of the whole file, subgraphs and functions counted, by one counter for all tools. `graphopt` is "
        "`graphopt opt -O2 --target cpu`, the peers run with their defaults, all with numerics off.",
        (
            "at most as many nodes as the better peer, on every model",
            f"a file at most {MAX_BYTES:g}x the smaller of the input and the smallest that a peer wrote",
            "models with generated weights (light-*): numerics passed",
        ),
    )
    table = Table(("model", "in", "graphopt -O1", "graphopt -O2", *(p.name for p in PEERS), "MB in", "MB out", "bars"))
    gaps = Table(("model", "peer", "ops that graphopt has more (+) or fewer (-) of"), "Where a peer has fewer nodes", 3)
    tools = {peer.name: peer_tool(peer) for peer in PEERS}
    own = {level: graphopt_tool(*flags) for level, flags in TOOLS.items()}
    for name in [name for name in chosen if not zoo.is_light(name)]:
        say(f"{name} ...")
        model, place = models.fetch(name), folder / name
        before = Result("", zoo.ops(model), zoo.file_bytes(model))
        ours = {level: measure(model, tool, place / level, keep=False, load=True) for level, tool in own.items()}
        peers = {peer: measure(model, tool, place / peer, keep=options.keep, load=True) for peer, tool in tools.items()}
        met = judge(figure, name, before, ours["-O2"], peers)
        sizes = [f"{result.bytes / 1e6:.2f}" for result in (before, ours["-O2"])]
        counts = [cell(result) for result in (before, ours["-O1"], ours["-O2"], *peers.values())]
        table.add(name, *counts, *sizes, "met" if met else "missed")
        for peer, result in peers.items():
            if not result.error and not ours["-O2"].error and result.nodes < ours["-O2"].nodes:
                gaps.add(name, peer, difference(ours["-O2"], result))
        figure.notes += [f"{peer} fails on {name}: {result.error}" for peer, result in peers.items() if result.error]
    figure.tables += [table, *([gaps] if gaps.rows else [])]
    light = [name for name in chosen if zoo.is_light(name)]
    light_rows(figure, light, folder, graphopt_tool("-O2", "--require-numerics"))
    return figure.finish(write=not (options.no_write or options.models or options.keep))


if __name__ == "__main__":
    raise SystemExit(main())
