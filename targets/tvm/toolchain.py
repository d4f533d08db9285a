"""The C++ compilers that link libraries: this machine's, or a cross compiler of Debian."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from graphopt.errors import GraphoptError

_PACKAGES = {
    "x86_64-linux-gnu": "g++-x86-64-linux-gnu",
    "aarch64-linux-gnu": "g++-aarch64-linux-gnu",
    "arm-linux-gnueabihf": "g++-arm-linux-gnueabihf",
    "riscv64-linux-gnu": "g++-riscv64-linux-gnu",
}
# TVM emits debug info of its loops, a third of the library of a small model; names of functions stay, for profilers.
_LINK = ("-shared", "-fPIC", "-Wl,--strip-debug")


def compiler(triple: str) -> str:
    """The C++ compiler for a target.

    Raises:
        GraphoptError: it is not installed; says which package brings it.
    """
    native = platform.machine() == triple.partition("-")[0]
    names = ("g++", "c++", "clang++") if native else (f"{triple}-g++",)
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    package = "g++" if native else _PACKAGES[triple]
    raise GraphoptError(f"linking for {triple} needs {names[0]}, which is not installed: apt-get install {package}")


def linker(triple: str) -> Callable[..., Any]:
    """What TVM's export_library calls to link objects into a shared library.

    Raises:
        GraphoptError: as `compiler`.
    """
    command = compiler(triple)

    def link(output: str, objects: Sequence[str] | str, options: Sequence[str] = (), **kwargs: Any) -> None:
        files = [objects] if isinstance(objects, str) else list(objects)
        run = [command, *_LINK, "-o", output, *files, *(options or ())]
        done = subprocess.run(run, capture_output=True, text=True)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise GraphoptError(f"{command} cannot link the library: {lines[-1][:300]}")

    link.output_format = "so"  # type: ignore[attr-defined]
    return link
