"""What code is generated for: instruction set, vector registers, caches, threads, a GPU, and TVM's target of these.

    machine = host(threads=2)                   # this CPU
    machine = of("avx2", threads=4)             # a CPU by its instruction set, with typical caches
    machine = gpu("sm_90")                      # a GPU and its host
    machine.llvm()                              # {"kind": "llvm", "mcpu": "x86-64-v3", ...} for tvm.target.Target

Not here: how a schedule follows from it (targets/tvm/cpu).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt.targets.onnxruntime.isa import cpu_flags

if TYPE_CHECKING:
    import tvm

Isa = Literal[
    "avx2", "avx512", "avx512vnni", "avx512vpopcntdq", "neon", "neondot", "armv7", "riscv64"
]  # fmt: skip


@dataclass(frozen=True)
class _Level:
    """One instruction set: its LLVM spelling, vector unit, typical cache bytes, and flags that a CPU must have."""

    triple: str
    mcpu: str
    mattr: tuple[str, ...]
    vector_bits: int
    registers: int
    l1: int
    l2: int
    flags: frozenset[str]


# The x86-64 psABI's levels v3 and v4: what `mcpu` lets LLVM use is what `flags` lists, as Linux spells it.
_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI, _POPCOUNT = _V4 | {"avx512_vnni"}, _V4 | {"avx512_vnni", "avx512_vpopcntdq"}
_NEON = frozenset({"asimd"})
_X86, _ARM = "x86_64-linux-gnu", "aarch64-linux-gnu"
_ARM32, _RISCV = "arm-linux-gnueabihf", "riscv64-linux-gnu"
# By the name that the kernel gives a machine.
_TRIPLES = {"x86_64": _X86, "aarch64": _ARM, "arm64": _ARM, "armv7l": _ARM32, "riscv64": _RISCV}
_LEVELS: dict[Isa, _Level] = {
    "avx2": _Level(_X86, "x86-64-v3", (), 256, 16, 32 << 10, 256 << 10, _V3),
    "avx512": _Level(_X86, "x86-64-v4", (), 512, 32, 32 << 10, 1 << 20, _V4),
    "avx512vnni": _Level(_X86, "x86-64-v4", ("+avx512vnni",), 512, 32, 32 << 10, 1 << 20, _VNNI),
    "avx512vpopcntdq": _Level(
        _X86, "x86-64-v4", ("+avx512vnni", "+avx512vpopcntdq"), 512, 32, 32 << 10, 1 << 20, _POPCOUNT
    ),
    "neon": _Level(_ARM, "generic", ("+neon",), 128, 32, 32 << 10, 512 << 10, _NEON),
    "neondot": _Level(_ARM, "generic", ("+neon", "+dotprod"), 128, 32, 32 << 10, 512 << 10, _NEON | {"asimddp"}),
    "armv7": _Level(
        _ARM32, "generic", ("+v7", "+neon", "+vfp4"), 128, 16, 32 << 10, 256 << 10, frozenset({"neon", "vfpv4"})
    ),
    # Without its vector extension, which few boards have: a vector is four registers.
    "riscv64": _Level(_RISCV, "generic-rv64", ("+m", "+a", "+f", "+d", "+c"), 128, 8, 32 << 10, 256 << 10, frozenset()),
}


@dataclass(frozen=True)
class Machine:
    """A CPU as the code generator sees it.

    Attributes:
        isa: instruction set: `avx2`, `avx512` (without VNNI), `avx512vnni`, `avx512vpopcntdq` (with VNNI, and it counts
            the ones of vectors), `neon` (without dot products) or `neondot`, and of other kinds of machines `armv7`
            (with NEON) and `riscv64` (RV64GC).
        threads: threads that an op is divided among.
        vector_bits: width of one vector register.
        registers: number of vector registers.
        l1, l2: bytes of a core's data caches.
        triple, mcpu, mattr: how LLVM is told the above.
        arch: the GPU that kernels are generated for, as nvcc spells it (`sm_90`), or "" for none; then this CPU is its
            host, which launches them.
    """

    isa: Isa
    threads: int
    vector_bits: int
    registers: int
    l1: int
    l2: int
    triple: str
    mcpu: str
    mattr: tuple[str, ...] = ()
    arch: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """Read what `to_json` wrote, after its way through JSON."""
        return cls(**{**data, "mattr": tuple(data["mattr"])})

    def lanes(self, bits: int = 32) -> int:
        """Elements of so many bits in one vector register."""
        return self.vector_bits // bits

    def has(self, feature: str) -> bool:
        """Whether LLVM may use a feature beyond the level of `mcpu`, as LLVM spells it."""
        return f"+{feature}" in self.mattr

    def llvm(self) -> dict[str, Any]:
        """The JSON form of TVM's target."""
        out: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu, "num-cores": self.threads}
        out |= {_ARM32: {"mfloat-abi": "hard"}, _RISCV: {"mabi": "lp64d"}}.get(self.triple, {})
        return {**out, "mattr": list(self.mattr)} if self.mattr else out

    def target(self) -> tvm.target.Target:
        """TVM's target, host included."""
        import tvm

        return tvm.target.Target(self.cuda() if self.arch else self.llvm(), self.llvm())

    def cuda(self) -> dict[str, Any]:
        """The JSON form of TVM's target for the GPU: limits that every architecture of nvcc 13 has."""
        return {
            "kind": "cuda",
            "arch": self.arch,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": 48 << 10,
            "thread_warp_size": 32,
        }


