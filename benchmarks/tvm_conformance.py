"""Figure: the official ONNX node cases compiled by TVM, without passes: is each rule of lowering and scheduling right?

    python -m benchmarks.tvm_conformance [--every N] [--device cpu|cuda|emulated]

`cuda` runs the cases on a GPU, `emulated` the same kernels on this machine's CPU. A case that TVM does not take is
counted by its reason; one that it takes has to give the expected outputs.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks.conformance_cases import Case, collect
from benchmarks.figure import Figure, Table, arguments
from benchmarks.isolated import spread

# Bar: of the cases that TVM takes, this part gives what is expected, and none crashes.
MIN_PASSED = 0.99
Device = Literal["cpu", "cuda", "emulated"]
# The oldest GPU for which PTX is made: newer ones translate it.
ARCH = "sm_80"


@dataclass(frozen=True)
class Outcome:
    """What became of one case: `passed`, `refused`, `wrong`, `error` or `crashed`, and why."""

    case: str
    status: str
    reason: str = ""


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every N-th case (writes no page)")
    parser.add_argument("--device", choices=get_args(Device), default="cpu", help="other than cpu writes no page")
    options = parser.parse_args()
    outcomes = list(measure(options.every, options.device))
    counts = Counter(outcome.status for outcome in outcomes)
    taken = [outcome for outcome in outcomes if outcome.status != "refused"]
    figure = Figure(
        name="tvm-conformance",
        title="The ONNX node cases compiled by TVM",
        text="Every official node case through lowering and schedules, without passes; expected outputs at the "
        "tolerance that each case names.",
        bars=(f"at least {MIN_PASSED:.0%} of the cases that TVM takes pass", "none crashes"),
    )
    summary = Table(("outcome", "cases"))
    for status, count in counts.most_common():
        summary.add(status, count)
    failures = Table(("case", "outcome", "reason"), heading="Taken and not passed", words=3)
    for outcome in taken:
        if outcome.status != "passed":
            failures.add(outcome.case, outcome.status, outcome.reason)
    reasons = Table(("reason", "cases"), heading="Not taken")
    for reason, count in Counter(item.reason for item in outcomes if item.status == "refused").most_common():
        reasons.add(reason, count)
    figure.tables = [summary, failures, reasons]
    passed = counts["passed"] / max(1, len(taken))
    figure.require(passed >= MIN_PASSED, f"{passed:.1%} of the cases that TVM takes pass")
    figure.require(not counts["crashed"], f"{counts['crashed']} cases crash")
    whole = options.every == 1 and options.device == "cpu"
    return figure.finish(write=not options.no_write and whole)


def measure(every: int, device: Device = "cpu", processes: int = 1) -> Iterator[Outcome]:
    """All cases in processes of their own, which a crash ends: the next case gets a new one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect()[::every]
    one = functools.partial(run, device=device)
    for case, outcome in spread(one, cases, processes):
        yield outcome or Outcome(case.name, "crashed")


def run(case: Case, device: Device) -> Outcome:
    """One case, in this process."""
    import onnx_ir

    from graphopt.analysis.shapes import Shapes
    from graphopt.errors import GraphoptError
    from graphopt.frontends.onnx import prepare
    from graphopt.targets.tvm.lowering.graph import unsupported

    try:
        model = prepare(onnx_ir.serde.deserialize_model(case.model), case.name)
    except GraphoptError as error:
        return Outcome(case.name, "refused", f"graphopt does not read it: {str(error).partition(':')[0]}")
    if model.functions:
        return Outcome(case.name, "refused", "it has functions, which passes inline")
    refused = unsupported(model, Shapes(model).infer())
    if refused:
        node, reason = refused[0]
        return Outcome(case.name, "refused", reason if "no lowering" in reason else f"{node.op_type}: a size or type")
    try:
        return _compare(case, model, device)
    except AssertionError as error:
        return Outcome(case.name, "wrong", " ".join(str(error).split())[:200])
    except Exception as error:  # TVM raises classes of its own; each is a case that does not pass
        return Outcome(case.name, "error", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _compare(case: Case, model: object, device: Device) -> Outcome:
    import numpy as np

    from graphopt.targets.tvm.build import build, scheduled
    from graphopt.targets.tvm.gpu.emulation import compile_kernels, runtime_library, without_nvcc
    from graphopt.targets.tvm.library import Emulation, Library
    from graphopt.targets.tvm.lowering.graph import lower
    from graphopt.targets.tvm.machine import gpu, host
    from graphopt.targets.tvm.plan import SOURCE

    machine = host(1) if device == "cpu" else gpu(ARCH)
    assert machine is not None, "this CPU has none of the instruction sets"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        if device == "emulated":
            build(lower(model), machine, library, scheduled, without_nvcc)  # type: ignore[arg-type]
            kernels = compile_kernels(library.with_suffix(SOURCE), Path(folder))
            opened = Library(library, Emulation(str(runtime_library()), str(kernels)))
        else:
            build(lower(model), machine, library, scheduled)  # type: ignore[arg-type]
            opened = Library(library, device == "cuda")
        results = opened.run([np.asarray(value) for value in case.inputs])
    for got, expected in zip(results, case.outputs, strict=True):
        assert got.dtype == expected.dtype and got.shape == expected.shape, f"{got.dtype}{list(got.shape)}"
        np.testing.assert_allclose(got, expected, rtol=case.rtol, atol=case.atol)
    return Outcome(case.name, "passed")


if __name__ == "__main__":
    sys.exit(main())
