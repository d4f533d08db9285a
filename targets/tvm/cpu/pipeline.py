"""The order of the passes: layouts, packed weights and anchors, fusion, then a schedule for every function."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.tirx.transform import ForceNarrowIndexToInt32

from graphopt.targets.tvm.cpu.attention import fuse_attention
from graphopt.targets.tvm.cpu.binarize import binarize
from graphopt.targets.tvm.cpu.canonical import canonicalize
from graphopt.targets.tvm.cpu.choices import Pick
from graphopt.targets.tvm.cpu.dispatch import schedule_module
from graphopt.targets.tvm.cpu.four_bits import use_codes
from graphopt.targets.tvm.cpu.integers import anchor_integers
from graphopt.targets.tvm.cpu.lower import legalizations, takes_transposed
from graphopt.targets.tvm.cpu.raising import RAISES, sums_of_halves
from graphopt.targets.tvm.machine import Machine


def _layouts(call: Any) -> dict[str, list[str]]:
    """Channels last where a rule wants them; TVM's own transposed convolution knows channels first only."""
    if call.op.name == "relax.nn.conv2d":
        return {"relax.nn.conv2d": ["NHWC", "OHWI"]}
    if call.op.name == "relax.nn.conv2d_transpose":
        last = ["NHWC", "IOHW"] if takes_transposed(call) else ["NCHW", "IOHW"]
        return {"relax.nn.conv2d_transpose": last}
    return {}


def _narrow_indices(module: tvm.IRModule) -> tvm.IRModule:
    """32-bit indices where shapes are static and no buffer holds 64-bit integers, which TVM's pass refuses."""
    out = module.clone()
    for name, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and all(map(_may_narrow, function.params)):
            out.update_func(name, ForceNarrowIndexToInt32()(tvm.IRModule({name: function}))[name])
    return out


def _may_narrow(param: Any) -> bool:
    if not tvm.tirx.is_buffer_var(param):
        return False
    return str(param.ty.dtype) != "int64" and all(isinstance(dim, tvm.tirx.IntImm) for dim in param.ty.shape)


def run(module: tvm.IRModule, machine: Machine, pick: Pick) -> tvm.IRModule:
    """The passes of `optimize`."""
    with machine.target():
        module = canonicalize(module, (*RAISES, sums_of_halves))
        module = relax.transform.ConvertLayout({}, _layouts)(module)
        module = binarize(canonicalize(module), machine)
        module = anchor_integers(use_codes(module, machine), machine)
        module = fuse_attention(module, machine)
        module = relax.transform.LegalizeOps(legalizations(machine, pick))(module)
        module = relax.transform.AnnotateTIROpPattern()(module)
        module = relax.transform.FuseOps()(module)
        module = relax.transform.FuseTIR()(module)
        module = relax.transform.RewriteDataflowReshape()(module)
        module = relax.transform.DeadCodeElimination()(module)
        module = _narrow_indices(module)
        return schedule_module(module, machine)
