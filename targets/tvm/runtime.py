"""TVM's runtime for another machine, out of its pinned wheels, and run.cc compiled for it.

    folder = runtime_for("aarch64-linux-gnu")       # libtvm_runtime.so, libtvm_ffi.so and the program `run`

Fetched once into the cache folder; nothing of the packages is installed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

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


def runtime_for(triple: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder with TVM's runtime libraries for a machine, and the program that runs models with them.

    Raises:
        GraphoptError: there are none for this machine, pip cannot fetch them, or the cross compiler is missing.
    """
    if triple != "aarch64-linux-gnu":
        raise GraphoptError(f"there is no pinned TVM runtime for {triple}; there is one for aarch64-linux-gnu")
    version = WHEELS["libtvm_runtime.so"].version
    folder = cache_root(cache_dir) / "tvm" / f"{triple}-{version}"
    return folder if folder.is_dir() else place(folder, lambda made: _make(triple, made))


def _make(triple: str, folder: Path) -> None:
    command = compiler(triple)  # before the download
    folder.mkdir()
    for name, wheel in WHEELS.items():
        with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
            _unpack(fetch_wheel(wheel, Path(scratch)), name, folder / name)
    link = ["-L", str(folder), "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime", "-Wl,-rpath,$ORIGIN"]
    source = Path(__file__).with_name("run.cc")
    done = subprocess.run(
        [command, "-std=c++17", "-O2", str(source), f"-I{_headers()}", *link, "-o", str(folder / PROGRAM)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise GraphoptError(f"{command} cannot compile {source.name}: {done.stderr.strip().splitlines()[-1][:300]}")


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
