"""Kernels for a GPU run on this machine's CPU, to verify them where no GPU is: their CUDA source, compiled for it.

    runtime = runtime_library()                          # stands in for the GPU; made once, kept in the cache folder
    kernels = compile_kernels(Path("model.cu"), folder)  # what it runs in place of the library's device code

Each block's threads are fibers that switch at barriers and warp shuffles, so shared memory and reductions across
threads mean what they mean on a GPU; the host code, memory plan and copies are those of the artifact. Not shown by it:
what nvcc makes of the source, and speed. kernels.h is the language, runtime.cc the device.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from graphopt.errors import GraphoptError, MissingDependency
from graphopt.models.cache import cache_root, place
from graphopt.targets.tvm.gpu.nvcc import Binary
from graphopt.targets.tvm.toolchain import compiler

_HERE = Path(__file__).parent
_NAME = "libemulation.so"
_COMPILE_SECONDS = 900.0
_SHARED_BYTES = 99 << 10
"""The least that a block may ask for at launch on GPUs from sm_80 on."""


def runtime_library(triple: str = "x86_64-linux-gnu", cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The library that stands in for a GPU.

    Raises:
        GraphoptError: there is no C++ compiler, or TVM's headers are of another version.
    """
    source = _HERE / "runtime.cc"
    packages = [_package(name) for name in ("tvm_ffi", "tvm")]
    key = hashlib.sha256(source.read_bytes() + "".join(map(str, packages)).encode()).hexdigest()[:16]
    folder = cache_root(cache_dir) / "tvm" / f"emulation-{key}"

    def make(made: Path) -> None:
        made.mkdir()
        places = [flag for path in packages for flag in (f"-I{path / 'include'}", f"-L{path / 'lib'}")]
        _run([compiler(triple), "-O2", "-fPIC", "-shared", str(source), *places, "-ltvm_ffi", "-ltvm_runtime",
              "-o", str(made / _NAME)])  # fmt: skip

    return (folder if folder.is_dir() else place(folder, make)) / _NAME


def compile_kernels(source: Path, folder: Path, triple: str = "x86_64-linux-gnu") -> Path:
    """Compile CUDA source for this machine's CPU.

    Raises:
        GraphoptError: it uses what kernels.h does not have, or there is no C++ compiler.
    """
    text = source.read_text(encoding="utf-8")
    if "asm volatile" in text:
        raise GraphoptError(f"{source.name} holds instructions of a GPU, which have no emulation; it needs a GPU")
    made, library = folder / f"{source.stem}.cc", folder / f"{source.stem}.kernels.so"
    included = re.sub(r"^\s*#include.*$", "", text, flags=re.MULTILINE)
    included = re.sub(r"extern __shared__ (.*)\[\];", rf"__shared__ \1[{_SHARED_BYTES}];", included)
    made.write_text(f"{included}\n{launchers(text)}", encoding="utf-8")
    _run([compiler(triple), "-O2", "-march=native", "-w", "-fPIC", "-shared", "-include", str(_HERE / "kernels.h"),
          str(made), "-o", str(library)])  # fmt: skip
    return library


def without_nvcc(source: str, arch: str) -> Binary:
    """No device code, for build.build: of a library that is only run in emulation."""
    return Binary(b"", {})


def launchers(source: str) -> str:
    """For each kernel a function that calls it with arguments out of an array of 64-bit values.

    A kernel whose threads never wait for each other gets a symbol that says so.
    """
    lines = []
    found = list(
        re.finditer(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)\s*\{', source)
    )
    for number, match in enumerate(found):
        name, parameters = match.groups()
        body = source[match.end() : found[number + 1].start() if number + 1 < len(found) else None]
        values = ", ".join(
            _argument(parameter, index) for index, parameter in enumerate(filter(None, parameters.split(",")))
        )
        lines.append(f'extern "C" void graphopt_run_{name}(const int64_t* arguments) {{ {name}({values}); }}')
        if "__syncthreads" not in body and "__shfl" not in body:
            lines.append(f'extern "C" {{ char graphopt_apart_{name}; }}')
    return "\n".join(lines) + "\n"


def _argument(parameter: str, index: int) -> str:
    kind = parameter.replace("__restrict__", "").strip().rpartition(" ")[0].strip()
    if kind.endswith("*"):
        return f"({kind})arguments[{index}]"
    if kind in ("float", "double"):  # the host hands floating-point values over as doubles
        return f"({kind})*(const double*)&arguments[{index}]"
    return f"({kind})arguments[{index}]"


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            [*command, "-std=c++17"], capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise GraphoptError(
            f"{command[0]} took over {_COMPILE_SECONDS:g} s for the emulation and was stopped"
        ) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise GraphoptError(f"{command[0]} cannot compile kernels for emulation: {lines[0][:300]}")


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise MissingDependency("emulating a GPU", "tvm")
    return Path(found.submodule_search_locations[0])
