"""The TVM target: `tvm{device=cpu isa=avx2 threads=4}`, one shared library with code and weights.

    files = Tvm(threads=2).compile(model, folder)      # model.so, plan.json, model.onnx
    runner = Tvm().load(folder / "model.so", files.settings)

With fallback=onnxruntime a model may become several parts; then plan.json is what is loaded.

model.onnx is the optimized model that the library was made of: `verify`, `run` and `bench` make feeds from it. Running
the library needs neither it nor plan.json (docs/tvm.md).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import GraphoptError, MissingDependency
from graphopt.target import CompiledFiles, Runner, Target
from graphopt.targets.tvm import machine as machines
from graphopt.targets.tvm.lowering.table import why_not, why_not_op
from graphopt.targets.tvm.plan import LIBRARY, MODEL, PLAN
from graphopt.targets.tvm.settings import TvmSettings

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes
    from graphopt.ir.writer import ExternalData
    from graphopt.targets.tvm.machine import Machine


@dataclass(frozen=True)
class Tvm(Target):
    """Apache TVM: code for a CPU, ahead of time.

    Attributes:
        device: `cpu` is an x86-64 or ARM machine of this kind; `aarch64` is cross-compiled for 64-bit ARM Linux.
        isa: instruction set; `auto` is what this machine has (with device=aarch64: neon).
        threads: threads that the code is made for and run with; 0 for one per CPU of this machine.
        emulator: `qemu` runs code for aarch64 on this machine, to verify it; TVM's runtime for it is fetched once.
        fallback: `onnxruntime` leaves nodes that TVM does not take to ONNX Runtime; `none` refuses such models.
    """

    name: ClassVar[str] = "tvm"
    summary: ClassVar[str] = "Apache TVM: a shared library of generated code for a CPU"
    packages: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")

    device: Literal["cpu", "aarch64"] = "cpu"
    isa: Literal["auto", "avx2", "avx512", "avx512vnni", "avx512vpopcntdq", "neon", "neondot"] = "auto"
    threads: int = 0
    emulator: Literal["none", "qemu"] = "none"
    fallback: Literal["none", "onnxruntime"] = "none"

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise GraphoptError(f"target 'tvm': threads={self.threads} is negative; 0 means one per core")
        if self.device == "aarch64" and self.isa not in ("auto", "neon", "neondot"):
            raise GraphoptError(f"target 'tvm': device=aarch64 has no isa={self.isa}; there are neon and neondot")
        if self.emulator == "qemu" and self.device != "aarch64":
            raise GraphoptError("target 'tvm': emulator=qemu is for code of another machine: device=aarch64")

    def machine(self) -> Machine:
        """What code is generated for.

        Raises:
            GraphoptError: `auto` on a CPU that has none of the instruction sets.
        """
        if self.device == "aarch64":
            return machines.of("neondot" if self.isa == "neondot" else "neon", self.threads)
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
            return f"this machine is no {machine.triple.partition('-')[0]}; emulator=qemu runs the code here"
        lacking = machines.missing_flags(machine.isa)
        return f"this CPU lacks {', '.join(lacking)}; copy the artifact to one that has it" if lacking else None

    def supports(self, domain: str, op_type: str, version: int, dtype: str | None = None) -> str | None:
        return why_not_op(domain, op_type, dtype)

    def supports_node(self, node: ir.Node, shapes: Shapes, version: int) -> str | None:
        from graphopt.targets.tvm.lowering.view import View

        return why_not(View(node, shapes, version))

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
        from graphopt.frontends.onnx import load
        from graphopt.ir.writer import write
        from graphopt.targets.tvm.compiling import compile_model

        if importlib.util.find_spec("tvm") is None:
            raise MissingDependency("compiling with TVM", "tvm")
        source = write(model, out / MODEL, external_data)
        # Read anew: in a model that passes have worked on, dims without a name have several.
        made = compile_model(load(out / MODEL), out, self.machine(), self.fallback == "onnxruntime", self.threads)
        missing = self.available()
        libraries = tuple(part.file for part in made.plan.parts if part.runtime == "tvm")
        others = tuple(name for name in made.files if name not in libraries)
        return CompiledFiles(
            main=LIBRARY if libraries == (LIBRARY,) else PLAN,
            files=(*libraries, *others, PLAN, *source),
            settings=self.settings(),
            not_reproducible=libraries,
            notes=(*made.notes, *(() if missing is None else (f"compiled, not run: {missing}",))),
            model=MODEL,
            details=made.details,
        )

    def load(self, path: Path, settings: Mapping[str, Any] | None = None) -> Runner:
        """Open what was compiled in a child process; an ONNX file is compiled first, as it stands.

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
        if compiled:
            return TvmRunner(path.parent, self, chosen)
        return TvmRunner.in_scratch(compile_into(path, self), self, chosen)
