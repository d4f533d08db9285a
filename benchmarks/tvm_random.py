"""Figure: random graphs compiled by TVM with our schedules against ONNX Runtime.

    python -m benchmarks.tvm_random [--graphs N] [--seed S]

A graph is made from one integer (tests/property). Sizes are bound in all but every fifth, whose dims stay symbolic.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figure import ROOT, Figure, Table, arguments, say
from benchmarks.isolated import isolated

if TYPE_CHECKING:
    import numpy as np
    from property.harness import Subject

    from graphopt import ir

GRAPHS = 500
DYNAMIC = 5
"""Every so many-th graph keeps its symbolic dims."""


@dataclass(frozen=True)
class Outcome:
    """What became of one graph: `passed`, `no graph` (ONNX Runtime does not run it), `refused`, `wrong` or `error`."""

    status: str
    reason: str = ""
    nodes: int = 0
    dynamic: bool = False
    unscheduled: str = ""


def run(seed: int) -> Outcome:
    """One graph, in this process."""
    sys.path[:0] = [str(ROOT / "tests")] * (str(ROOT / "tests") not in sys.path)
    from property.generator import generate
    from property.harness import Refused, Subject

    from graphopt.errors import GraphoptError

    proto, _ = generate(seed)
    try:
        subject = Subject.of(proto)
    except Refused as reason:
        return Outcome("no graph", str(reason)[:80])
    dynamic = seed % DYNAMIC == 0 and bool(subject.symbols)
    try:
        return _compile_and_compare(subject, dynamic)
    except GraphoptError as error:
        return Outcome("refused", str(error)[:120], dynamic=dynamic)
    except Exception as error:  # TVM raises classes of its own
        return Outcome("error", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", dynamic=dynamic)


def _compile_and_compare(subject: Subject, dynamic: bool) -> Outcome:
    from graphopt.analysis.shapes import Shapes
    from graphopt.frontends.onnx import prepare
    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.library import Library
    from graphopt.targets.tvm.lowering.graph import lower, unsupported
    from graphopt.targets.tvm.machine import host

    model = prepare(subject.model.clone(), "random")
    _prepare(model, {} if dynamic else {name: value.shape for name, value in subject.feeds[0].items()})
    refused = unsupported(model, Shapes(model).infer())
    if refused:
        node, reason = refused[0]
        return Outcome("refused", f"{node.op_type}: {reason}", dynamic=dynamic)
    machine = host(1)
    assert machine is not None, "this CPU has none of the instruction sets"
    outcome = Outcome("passed", nodes=len(model.graph), dynamic=dynamic)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.so"
        slow = build(lower(model), machine, file, scheduled).not_scheduled
        outcome = Outcome("passed", nodes=len(model.graph), dynamic=dynamic, unscheduled=slow or "")
        library = Library(file)
        for which in range(2 if dynamic else 1):
            results = library.run([_feed(value, subject.feeds[which]) for value in model.graph.inputs])
            for position, (want, have) in enumerate(zip(subject.reference[which], results, strict=True)):
                problem = subject.difference(which, position, want, have)
                if problem:
                    return Outcome("wrong", f"output {position}: {problem}", len(model.graph), dynamic)
    return outcome


def _feed(value: ir.Value, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """An input's value; initializers that an input may override keep theirs."""
    found = feeds.get(value.name or "")
    if found is None:
        assert value.const_value is not None
        found = value.const_value.numpy()
    return found


def _prepare(model: ir.Model, shapes: dict[str, Any]) -> None:
    """Bind the inputs' shapes, inline functions and fold what is constant, as any pipeline of the target does."""
    from property.harness import evaluate

    from graphopt.analysis.shapes import set_input_shapes
    from graphopt.manager.context import Context
    from graphopt.manager.pipeline import parse
    from graphopt.manager.registry import make_target
    from graphopt.manager.runner import run as run_passes

    if shapes:
        set_input_shapes(model, {name: tuple(shape) for name, shape in shapes.items()})
    target = make_target("tvm")
    run_passes(model, parse(target.pipeline(0)), Context(model, target=target, evaluate=evaluate))


def measure(graphs: int, seed: int) -> Iterator[tuple[int, Outcome]]:
    """Seeds with their outcomes until so many graphs were compiled."""
    taken = 0
    for number, result in isolated(run, itertools.count(seed)):
        outcome = result or Outcome("crashed")
        yield number, outcome
        taken += outcome.status not in ("no graph", "refused")
        if taken % 50 == 0 and outcome.status == "passed":
            say(f"{taken} of {graphs}")
        if taken == graphs:
            return


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--graphs", type=int, default=GRAPHS, help="(default %(default)s; another number writes no page)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    failures = Table(("seed", "outcome", "reason"), "Compiled and not right", 3)
    reasons: Counter[str] = Counter()
    unscheduled: dict[str, list[int]] = defaultdict(list)
    nodes = dynamic = 0
    for seed, outcome in measure(options.graphs, options.seed):
        counts[outcome.status] += 1
        if outcome.status in ("wrong", "error", "crashed"):
            failures.add(seed, outcome.status, outcome.reason)
            say(f"{seed}: {outcome.status}: {outcome.reason}")
        reasons.update([outcome.reason] * (outcome.status == "refused"))
        if outcome.unscheduled:
            unscheduled[outcome.unscheduled].append(seed)
        nodes += outcome.nodes
        dynamic += outcome.dynamic and outcome.status == "passed"
    taken = sum(counts[status] for status in ("passed", "wrong", "error", "crashed"))
    figure = Figure(
        "tvm-random",
        "Random graphs compiled by TVM",
        f"{taken} graphs of {nodes} nodes together, made from the seeds from {options.seed} on, through the target's "
        "pipeline at -O0, its lowering and its schedules, on one thread, against ONNX Runtime with its optimizations "
        f"off; within eight noise floors. {dynamic} of them keep symbolic dims and run at two sizes. "
        f"{counts['refused']} more have a node that TVM does not take, {counts['no graph']} do not run as made.",
        ("every graph that is taken gives the reference's numbers", "none crashes"),
    )
    taken_out = Table(("reason", "graphs"), "Not taken")
    for reason, count in reasons.most_common(25):
        taken_out.add(reason, count)
    slow = Table(("reason", "graphs", "first seed"), "Taken, not scheduled")
    for reason, seeds in unscheduled.items():
        slow.add(reason, len(seeds), seeds[0])
    figure.tables = [table for table in (failures, taken_out, slow) if table.rows]
    figure.require(not failures.rows, f"{len(failures.rows)} of {taken} graphs are wrong or fail")
    return figure.finish(write=not (options.no_write or options.graphs != GRAPHS or options.seed))


if __name__ == "__main__":
    sys.exit(main())
