"""TVM's runtime for a machine, out of its pinned wheels or of the installed ones, and run.cc compiled for it.

    folder = runtime_for("aarch64-linux-gnu")       # libtvm_runtime.so, libtvm_ffi.so and the program `run`

Made once for what goes into it, in the cache folder; nothing of the packages is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from graphopt.environment import versions
from graphopt.errors import GraphoptError, MissingDependency
from graphopt.models.cache import cache_root, place
from graphopt.models.download import fetch_wheel
from graphopt.models.registry import Wheel
from graphopt.targets.tvm.toolchain import compiler

# The wheels of the versions in constraints.txt; Python's version does not matter for the libraries in them.
_AARCH64 = "manylinux_2_28_aarch64"
WHEELS = {
    "libtvm_runtime.so": Wheel(
        "apache-tvm",
        "0.27.0.post1",
        "4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7",
        platform=_AARCH64,
    ),
    "libtvm_ffi.so": Wheel(
        "apache-tvm-ffi",
        "0.1.14.post1",
        "c7a759781d4fbf2b99fa12f2741f250b882b06acc2747bb02831d491d1ac7d3c",
        platform=_AARCH64,
        python="311",
    ),
}
PROGRAM = "run"
SOURCE = Path(__file__).with_name("run.cc")
RUNTIME = ("libtvm_runtime.so", "libtvm_ffi.so")
"""What a device needs beside a library."""
FILES = (*RUNTIME, PROGRAM)
# Bytes of RUNTIME in the wheels above, so that a report needs no download.
AARCH64_BYTES = (2_953_920, 2_232_416)


def known_runtime(triple: str) -> tuple[int, ...] | None:
    """Bytes of RUNTIME for a machine; None where no build of it is known."""
    if _is_native(triple):
        return tuple(_installed(name).stat().st_size for name in RUNTIME)
    return AARCH64_BYTES if triple == "aarch64-linux-gnu" else None


def bundle(triple: str, folder: Path) -> tuple[str, ...]:
    """Put the runtime and the program that runs models into a folder; return the names.

    Raises:
        GraphoptError: as `runtime_for`.
    """
    source = runtime_for(triple)
    for name in FILES:
        shutil.copy(source / name, folder / name)
    return FILES


def runtime_for(triple: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder with TVM's runtime libraries for a machine, and the program that runs models with them.

    Raises:
        GraphoptError: there are none for this machine, pip cannot fetch them, or the cross compiler is missing.
    """
    if triple != "aarch64-linux-gnu" and not _is_native(triple):
        raise GraphoptError(
            f"TVM's packages have no runtime for {triple}, only for x86-64 and aarch64; build it from TVM's source"
        )
    folder = cache_root(cache_dir) / "tvm" / f"{triple}-{_identity(triple)}"
    return folder if folder.is_dir() else place(folder, lambda made: _make(triple, made))


def _identity(triple: str) -> str:
    """The version of the runtime, and a hash of all that the folder is made of: libraries, headers, program."""
    packages = ("apache-tvm", "apache-tvm-ffi")
    installed = {name: text for name, text in versions(packages).items() if name in packages}
    fetched = {} if _is_native(triple) else {wheel.package: wheel.sha256 for wheel in WHEELS.values()}
    version = WHEELS["libtvm_runtime.so"].version if fetched else installed.get("apache-tvm", "")
    made_of = json.dumps([installed, fetched], sort_keys=True).encode() + SOURCE.read_bytes()
    return f"{version}-{hashlib.sha256(made_of).hexdigest()[:12]}"


def _make(triple: str, folder: Path) -> None:
    command = compiler(triple)  # before the download
    folder.mkdir()
    for name, wheel in WHEELS.items():
        if _is_native(triple):
            shutil.copy(_installed(name), folder / name)
            continue
        with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
            _unpack(fetch_wheel(wheel, Path(scratch)), name, folder / name)
    link = ["-L", str(folder), "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime", "-ldl", "-Wl,-rpath,$ORIGIN"]
    done = subprocess.run(
        [command, "-std=c++17", "-O2", str(SOURCE), f"-I{_headers()}", *link, "-o", str(folder / PROGRAM)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise GraphoptError(f"{command} cannot compile {SOURCE.name}: {done.stderr.strip().splitlines()[-1][:300]}")


def _is_native(triple: str) -> bool:
    return platform.machine() == triple.partition("-")[0]


def _installed(name: str) -> Path:
    package = "tvm_ffi" if "ffi" in name else "tvm"
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingDependency("compiling for TVM", "tvm")
    return Path(found.submodule_search_locations[0]) / "lib" / name


def _unpack(wheel: Path, name: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        member = next((item for item in archive.namelist() if item.endswith(f"/lib/{name}")), None)
        if member is None:
            raise GraphoptError(f"{wheel.name} has no {name}")
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)


def _headers() -> Path:
    found = importlib.util.find_spec("tvm_ffi")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency("compiling for TVM", "tvm")
    return Path(found.submodule_search_locations[0]) / "include"
