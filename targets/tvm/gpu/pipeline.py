"""The order of the passes: channels last, operators to TIR, fusion, then a schedule for every function."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from graphopt.targets.tvm.cpu.canonical import canonicalize
from graphopt.targets.tvm.gpu.dispatch import schedule_module
from graphopt.targets.tvm.gpu.halves import narrow
from graphopt.targets.tvm.gpu.scan import cumsum
from graphopt.targets.tvm.machine import Machine

_SORTS = ["relax.sort", "relax.argsort", "relax.topk"]
"""Left to DispatchSortScan, which has kernels for GPUs."""


def _layouts(call: Any) -> dict[str, list[str]]:
    """Channels last, so that threads next to each other read neighbours in activations and in weights."""
    return {"relax.nn.conv2d": ["NHWC", "HWIO"]} if call.op.name == "relax.nn.conv2d" else {}


def run(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """The passes of `optimize`."""
    with machine.target():
        return schedule_module(fused(module, machine), machine)


def fused(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """The passes up to the schedules: TIR functions, each a kernel or a few."""
    with machine.target():
        module = narrow(canonicalize(module))
        module = relax.transform.ConvertLayout({}, _layouts)(module)
        module = canonicalize(module)
        module = relax.transform.LegalizeOps({"relax.cumsum": cumsum}, skip_ops=_SORTS)(module)
        module = relax.backend.DispatchSortScan()(module)
        module = relax.transform.LegalizeOps()(module)
        module = relax.transform.AnnotateTIROpPattern()(module)
        module = relax.transform.FuseOps()(module)
        module = relax.transform.FuseTIR()(module)
        module = relax.transform.RewriteDataflowReshape()(module)
        return relax.transform.DeadCodeElimination()(module)
