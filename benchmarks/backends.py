"""`--target cpu{backend=auto}` against its two backends and against other compilers.

    python -m benchmarks.backends [--models NAME ...] [--seconds S] [--threads N ...]

Each runtime has a process of its own; they take turns. OpenVINO comes from an environment of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure, Table, arguments, choose_models, pick, say
from benchmarks.latency import DISTURBED
from benchmarks.peers import Peer, environment, graphopt_tool
from benchmarks.tvm_latency import MODELS, make_feeds, timed
from benchmarks.tvm_worker import Worker
from graphopt import driver, models
from graphopt.driver import Options
from graphopt.errors import GraphoptError
from graphopt.models.registry import find

OPENVINO = Peer("openvino", "2026.4.1", "openvino", ("numpy",), "python")
SLOWER = 1.03
"""Most that the choice may take of the better backend's time."""
WINS = 5
"""Models of the seven on which the choice is to take at most OpenVINO's time."""
SECONDS = 8.0
TRIES = 3
STOCK = ("resnet18-export", "mobilenet-v2-export", "light-squeezenet")
"""Models that TVM is timed on as it comes: seconds a run, so two runs, and not on the large ones."""

FIGURE = Figure(
    "backends",
    "The faster backend, and other compilers",
    "Batch 1, float32, median ms. `auto` is what `graphopt compile --target cpu{backend=auto}` ships, `ORT` ONNX "
    "Runtime on the output of `graphopt opt --target cpu`, `TVM` what `--target tvm` makes, untuned; A/A a second "
    f"process of ONNX Runtime over the first. OpenVINO ({OPENVINO.requirement}, latency hint, float32) reads the "
    "original file; torch.compile (inductor, frozen weights) compiles the module that the file was exported from. "
    "Stock TVM is our lowering with TVM's own code, two runs of it, which take seconds.",
    (
        f"auto takes at most {SLOWER:g} times what the better of ORT and TVM takes, on every model",
        f"auto takes at most OpenVINO's time on {WINS} of the {len(MODELS)} models",
    ),
)


def stock_library(model: Path, threads: int, library: Path) -> Path:
    """What TVM makes of a model by itself, through our lowering."""
    from graphopt.frontends.onnx import load
    from graphopt.targets.tvm import machine
    from graphopt.targets.tvm.build import build, stock
    from graphopt.targets.tvm.lowering.graph import lower

    here = machine.host(threads)
    assert here is not None, "this CPU has no instruction set that code is generated for"
    build(lower(load(model)), here, library, stock)
    return library


def seconds_of_stock(library: Path, threads: int, feeds: Path) -> float:
    """The faster of two runs."""
    worker = Worker("vm", threads, library, feeds)
    try:
        return min(worker.time(2))
    finally:
        worker.close()


@dataclass(frozen=True)
class Measured:
    """One model: what auto chose, blocks of seconds by runtime in the same turns, and seconds of a run of stock TVM."""

    chose: str
    blocks: dict[str, np.ndarray]
    stock: float | None

    def ratio(self, one: str, other: str) -> float:
        return float(np.median(self.blocks[one] / self.blocks[other]))

    def better(self) -> str:
        return min(("ort", "tvm"), key=lambda key: float(np.median(self.blocks[key])))

    def ms(self, key: str) -> str:
        return f"{1e3 * float(np.median(self.blocks[key])):.2f}" if key in self.blocks else ""


def measure(name: str, threads: int, folder: Path, seconds: float) -> Measured:
    """Compile a model with every tool and time them.

    Raises:
        GraphoptError: `graphopt opt` failed.
    """
    source, model, feeds = models.fetch(name), folder / f"{name}.onnx", folder / f"{name}.npz"
    attempt = graphopt_tool("--numerics", "off")(source, model)
    if attempt.error:
        raise GraphoptError(attempt.error)
    make_feeds(source, feeds)
    auto = driver.compile(source, f"cpu{{backend=auto threads={threads}}}", folder / f"{name}-auto")
    tvm = driver.compile(source, f"tvm{{threads={threads}}}", folder / f"{name}-tvm", Options(numerics="off"))
    kinds: dict[str, tuple[str, Path] | tuple[str, Path, str]] = {
        "auto": ("vm" if auto.main.suffix == ".so" else "ort", auto.main),
        "ort": ("ort", model),
        "again": ("ort", model),
        "tvm": ("vm", tvm.main),
        "openvino": ("openvino", source, str(environment(OPENVINO) / "bin" / "python")),
    }
    if find(name).kind == "built":
        kinds["torch"] = ("torch", Path(name))
    for _ in range(TRIES):
        blocks = {key: np.array(value) for key, value in timed(kinds, threads, feeds, seconds).items()}
        if abs(float(np.median(blocks["again"] / blocks["ort"])) - 1) <= DISTURBED:
            break
    stock = None
    if name in STOCK:
        stock = seconds_of_stock(stock_library(model, threads, folder / f"{name}-stock.so"), threads, feeds)
    return Measured(auto.manifest["target"], blocks, stock)


COLUMNS = (
    "model",
    "auto chose",
    "auto",
    "ORT",
    "TVM",
    "A/A",
    "OpenVINO",
    "torch.compile",
    "stock TVM",
    "auto/better",
    "auto/OpenVINO",
)


def main() -> int:
    parser = arguments(__doc__)
    choose_models(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring per model (default %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    chosen = pick(MODELS, options.models)
    folder = options.folder / "backends"
    folder.mkdir(parents=True, exist_ok=True)
    for threads in options.threads:
        table = Table(COLUMNS, f"{threads} thread{'s' * (threads > 1)}", 2)
        wins = 0
        for name in chosen:
            say(f"{name}, {threads} threads ...")
            try:
                found = measure(name, threads, folder, options.seconds)
            except GraphoptError as error:
                FIGURE.require(False, f"{name}, {threads} threads: {error}")
                continue
            better, openvino = found.ratio("auto", found.better()), found.ratio("auto", "openvino")
            wins += openvino <= 1
            table.add(
                name,
                found.chose,
                *map(found.ms, ("auto", "ort", "tvm")),
                f"{found.ratio('again', 'ort'):.3f}",
                *map(found.ms, ("openvino", "torch")),
                "" if found.stock is None else f"{1e3 * found.stock:.0f}",
                f"{better:.3f}",
                f"{openvino:.3f}",
            )
            say(" | ".join(table.rows[-1]))
            told = f"{name}, {threads} threads: auto takes {better:.3f} of {found.better()}"
            FIGURE.require(better <= SLOWER, told)
        if len(table.rows) == len(MODELS):
            FIGURE.require(wins >= WINS, f"{threads} threads: auto takes at most OpenVINO's time on {wins} models")
        FIGURE.tables.append(table)
    return FIGURE.finish(write=not (options.no_write or options.models or options.seconds < SECONDS))


if __name__ == "__main__":
    raise SystemExit(main())
