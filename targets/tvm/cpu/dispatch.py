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
from graphopt.targets.tvm.cpu.fused import ANCHOR, Fused, NotTaken, take_apart
from graphopt.targets.tvm.cpu.rules import conv2d, depthwise, generic, matmul
from graphopt.targets.tvm.cpu.vector_math import use_polynomials
from graphopt.targets.tvm.machine import Machine

_RULES: Mapping[str, Callable[[Fused, Machine], loops.Stmt]] = {
    conv2d.NAME: conv2d.schedule,
    depthwise.NAME: depthwise.schedule,
    matmul.NAME: matmul.schedule,
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
        fused = take_apart(function)
        rule = _RULES[fused.attributes[ANCHOR]]
        return use_polynomials(loops.function(function, rule(fused, machine)))
    except NotTaken:
        return use_polynomials(generic.schedule(function, machine))
