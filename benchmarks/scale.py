"""Figure 6: how memory grows with the weights and time with the nodes.

    python -m benchmarks.scale [--only memory|nodes]

A 6 GB model goes through `compile` with numerics on while the memory of its process tree is watched from outside.
Models of 10,000 and 50,000 nodes go through `opt -O2` with the verifier after every pass.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figure import ROOT, Figure, Table, arguments, say
from benchmarks.peers import graphopt_tool
from graphopt.models import synthetic

# The bars.
GIGABYTES, MAX_ANONYMOUS = 6.0, 1.5e9
SMALL, LARGE, MAX_SECONDS, MAX_RATIO = 10_000, 50_000, 60.0, 6.0
HERTZ = 20
REPEAT = 3


class TreeMemory(threading.Thread):
    """Samples the memory of a process, its descendants and its session that belongs to no file; keeps the peak.

    Anonymous and shared memory are summed over processes, so pages shared by a fork count twice: never too little.
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.peak = 0
        self.samples = 0
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(1 / HERTZ):
            self.peak = max(self.peak, sum(map(anonymous_bytes, tree(self.root))))
            self.samples += 1

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


def tree(root: int) -> set[int]:
    """The processes that descend from `root` or belong to the session that it leads."""
    parents: dict[int, int] = {}
    members = {root}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        parents[int(entry.name)] = int(fields[1])
        if int(fields[3]) == root:
            members.add(int(entry.name))
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in members} - members
        members |= more
        grown = bool(more)
    return members


def anonymous_bytes(pid: int) -> int:
    """RssAnon + RssShmem of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


@dataclass(frozen=True)
class Watched:
    """A finished command: exit status, seconds, peak bytes of its tree, number of samples, end of its stderr."""

    status: int
    seconds: float
    peak: int
    samples: int
    errors: str


def watch(command: list[str], folder: Path) -> Watched:
    """Run a command in `folder`, temporary files too, in a session of its own, and watch its memory."""
    environ = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with (folder / "stderr.txt").open("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        memory = TreeMemory(process.pid)
        memory.start()
        status = process.wait()
        seconds = time.perf_counter() - start
        memory.stop()
        stderr.seek(0)
        lines = stderr.read().strip().splitlines()
    return Watched(status, seconds, memory.peak, memory.samples, lines[-1] if lines else "")


def measure_memory(figure: Figure, folder: Path, gigabytes: float) -> None:
    """Compile a model of that size, numerics on."""
    say(f"writing a model of {gigabytes:g} GB ...")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = synthetic.big_model(folder / "big.onnx", gigabytes)
    say("compiling it ...")
    command = [sys.executable, "-m", "graphopt", "compile", str(model), "--target", "cpu", "-o", "build"]
    done = watch([*command, "--require-numerics", "--quiet"], folder)
    report = folder / "build" / "report.json"
    verdict = json.loads(report.read_text(encoding="utf-8"))["numerics"]["status"] if report.exists() else "no report"
    table = Table(("weights", "peak anonymous memory", "seconds", "numerics", "samples"), "Memory of the process tree")
    table.add(f"{gigabytes:g} GB", f"{done.peak / 1e9:.2f} GB", f"{done.seconds:.0f}", verdict, done.samples)
    figure.tables.append(table)
    figure.require(done.status == 0, f"compile of {gigabytes:g} GB: exit status {done.status}: {done.errors}")
    figure.require(verdict == "passed", f"compile of {gigabytes:g} GB: numerics: {verdict}")
    figure.require(done.peak < MAX_ANONYMOUS, f"peak {done.peak / 1e9:.2f} GB is not under {MAX_ANONYMOUS / 1e9:g} GB")
    shutil.rmtree(folder)


def measure_nodes(figure: Figure, folder: Path) -> None:
    """Optimize models of many nodes; the sizes take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    tool = graphopt_tool("--verify", "each", "--numerics", "off")
    seconds: dict[int, list[float]] = {SMALL: [], LARGE: []}
    for turn in range(REPEAT):
        for nodes, taken in seconds.items():
            say(f"{nodes} nodes, {turn + 1} of {REPEAT} ...")
            model = synthetic.deep_graph(nodes, folder / f"deep-{nodes}.onnx")
            attempt = tool(model, folder / "out" / "deep.onnx")
            if not figure.require(not attempt.error, f"{nodes} nodes: {attempt.error}"):
                return
            taken.append(attempt.seconds)
    medians = {nodes: statistics.median(taken) for nodes, taken in seconds.items()}
    ratio = medians[LARGE] / medians[SMALL]
    table = Table(("nodes", "seconds", "over the first"), f"Time of opt -O2 --verify each, median of {REPEAT}")
    for nodes, median in medians.items():
        table.add(f"{nodes:,}", f"{median:.1f}", f"{median / medians[SMALL]:.2f}x")
    figure.tables.append(table)
    slow = f"{LARGE:,} nodes take {medians[LARGE]:.1f} s, over {MAX_SECONDS:g} s"
    figure.require(medians[LARGE] <= MAX_SECONDS, slow)
    figure.require(ratio <= MAX_RATIO, f"{LARGE:,} nodes take {ratio:.2f}x of {SMALL:,}, over {MAX_RATIO:g}x")
    shutil.rmtree(folder)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=("memory", "nodes"), help="one of the two parts (writes no page)")
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="size of the weights (default %(default)g)")
    options = parser.parse_args()
    figure = Figure(
        "scale",
        "Large models",
        f"A model of {options.gigabytes:g} GB of weights, all different, through `graphopt compile --target cpu` with "
        f"numerics on; anonymous and shared memory of the whole process tree, sampled {HERTZ} times a second from "
        "outside (mapped files can be dropped at any time and do not count). Models of many nodes through "
        "`graphopt opt --target cpu -O2 --verify each --numerics off`, whole process.",
        (
            f"peak anonymous memory under {MAX_ANONYMOUS / 1e9:g} GB, numerics passed",
            f"{LARGE:,} nodes in at most {MAX_SECONDS:g} s, and at most {MAX_RATIO:g}x of {SMALL:,} nodes",
        ),
    )
    if options.only != "nodes":
        measure_memory(figure, options.folder / "scale-memory", options.gigabytes)
    if options.only != "memory":
        measure_nodes(figure, options.folder / "scale-nodes")
    return figure.finish(write=not (options.no_write or options.only or options.gigabytes < GIGABYTES))


if __name__ == "__main__":
    raise SystemExit(main())
