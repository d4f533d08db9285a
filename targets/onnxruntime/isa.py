"""Which instruction set int8 kernels run on: this machine's, or one that is named.

Read from /proc/cpuinfo, as ONNX Runtime's kernels choose by the same flags. Not here: what follows for a model.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Literal

Isa = Literal["auto", "avx2", "avx512", "avx512vnni", "neon"]
SATURATES = frozenset({"avx2", "avx512"})
"""Where u8s8 kernels add pairs of products in 16 bits with saturation."""


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The processor's feature flags as the kernel spells them; empty where it does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    flags: set[str] = set()
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
    return frozenset(flags)


def resolve(isa: Isa) -> str:
    """The instruction set that `auto` stands for here; an x86 that tells nothing counts as avx2: the safe side."""
    if isa != "auto":
        return isa
    if platform.machine() in ("aarch64", "arm64"):
        return "neon"
    flags = cpu_flags()
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "avx512vnni"
    return "avx512" if "avx512bw" in flags else "avx2"
