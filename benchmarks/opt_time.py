"""Figure 2: whole-process time of `opt`, parse to saved file, against onnxslim and onnxsim.

    python -m benchmarks.opt_time [--models NAME ...] [--repeat N]

All tools take turns, round by round, after one round that counts nothing; the table holds medians. Numerics are off,
as the peers check nothing.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from benchmarks import zoo
from benchmarks.figure import Figure, Table, arguments, choose_models, pick, say
from benchmarks.peers import PEERS, Tool, graphopt_tool, peer_tool
from graphopt import models

# The bars: where the faster peer takes longer than LONG seconds, at most FACTOR of its time (VIT_FACTOR on the
# torch-exported ViT); elsewhere at most SLACK seconds more than it.
LONG, FACTOR, SLACK, VIT_FACTOR = 1.5, 1.0, 0.3, 0.5
MIN_REPEAT = 5
OURS = "graphopt"


def limit(name: str, peer_seconds: float) -> float:
    """Seconds that we may take where the faster peer takes `peer_seconds`."""
    if name == zoo.VIT:
        return VIT_FACTOR * peer_seconds
    return FACTOR * peer_seconds if peer_seconds > LONG else peer_seconds + SLACK


def measure(model: Path, tools: dict[str, Tool], folder: Path, repeat: int) -> dict[str, list[float] | str]:
    """Seconds of every round per tool, or why it failed."""
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    errors: dict[str, str] = {}
    order = list(tools)
    for turn in range(repeat + 1):
        for name in order:
            if name in errors:
                continue
            attempt = tools[name](model, folder / name / "model.onnx")
            if attempt.error:
                errors[name] = attempt.error
            elif turn:  # the first round fills the page cache and writes byte code
                seconds[name].append(attempt.seconds)
        order = order[1:] + order[:1]
    shutil.rmtree(folder, ignore_errors=True)
    return {name: errors.get(name, seconds[name]) for name in tools}


def judge(figure: Figure, name: str, medians: dict[str, float]) -> str:
    """Hold one model to the bars; return the limit as text."""
    peers = {peer: seconds for peer, seconds in medians.items() if peer != OURS}
    if not peers:
        return "none"
    fastest = min(peers, key=lambda peer: peers[peer])
    allowed = limit(name, peers[fastest])
    if OURS in medians:
        what = f"{name}: {medians[OURS]:.2f} s; {allowed:.2f} s are allowed ({fastest} takes {peers[fastest]:.2f} s)"
        figure.require(medians[OURS] <= allowed, what)
    return f"{allowed:.2f}"


def main() -> int:
    parser = arguments(__doc__)
    choose_models(parser)
    parser.add_argument("--repeat", type=int, default=MIN_REPEAT, help="rounds that count (default %(default)s)")
    options = parser.parse_args()
    chosen = pick(zoo.onnx_models(), options.models)
    figure = Figure(
        "opt-time",
        "Time to optimize a model",
        f"Seconds of the whole process from start to saved file, median of {options.repeat} interleaved rounds: "
        "`graphopt opt --target cpu --numerics off` and the peers' commands with their defaults.",
        (
            f"at most {FACTOR:g}x the faster peer's time where that is over {LONG:g} s",
            f"elsewhere at most {SLACK:g} s more than the faster peer",
            f"at most {VIT_FACTOR:g}x on {zoo.VIT}",
        ),
    )
    tools: dict[str, Tool] = {OURS: graphopt_tool("--numerics", "off")}
    tools |= {peer.name: peer_tool(peer) for peer in PEERS}
    table = Table(("model", *tools, "allowed", "over the faster peer"))
    for name in chosen:
        say(f"{name} ...")
        results = measure(models.fetch(name), tools, options.folder / "opt-time", options.repeat)
        medians = {tool: statistics.median(taken) for tool, taken in results.items() if not isinstance(taken, str)}
        figure.require(OURS in medians, f"{name}: {results[OURS]}")
        allowed = judge(figure, name, medians)
        fastest = min((seconds for tool, seconds in medians.items() if tool != OURS), default=None)
        ratio = f"{medians[OURS] / fastest:.2f}x" if fastest and OURS in medians else "-"
        cells = [f"{medians[tool]:.2f}" if tool in medians else "fails" for tool in tools]
        table.add(name, *cells, allowed, ratio)
    figure.tables.append(table)
    return figure.finish(write=not (options.no_write or options.models or options.repeat < MIN_REPEAT))


if __name__ == "__main__":
    raise SystemExit(main())
