"""What this machine and this installation can do: cores, instruction sets, devices, versions and known conflicts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

# Instruction sets that decide which kernels run; names as the kernel's cpuinfo spells them.
_ISA = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
_PACKAGES = (
    "graphopt",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnx-shape-inference",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx-graphsurgeon",
    "networkx",
    "torch",
    "onnxscript",
    "transformers",
    "apache-tvm",
    "apache-tvm-ffi",
)


def examine() -> dict[str, Any]:
    """Collect everything; keys: machine, versions, targets, problems."""
    found = {name: version for name in _PACKAGES if (version := _version(name))}
    return {
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **found},
        "targets": _targets(),
        "problems": _problems(found),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    from graphopt.targets.onnxruntime.isa import cpu_flags

    flags = cpu_flags()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": [name for name in _ISA if name in flags],
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _targets() -> dict[str, str]:
    from graphopt.manager.registry import targets

    return {name: cls().available() or "can run here" for name, cls in sorted(targets().items())}


def _problems(found: dict[str, str]) -> list[str]:
    from graphopt.manager.registry import problems, target_problems

    out = [*problems(), *target_problems()]
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        out.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "uninstall both, then install one"
        )
    if "onnxruntime" not in found and "onnxruntime-gpu" not in found:
        out.append('ONNX Runtime is not installed, so nothing can be run or verified; pip install "graphopt[cpu]"')
    if "apache-tvm" in found and found.get("apache-tvm-ffi") not in (None, "0.1.14.post1"):
        out.append(
            f"apache-tvm-ffi {found['apache-tvm-ffi']} crashes tuning or does not load with apache-tvm "
            f"{found['apache-tvm']}; pip install apache-tvm-ffi==0.1.14.post1"
        )
    out.extend(_requirements())
    return out


def _requirements() -> list[str]:
    """Installed versions that graphopt's own requirements exclude."""
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("graphopt") or ()
    except importlib.metadata.PackageNotFoundError:
        return ["graphopt runs from its source and is not installed, so the versions of packages are not checked"]
    out = []
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", "torch", "cpu", "tvm")
        ):
            continue
        version = _version(requirement.name)
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            out.append(f"{requirement.name} {version} is installed, graphopt wants {requirement.specifier}")
    return out
