"""From Relax to a shared library: schedules, lowering passes, code generation and linking.

The library holds the code and the weights; loading it needs TVM's runtime only. Not here: how ops are scheduled
(targets/tvm/cpu), the way from ONNX to Relax (targets/tvm/lowering).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.cpu import NOTES
from graphopt.targets.tvm.library import first_line
from graphopt.targets.tvm.toolchain import linker

if TYPE_CHECKING:
    from collections.abc import Callable

    import tvm

    from graphopt.targets.tvm.machine import Machine

    Schedule = Callable[[tvm.IRModule, Machine], tuple[tvm.IRModule, str | None]]


@dataclass(frozen=True)
class Built:
    """What is told of a library: why its code is not scheduled (None when it is), and what its user should know."""

    not_scheduled: str | None
    notes: tuple[str, ...]


def build(module: tvm.IRModule, machine: Machine, path: Path, schedule: Schedule) -> Built:
    """Compile a Relax module for a machine and write it as a shared library.

    Args:
        module: Relax functions, nothing scheduled.
        machine: what code is generated for.
        path: the library.
        schedule: makes TIR functions of the ops: `stock`, or `scheduled`.

    Raises:
        GraphoptError: the compiler that links for this machine is missing.
    """
    import tvm
    from tvm import relax

    link = linker(machine.triple)
    target = machine.target()
    with target, tvm.transform.PassContext(opt_level=3):
        module = relax.transform.ConvertToDataflow(min_size=1)(module)
        module = relax.transform.DeadCodeElimination()(module)
        module, reason = schedule(module, machine)
        notes = (module.attrs or {}).get(NOTES, ())
        built = relax.build(module, target, relax_pipeline=_lowering())
    built.export_library(str(path), fcompile=link)
    return Built(reason, tuple(str(note) for note in notes))


def scheduled(module: tvm.IRModule, machine: Machine) -> tuple[tvm.IRModule, str | None]:
    """Scheduled by targets/tvm/cpu; where that does not take the module, `stock`, with the reason."""
    from graphopt.targets.tvm.cpu import optimize

    try:
        return optimize(module, machine), None
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
