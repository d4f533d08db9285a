"""The graph optimizers that graphopt is compared with, each in an environment of its own, and how all tools are run.

python -m benchmarks.peers        makes the environments (once), in $GRAPHOPT_PEERS or the cache folder
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figure import ROOT, say
from graphopt.models.cache import cache_root

_RUNTIME = "onnxruntime==1.31.1"
_SECONDS = 900


@dataclass(frozen=True)
class Peer:
    """A tool in the environment `folder`, with what is installed beside it there.

    Its command is `bin/<program> IN OUT`, the name of the tool unless said; libraries are run by scripts of ours.
    """

    name: str
    version: str
    folder: str
    beside: tuple[str, ...] = (_RUNTIME,)
    program: str = ""

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


PEERS = (Peer("onnxslim", "0.1.98", "slim"), Peer("onnxsim", "0.8.1", "sim"))


@dataclass(frozen=True)
class Attempt:
    """One run of a tool: wall seconds of the whole process, and why it failed ('' when it did not)."""

    seconds: float
    error: str = ""


Tool = Callable[[Path, Path], Attempt]
"""tool(model, output): optimize a file into another one."""


def environment(peer: Peer) -> Path:
    """Return the folder of the peer's virtual environment, making it on first use.

    Raises:
        SystemExit: pip cannot install it, or what is there has another version.
    """
    base = Path(os.environ.get("GRAPHOPT_PEERS") or cache_root() / "peers")
    folder = base / peer.folder
    if not (folder / "bin" / (peer.program or peer.name)).exists():
        _make(peer, folder)
    found = _version(peer, folder)
    if found != peer.version:
        raise SystemExit(f"{folder} has {peer.name} {found or '(none)'}, not {peer.version}; remove that folder")
    return folder


def _make(peer: Peer, folder: Path) -> None:
    say(f"making an environment for {peer.requirement} in {folder}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*pip, peer.requirement, *peer.beside], check=False)
    if done.returncode:
        shutil.rmtree(folder)
        raise SystemExit(f"pip cannot install {' and '.join([peer.requirement, *peer.beside])} into {folder}")


def _version(peer: Peer, folder: Path) -> str:
    code = f"import importlib.metadata as m; print(m.version({peer.name!r}))"
    done = subprocess.run([str(folder / "bin" / "python"), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def peer_tool(peer: Peer) -> Tool:
    """The peer as users run it: its command with its defaults."""
    command = str(environment(peer) / "bin" / peer.name)
    return lambda model, output: run([command, str(model), str(output)], output)


def graphopt_tool(*flags: str) -> Tool:
    """`graphopt opt MODEL -o OUTPUT --target cpu` with further flags, in a process of its own like the peers."""
    command = [sys.executable, "-P", "-m", "graphopt", "opt"]
    rest = ["--target", "cpu", "--quiet", *flags]
    return lambda model, output: run([*command, str(model), "-o", str(output), *rest], output)


def run(command: list[str], output: Path) -> Attempt:
    """Run a tool from start to saved file, in the folder of its output."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":")}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=output.parent, env=environ, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Attempt(time.perf_counter() - start, f"took over {_SECONDS} s")
    seconds = time.perf_counter() - start
    if done.returncode == 0 and output.exists():
        return Attempt(seconds)
    lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
    return Attempt(seconds, f"exit status {done.returncode}: {lines[-1].strip()[:200]}")


if __name__ == "__main__":
    for each in PEERS:
        print(f"{each.requirement}: {environment(each)}")
