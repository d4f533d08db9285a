"""From Relax to a shared library: schedules, lowering passes, code generation and linking.

The library holds the code and the weights; loading it needs TVM's runtime only. Not here: how ops are scheduled
(targets/tvm/cpu), the way from ONNX to Relax (targets/tvm/lowering).
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.cpu import NOTES
from graphopt.targets.tvm.cpu.choices import Pick, analytic
from graphopt.targets.tvm.gpu import nvcc
from graphopt.targets.tvm.library import first_line
from graphopt.targets.tvm.plan import SOURCE
from graphopt.targets.tvm.toolchain import linker

if TYPE_CHECKING:
    from collections.abc import Callable

    import tvm

    from graphopt.targets.tvm.machine import Machine

    Schedule = Callable[[tvm.IRModule, Machine], tuple[tvm.IRModule, str | None]]
    DeviceCompiler = Callable[[str, str], nvcc.Binary]

ISA_SYMBOL = "graphopt_isa_"
"""Begins the name of a library's symbol that ends in the instruction set of its code; run.cc looks for it."""


@dataclass(frozen=True)
class Built:
    """What is told of a library.

    Attributes:
        not_scheduled: why its code is not scheduled; None when it is.
        rules: with a GPU, which rule scheduled how many functions.
        kernels: with a GPU, registers, spilled bytes and shared bytes of each kernel.
        weights: bytes of constants in the library.
        notes: what its user should know besides.
    """

    not_scheduled: str | None
    rules: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, dict[str, int]] = field(default_factory=dict)
    weights: int = 0
    notes: tuple[str, ...] = ()


def build(
    module: tvm.IRModule,
    machine: Machine,
    path: Path,
    schedule: Schedule,
    compile_source: DeviceCompiler = nvcc.compile_source,
) -> Built:
    """Compile a Relax module for a machine and write it as a shared library.

    Args:
        module: Relax functions, nothing scheduled.
        machine: what code is generated for.
        path: the library; with a GPU the CUDA source of its kernels is written beside it.
        schedule: makes TIR functions of the ops: `stock`, or `scheduled`.
        compile_source: makes device code of CUDA source for an architecture, with a GPU.

    Raises:
        GraphoptError: the compiler that links for this machine, or the one for its GPU, is missing or fails.
    """
    import tvm
    from tvm import relax

    link, stamp = linker(machine.triple), [f"-Wl,--defsym={ISA_SYMBOL}{machine.isa}=1"]
    target = machine.target()
    with target, tvm.transform.PassContext(opt_level=3):
        module = relax.transform.ConvertToDataflow(min_size=1)(module)
        module = relax.transform.DeadCodeElimination()(module)
        module, reason = schedule(module, machine)
        rules, weights = _rules(module), _constant_bytes(module)
        notes = tuple(str(note) for note in (module.attrs or {}).get(NOTES, ()))
        with cuda_as_source():
            built = relax.build(module, target, relax_pipeline=_lowering())
    if not machine.arch:
        built.export_library(str(path), fcompile=link, options=stamp)
        return Built(reason, weights=weights, notes=notes)
    from graphopt.targets.tvm.gpu.embedding import DeviceCode

    code = DeviceCode(machine, path.with_suffix(SOURCE), compile_source)
    built.export_library(str(path), fcompile=link, fpack_imports=code.pack, options=stamp)
    return Built(reason, rules, code.kernels(), weights, notes)


def _constant_bytes(module: tvm.IRModule) -> int:
    """Bytes of the distinct constants of a module."""
    import numpy as np
    import tvm
    from tvm import relax

    found: dict[int, int] = {}

    def visit(expr: Any) -> None:
        if isinstance(expr, tvm.ir.GenericConst):
            array = np.from_dlpack(expr.value)
            found[array.ctypes.data] = array.nbytes

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return sum(found.values())


def _rules(module: tvm.IRModule) -> dict[str, int]:
    from graphopt.targets.tvm.gpu import RULE

    attributes = (function.attrs for _, function in module.functions_items() if function.attrs is not None)
    return dict(Counter(str(found[RULE]) for found in attributes if RULE in found))


@contextlib.contextmanager
def cuda_as_source() -> Iterator[None]:
    """TVM keeps the CUDA source of kernels, as it does without a driver; graphopt compiles it (gpu/nvcc.py)."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.__setitem__(name, before)


def scheduled(module: tvm.IRModule, machine: Machine, pick: Pick = analytic) -> tuple[tvm.IRModule, str | None]:
    """Scheduled by targets/tvm/cpu, or gpu; where the former does not take the module, `stock`, with the reason."""
    if machine.arch:
        from graphopt.targets.tvm import gpu

        return gpu.optimize(module, machine), None
    from graphopt.targets.tvm.cpu import optimize

    try:
        return optimize(module, machine, pick), None
    except Exception as error:  # TVM's passes raise classes of their own; slow code is better than none, if told
        return stock(module, machine)[0], first_line(error)


def stock(module: tvm.IRModule, machine: Machine) -> tuple[tvm.IRModule, str | None]:
    """Every op as a TIR function, fused as TVM does by itself and not scheduled."""
    from tvm import relax

    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    for item in passes:
        module = item(module)
    return module, "as TVM does by itself"


def _lowering() -> Any:
    """What follows the schedules: memory planning and the virtual machine's code."""
    import tvm
    from tvm import relax

    return tvm.transform.Sequential(
        [
            relax.backend.DispatchSortScan(),
            relax.transform.LegalizeOps(),
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