def of(isa: Isa, threads: int = 0) -> Machine:
    """A machine of this instruction set with typical caches; `threads` 0 stands for this machine's cores."""
    level = _LEVELS[isa]
    return Machine(
        isa=isa,
        threads=threads or cores(),
        vector_bits=level.vector_bits,
        registers=level.registers,
        l1=level.l1,
        l2=level.l2,
        triple=level.triple,
        mcpu=level.mcpu,
        mattr=level.mattr,
    )


def host(threads: int = 0) -> Machine | None:
    """This machine with its own caches; None when it has none of the instruction sets."""
    isa = host_isa()
    if isa is None:
        return None
    typical = of(isa, threads)
    return Machine(
        **{
            **typical.__dict__,
            "l1": _cache_bytes(1) or typical.l1,
            "l2": _cache_bytes(2) or typical.l2,
        }
    )


def gpu(arch: str) -> Machine:
    """A GPU, and a host of this kind of machine with the instructions that any machine with such a GPU has."""
    host_like = of("neon" if _TRIPLES.get(platform.machine()) == _ARM else "avx2")
    return dataclasses.replace(host_like, arch=arch)


def host_isa() -> Isa | None:
    """The widest instruction set that this CPU has."""
    preferred: tuple[Isa, ...] = ("avx512vpopcntdq", "avx512vnni", "avx512", "avx2", "neondot", "neon")
    return next((isa for isa in preferred if not missing_flags(isa)), None)


def missing_flags(isa: Isa) -> tuple[str, ...]:
    """Features, as the kernel spells them, that code of this instruction set uses and this CPU lacks."""
    level = _LEVELS[isa]
    return tuple(sorted(level.flags - cpu_flags()))


def foreign(machine: Machine) -> bool:
    """Whether this process runs on another kind of machine."""
    return _TRIPLES.get(platform.machine()) != machine.triple


def cpu_name() -> str:
    """What the kernel calls this CPU, with family, model and stepping where it tells them."""
    wanted = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    return " ".join(found[key] for key in wanted if key in found) or platform.machine()


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def _cache_bytes(level: int) -> int | None:
    """Bytes of one core's data (or unified) cache, as Linux tells; None where it does not."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (folder / "type").read_text().strip()
            if kind in ("Data", "Unified") and int((folder / "level").read_text()) == level:
                found = re.fullmatch(r"(\d+)([KM]?)", (folder / "size").read_text().strip())
                return int(found[1]) << {"": 0, "K": 10, "M": 20}[found[2]] if found else None
        except (OSError, ValueError):  # containers may hide parts of sysfs
            continue
    return None
