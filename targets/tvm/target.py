"""The TVM target: `tvm{device=cpu isa=avx2 threads=4}` or `tvm{device=cuda arch=sm_90}`, one shared library with code
and weights.

    files = Tvm(threads=2).compile(model, folder)      # model.so, plan.json, model.onnx
    runner = Tvm().load(folder / "model.so", files.settings)

With fallback=onnxruntime a model may become several parts; then plan.json is what is loaded.

model.onnx is the optimized model that the library was made of: `verify`, `run` and `bench` make feeds from it. Running
the library needs neither it nor plan.json (docs/tvm.md).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import GraphoptError, MissingDependency
from graphopt.target import RUN_SECONDS, CompiledFiles, Place, Runner, Target, run_bytes
from graphopt.targets.tvm import machine as machines
from graphopt.targets.tvm.lowering.table import why_not, why_not_op
from graphopt.targets.tvm.plan import LIBRARY, MODEL, PLAN
from graphopt.targets.tvm.settings import TvmSettings

Arch = Literal[
    "auto", "sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120",
    "sm_121",
]  # fmt: skip
"""GPUs that nvcc 13 compiles for."""

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes
    from graphopt.ir.writer import ExternalData
    from graphopt.targets.tvm.compiling import Choices, Compiled
    from graphopt.targets.tvm.machine import Machine
    from graphopt.tuning import Remote, Tuning


@dataclass(frozen=True)
class Tvm(Target):
    """Apache TVM: code for a CPU or an NVIDIA GPU, ahead of time.

    Attributes:
        device: `cpu` is an x86-64 or ARM machine of this kind; `aarch64`, `armv7` (with NEON) and `riscv64` (RV64GC)
            are cross-compiled for Linux there; `cuda` is an NVIDIA GPU in a machine of this kind.
        arch: with device=cuda, the GPU that kernels are made for; `auto` is sm_80. Newer ones run them too, translated
            from PTX by the driver when they are loaded.
        isa: instruction set; `auto` is what this machine has (with device=aarch64: neon).
        threads: threads that the code is made for and run with; 0 for one per CPU of this machine.
        emulator: `qemu` runs code for aarch64 on this machine, to verify it; TVM's runtime for it is fetched once.
            `cpu` does so with kernels for a GPU: their CUDA source is compiled for this machine's CPU.
        runtime: `bundled` puts TVM's runtime and a program that runs models beside the library, for a device without
            Python.
        fallback: `onnxruntime` leaves nodes that TVM does not take to ONNX Runtime; `none` refuses such models.
    """

    name: ClassVar[str] = "tvm"
    summary: ClassVar[str] = "Apache TVM: a shared library of generated code for a CPU or GPU"
    packages: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")
    tunes: ClassVar[bool] = True

    device: Literal["cpu", "aarch64", "armv7", "riscv64", "cuda"] = "cpu"
    arch: Arch = "auto"
    isa: Literal["auto", "avx2", "avx512", "avx512vnni", "avx512vpopcntdq", "neon", "neondot"] = "auto"
    threads: int = 0
    emulator: Literal["none", "qemu", "cpu"] = "none"
    fallback: Literal["none", "onnxruntime"] = "none"
    runtime: Literal["none", "bundled"] = "none"

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise GraphoptError(f"target 'tvm': threads={self.threads} is negative; 0 means one per core")
        if self.device == "aarch64" and self.isa not in ("auto", "neon", "neondot"):
            raise GraphoptError(f"target 'tvm': device=aarch64 has no isa={self.isa}; there are neon and neondot")
        if self.emulator == "qemu" and self.device in ("armv7", "riscv64"):
            raise GraphoptError(
                f"target 'tvm': emulator=qemu runs aarch64 only; TVM has no runtime for {self.device} in its packages"
            )
        if self.emulator == "qemu" and self.device != "aarch64":
            raise GraphoptError("target 'tvm': emulator=qemu is for code of another machine: device=aarch64")
        if self.emulator == "cpu" and self.device != "cuda":
            raise GraphoptError("target 'tvm': emulator=cpu is for kernels of a GPU: device=cuda")
        if self.arch != "auto" and self.device != "cuda":
            raise GraphoptError(f"target 'tvm': arch={self.arch} is a GPU; it goes with device=cuda")
        if self.device in ("armv7", "riscv64") and self.isa != "auto":
            raise GraphoptError(f"target 'tvm': device={self.device} has no isa={self.isa}; leave it out")
        if self.runtime == "bundled" and self.device not in ("cpu", "aarch64"):
            raise GraphoptError(f"target 'tvm': there is no runtime to bundle for device={self.device}")
        if self.device == "cuda" and self.isa != "auto":
            raise GraphoptError(f"target 'tvm': device=cuda has no isa={self.isa}; its GPU is named by arch=sm_90")
        if self.device == "cuda" and self.threads and self.fallback == "none":
            raise GraphoptError(
                "target 'tvm': device=cuda has no threads; they are for parts in ONNX Runtime (fallback)"
            )

    def machine(self) -> Machine:
        """What code is generated for.

        Raises:
            GraphoptError: `auto` on a CPU that has none of the instruction sets.
        """
        if self.device == "aarch64":
            return machines.of("neondot" if self.isa == "neondot" else "neon", self.threads)
        if self.device == "armv7" or self.device == "riscv64":
            return machines.of(self.device, self.threads)
        if self.device == "cuda":
            return machines.gpu("sm_80" if self.arch == "auto" else self.arch)
        if self.isa != "auto":
            return machines.of(self.isa, self.threads)
        found = machines.host(self.threads)
        if found is None:
            raise GraphoptError("this CPU has neither AVX2 nor NEON; name the one to compile for: tvm{isa=avx2}")
        return found

    def available(self) -> str | None:
        if importlib.util.find_spec("tvm") is None:
            return 'TVM is not installed; install it with: pip install "graphopt[tvm]"'
        machine = self.machine()
        if self.emulator == "qemu":
            from graphopt.targets.tvm.emulated import emulator

            installed = emulator(machine.triple) is not None
            return None if installed else "qemu-user is not installed: apt-get install qemu-user"
        if machines.foreign(machine):
            hint = "emulator=qemu runs the code here" if self.device == "aarch64" else "copy the artifact to one"
            return f"this machine is no {machine.triple.partition('-')[0]}; {hint}"
        if machine.arch and self.emulator == "none":
            from graphopt.targets.tvm.gpu.driver import why_not as why_no_gpu

            return why_no_gpu(machine.arch)
        lacking = machines.missing_flags(machine.isa)
        return f"this CPU lacks {', '.join(lacking)}; copy the artifact to one that has it" if lacking else None

    def supports(self, domain: str, op_type: str, version: int, dtype: str | None = None) -> str | None:
        return why_not_op(domain, op_type, dtype)

    def supports_node(self, node: ir.Node, shapes: Shapes, version: int) -> str | None:
        from graphopt.targets.tvm.lowering.view import View

        return why_not(View(node, shapes, version))

    def supports_end(self, value: ir.Value) -> str | None:
        from graphopt.targets.tvm.ends import why_not_end

        return why_not_end(value)

    def as_made(self, path: Path) -> Tvm:
        from graphopt.targets.tvm.plan import read_plan

        if self.device != "cpu" or self.isa != "auto":
            return self
        isa = read_plan(path.parent).isa
        if isa == "armv7" or isa == "riscv64":  # such code has a device of its own
            return self
        return dataclasses.replace(self, isa=isa)

    def pipeline(self, level: int) -> str:
        if level not in range(4):
            raise GraphoptError(f"there is no optimization level {level}; levels are 0 to 3")
        # What has no lowering is taken apart at any level.
        return f"inline-functions,decompose-contrib-ops,O{level}"

    def settings(self) -> dict[str, Any]:
        return TvmSettings(threads=self.threads).to_json()

    def compile(self, model: ir.Model, out: Path, external_data: ExternalData = "auto") -> CompiledFiles:
        """Write the libraries, plan.json and the model they were made of.

        Raises:
            GraphoptError: a node that TVM does not take, a missing compiler, or TVM failed.
        """
        source = self._write(model, out, external_data)
        return self._files(self._make(out, out, {}), source, out)

    def compile_tuned(
        self, model: ir.Model, out: Path, tuning: Tuning, external_data: ExternalData = "auto"
    ) -> CompiledFiles:
        """As `compile`, with choices found by measuring (targets/tvm/tuning).

        Raises:
            GraphoptError: as `compile`; this machine cannot run the code; no machine waits at the tracker; or earlier
                decisions that are not for this.
        """
        from graphopt.targets.tvm.tuning.model import compile_tuned

        source = self._write(model, out, external_data)
        made, result = compile_tuned(lambda folder, choices: self._make(out, folder, choices), out, self, tuning)
        files = self._files(made, source, out)
        return dataclasses.replace(
            files,
            notes=(*files.notes, *result.notes),
            details={**files.details, "tuning": result.details},
            decisions=result.decisions,
        )

    def _write(self, model: ir.Model, out: Path, external_data: ExternalData) -> tuple[str, ...]:
        from graphopt.ir.writer import write

        if importlib.util.find_spec("tvm") is None:
            raise MissingDependency("compiling with TVM", "tvm")
        return write(model, out / MODEL, external_data)

    def _make(self, source: Path, folder: Path, choices: Choices) -> Compiled:
        """Compile the model that lies in `source` into `folder`."""
        from graphopt.frontends.onnx import load
        from graphopt.targets.tvm.compiling import compile_model

        # Read anew: in a model that passes have worked on, dims without a name have several.
        model, fallback = load(source / MODEL), self.fallback == "onnxruntime"
        return compile_model(model, folder, self.machine(), fallback, self.threads, choices)

    def _files(self, made: Compiled, source: tuple[str, ...], out: Path) -> CompiledFiles:
        bundled: tuple[str, ...] = ()
        if self.runtime == "bundled":
            from graphopt.targets.tvm.runtime import bundle

            bundled = bundle(self.machine().triple, out)
        missing = self.available()
        libraries = tuple(part.file for part in made.plan.parts if part.runtime == "tvm")
        others = tuple(name for name in made.files if name not in libraries)
        return CompiledFiles(
            main=made.main,
            files=(*libraries, *others, *bundled, PLAN, *source),
            settings=self.settings(),
            not_reproducible=(*libraries, *bundled),
            notes=(*made.notes, *(() if missing is None else (f"compiled, not run: {missing}",))),
            model=MODEL,
            details=made.details,
        )

    def remote(self, remote: Remote) -> Place:
        from graphopt.targets.tvm.remote import RemoteMachine

        return RemoteMachine(remote)

    def load(self, path: Path, settings: Mapping[str, Any] | None = None, *, time_limit: float = RUN_SECONDS) -> Runner:
        """Open what was compiled in a child process; an ONNX file is compiled first, as it stands.

        The limit is not that of compiling, nor of an emulator, which have their own.

        Raises:
            GraphoptError: no such file, code for another CPU, or a model that cannot be compiled.
        """
        from graphopt.targets.tvm.runner import TvmRunner, compile_into

        path = Path(path)
        if not path.is_file():
            raise GraphoptError(f"there is no model file {path}")
        chosen = TvmSettings(threads=self.threads) if settings is None else TvmSettings.from_json(settings)
        compiled = path.name in (LIBRARY, PLAN)
        if self.emulator == "qemu":
            from graphopt.targets.tvm.emulated import EmulatedRunner

            if compiled:
                return EmulatedRunner(path.parent, self, chosen.threads)
            return EmulatedRunner.in_scratch(compile_into(path, self), self, chosen.threads)
        limits: dict[str, Any] = {"time_limit": time_limit, "memory_limit": run_bytes(path.absolute().parent)}
        if compiled:
            return TvmRunner(path.parent, self, chosen, **limits)
        return TvmRunner.in_scratch(compile_into(path, self), self, chosen, **limits)
