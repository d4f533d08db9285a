"""Which rule schedules which function.

Anchored functions go to the rule that their anchor names; where it does not take them, and everything else, goes to the
generic rule. Not here: the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import tirx

from graphopt.targets.tvm.cpu import loops
from graphopt.targets.tvm.cpu.fused import Fused, take_apart
from graphopt.targets.tvm.cpu.inlining import ANCHOR, NotTaken
from graphopt.targets.tvm.cpu.rules import (
    attention,
    binary,
    codes,
    conv2d,
    depthwise,
    four_bits,
    generic,
    matmul,
    winograd,
)
from graphopt.targets.tvm.cpu.vector_math import use_polynomials
from graphopt.targets.tvm.machine import Machine

# Multiply-adds below which starting other threads costs more than it brings.
_WORTH_THREADS = 1 << 20

_RULES: Mapping[str, Callable[[Fused, Machine], loops.Stmt]] = {
    attention.NAME: attention.schedule,
    binary.CONV: binary.schedule_conv,
    binary.PRODUCT: binary.schedule_product,
    codes.CONV: codes.schedule_conv,
    codes.MATMUL: codes.schedule_matmul,
    conv2d.NAME: conv2d.schedule,
    depthwise.CODES: depthwise.schedule,
    depthwise.NAME: depthwise.schedule,
    four_bits.NAME: four_bits.schedule,
    matmul.NAME: matmul.schedule,
    winograd.NAME: winograd.schedule,
}


def schedule_module(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """The module with every TIR function scheduled."""
    out = module.clone()
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            out.update_func(name, schedule_function(function, machine))
    return out


def schedule_function(function: Any, machine: Machine) -> Any:
    """The function with a loop nest for the machine."""
    try:
        scheduled = loops.function(function, _anchored(take_apart(function), machine))
    except NotTaken:
        scheduled = generic.schedule(function, machine, _anchored)
    return use_polynomials(scheduled)


def _anchored(fused: Fused, machine: Machine) -> loops.Stmt:
    nest = _RULES[str(fused.attributes[ANCHOR])](fused, machine)
    return nest if fused.steps is None or fused.steps >= _WORTH_THREADS else loops.serial(nest)
