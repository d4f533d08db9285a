"""Figure: the zoo compiled by TVM: how much of each model, in how many parts, whether it computes the same.

    python -m benchmarks.tvm_zoo [--models NAME ...]

Each model goes through `-O2` and `tvm{fallback=onnxruntime}`; numerics are the driver's own. The last table says which
nodes were left to ONNX Runtime, and why.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, Table, arguments, choose_models, pick, say
from benchmarks.zoo import onnx_models
from graphopt import driver, models
from graphopt.driver import Options
from graphopt.errors import GraphoptError, VerificationError
from graphopt.running import runnable

TARGET = "tvm{fallback=onnxruntime}"
# Bars: every model compiles, and none computes something else.
BARS = (
    "every model compiles that has a part worth it",
    "no model's numerics fail (ill-conditioned feeds give no verdict)",
)


@dataclass
class Row:
    """What became of one model; times in seconds."""

    name: str
    verdict: str
    error: str = ""
    taken: int = 0
    nodes: int = 0
    parts: int = 0
    boundary: int | None = 0
    megabytes: float = 0.0
    passes: float = 0.0
    lowering: float = 0.0
    milliseconds: float | None = None
    refused: Counter[str] = field(default_factory=Counter)


def main() -> int:
    parser = arguments(__doc__)
    choose_models(parser)
    options = parser.parse_args()
    figure = Figure(
        name="tvm-zoo",
        title="The zoo compiled by TVM",
        text=f"Every model of the zoo, `-O2`, `{TARGET}`. Parts are those of TVM and ONNX Runtime together; boundary "
        "is what one run hands from part to part. Compile is lowering, schedules and code generation, without passes "
        "and numerics. Run is one run on made feeds, the smallest of three: a sign of life, no benchmark.",
        bars=BARS,
    )
    table = Table(
        ("model", "numerics", "nodes in TVM", "parts", "boundary", "compile s", "library MB", "run ms"), words=2
    )
    reasons = Table(("model", "nodes", "reason"), heading="Left to ONNX Runtime", words=1)
    for name in pick(onnx_models(), options.models):
        row = measure(name, options.folder / "tvm" / name)
        say(f"{name}: {row.verdict} {row.error}")
        table.add(*_cells(row))
        for reason, count in row.refused.most_common():
            reasons.add(name, count, reason)
        if row.verdict == "nothing for TVM":
            figure.notes.append(f"{name}: {row.error}")
        figure.require(row.verdict != "not compiled", f"{name}: {row.error}")
        figure.require(row.verdict != "failed", f"{name}: {row.error}")
    figure.tables = [table, reasons] if reasons.rows else [table]
    return figure.finish(write=not options.no_write and not options.models)


def measure(name: str, folder: Path) -> Row:
    """Compile, check and run one model."""
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    try:
        artifact = driver.compile(models.path(name), TARGET, folder, Options(repro=None))
    except VerificationError as error:
        return Row(name, "failed", str(error))
    except GraphoptError as error:
        verdict = "nothing for TVM" if "no part of the model is worth" in str(error) else "not compiled"
        return Row(name, verdict, f"{error} (after {time.perf_counter() - start:.0f} s)")
    report = artifact.report
    details, numerics = report["lowering"], report["numerics"]
    rows = details["parts"]
    row = Row(name, numerics["status"], numerics["reason"])
    row.nodes = sum(part["nodes"] for part in rows)
    row.taken = sum(part["nodes"] for part in rows if part["runtime"] == "tvm")
    row.parts, row.boundary = len(rows), details["boundary_bytes"]
    row.megabytes = sum((folder / part["file"]).stat().st_size for part in rows) / 1e6
    row.passes, row.lowering = report["seconds"]["passes"], report["seconds"]["lower"]
    row.refused = Counter(re.sub(r"'[^']*' ", "", item["reason"]) for item in details["fallback"])
    row.milliseconds = _run_once(folder)
    return row


def _run_once(folder: Path) -> float | None:
    """Milliseconds of the fastest of three runs; None when no feeds could be made."""
    from graphopt.frontends.capture import capture
    from graphopt.running import feeds_for

    chosen = runnable(folder)
    model, _ = capture(chosen.graph)
    with chosen.open() as runner:
        try:
            feeds: dict[str, Any] = feeds_for(model, runner, None)
        except GraphoptError:
            return None
        return min(runner.time(feeds, 3)) * 1e3


def _cells(row: Row) -> tuple[str, ...]:
    if not row.parts:
        return (row.name, row.verdict, *["-"] * 6)
    boundary = "dynamic" if row.boundary is None else f"{row.boundary / 1e3:.1f} kB" if row.boundary else "-"
    run = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
    taken = f"{row.taken} of {row.nodes}"
    return (
        row.name,
        row.verdict,
        taken,
        str(row.parts),
        boundary,
        f"{row.lowering:.1f}",
        f"{row.megabytes:.1f}",
        run,
    )


if __name__ == "__main__":
    sys.exit(main())
