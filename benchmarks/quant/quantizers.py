"""The quantizers that are compared: the peers, each in an environment of its own, and graphopt by its command line.

    python -m benchmarks.quant.quantizers [NAME ...]     makes the peers' environments

Every one gets the same float file and calibration file. How each peer is called stands in workers/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figure import ROOT, say
from benchmarks.peers import Peer, environment
from benchmarks.scale import TreeMemory

SECONDS = 900
# As users run it, graphopt ships float where int8 is slower here; with --keep-slow its int8 is seen there too.
OURS, OURS_INT8 = "graphopt", "graphopt --keep-slow"
OWN: dict[str, tuple[str, ...]] = {OURS: (), OURS_INT8: ("--keep-slow",)}
_WORKERS = Path(__file__).with_name("workers")

_ORT = Peer("onnxruntime", "1.31.1", "quant-ort", ("onnx==1.23.2", "sympy==1.14.0"), "python")
_NNCF = Peer("nncf", "3.4.0", "nncf", ("onnx==1.23.2", "onnxruntime==1.31.1"), "python")
_SIM = Peer("onnxsim", "0.8.1", "sim")
# neural-compressor itself has no ONNX quantizer any more. Its successor is of 2024: it needs the onnx of that time, and
# packages that it imports without asking for them.
_INC_BESIDE = ("onnx==1.16.2", "onnxruntime==1.18.1", "numpy==1.26.4", "scipy==1.14.1", "prettytable==3.18.0")
_INC = Peer("onnx-neural-compressor", "1.0", "inc", (*_INC_BESIDE, "sympy==1.14.0"), "python")


@dataclass(frozen=True)
class Quantizer:
    """A peer's worker with its options."""

    name: str
    peer: Peer
    worker: str
    options: tuple[str, ...] = ()

    def command(self, model: Path, calibration: Path, output: Path) -> list[str]:
        """The command that writes `output`.

        Raises:
            SystemExit: its environment cannot be made.
        """
        python = environment(self.peer) / "bin" / "python"
        return [str(python), str(_WORKERS / self.worker), str(model), str(calibration), str(output), *self.options]


PEERS = {
    peer.name: peer
    for peer in (
        Quantizer("ort", _ORT, "ort.py"),
        Quantizer("ort-reduce-range", _ORT, "ort.py", ("reduce_range=1",)),
        Quantizer("nncf", _NNCF, "nncf_ptq.py"),
        Quantizer("inc", _INC, "inc.py"),
        Quantizer("onnxsim", _SIM, "sim.py"),
        Quantizer("ort-u8u8", _ORT, "ort.py", ("weight=QUInt8",)),
        Quantizer("ort-percentile", _ORT, "ort.py", ("method=Percentile",)),
        Quantizer("ort-entropy", _ORT, "ort.py", ("method=Entropy",)),
        Quantizer("inc-smooth", _INC, "inc.py", ("smooth=1",)),
        Quantizer("onnxsim-mse", _SIM, "sim.py", ("method=mse",)),
    )
}
DEFAULT = ("ort", "ort-reduce-range", "nncf", "inc", "onnxsim")


@dataclass(frozen=True)
class Made:
    """A finished quantizer: its model, wall seconds and peak bytes of its processes; `error` says why there is none."""

    path: Path
    seconds: float = 0.0
    peak: int = 0
    error: str = ""


def quantize(name: str, model: Path, calibration: Path, folder: Path, target: str = "cpu") -> Made:
    """Quantize a model with the peer of that name, or with graphopt for `target`, into an empty `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    output = place_of(name, folder)
    try:
        if name in OWN:
            return run([*_ours(model, calibration, output.parent, target), *OWN[name]], output, folder)
        return run(PEERS[name].command(model, calibration, output), output, folder)
    except SystemExit as error:  # an environment that cannot be made is a row of the table, not its end
        return Made(output, error=str(error))


def place_of(name: str, folder: Path) -> Path:
    """Where a tool's model is; graphopt wants a folder of its own for its artifact."""
    return folder / "artifact" / "model.onnx" if name in OWN else folder / "model.onnx"


def _ours(model: Path, calibration: Path, artifact: Path, target: str) -> list[str]:
    command = [sys.executable, "-P", "-m", "graphopt", "compile", str(model), "--target", target, "--precision", "int8"]
    return [*command, "--calibration-data", str(calibration), "-o", str(artifact)]


def run(command: Sequence[str], output: Path, folder: Path, limit: float = SECONDS) -> Made:
    """Run a quantizer in `folder` while its memory is watched; what it prints stays there in log.txt."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)} if "graphopt" in command else dict(os.environ)
    log = folder / "log.txt"
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            list(command), cwd=folder, env=environ, stdout=stream, stderr=stream, start_new_session=True
        )
        memory = TreeMemory(process.pid)
        memory.start()
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # it leads a session of its own, which an interrupt from the terminal does not reach
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - start
        memory.stop()
    if status == 0 and output.exists():
        return Made(output, seconds, memory.peak)
    return Made(output, seconds, memory.peak, f"took over {limit:g} s" if status is None else reason(status, log))


def reason(status: int, log: Path) -> str:
    """One line about a failure: the last line that names an error, else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
    return f"exit status {status}: {named[-1][:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the environments of the peers' quantizers.")
    parser.add_argument("names", nargs="*", default=list(DEFAULT), metavar="NAME")
    for name in parser.parse_args().names:
        try:
            print(f"{name}: {environment(PEERS[name].peer)}")
        except SystemExit as error:  # the table says it too, in the peer's rows
            say(f"{name}: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
