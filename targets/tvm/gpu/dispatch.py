"""Which rule schedules which function: the first that takes it, and the fallback takes all.

Not here: the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir.dlight.gpu.fallback import _has_internal_thread_env as has_threads

from graphopt.errors import GraphoptError
from graphopt.targets.tvm.gpu import RULE, contraction, loops, spatial
from graphopt.targets.tvm.machine import Machine

_Rule = Callable[[Any, Machine], Any | None]
_SHARING = tvm.transform.Sequential([s_tir.transform.CanonicalizeLoop(), s_tir.transform.LowerCrossThreadReduction()])


def _dlight(rule: Any) -> _Rule:
    """One of TVM's own rules."""

    def apply(function: Any, machine: Machine) -> Any | None:
        scheduled = rule.apply(function, machine.target(), False)
        if scheduled is None:
            return None
        # Raises where threads are to share what they cannot, such as the two results of an argmax.
        _SHARING(scheduled.mod)
        return scheduled.mod["main"]

    return apply


def _tensor_cores(function: Any, machine: Machine) -> Any | None:
    """Imported where there are halves: its intrinsics are parsed."""
    if not any(str(param.ty.dtype) == "float16" for param in function.params if tirx.is_buffer_var(param)):
        return None
    from graphopt.targets.tvm.gpu import tensor_cores

    return tensor_cores.schedule(function, machine)


_RULES: dict[str, _Rule] = {
    "tensor cores": _tensor_cores,
    "contraction": contraction.schedule,
    "spatial": spatial.schedule,
    "dynamic matmul": _dlight(dlight.gpu.Matmul()),
    "gemv": _dlight(dlight.gpu.GEMV()),
    "reduction": _dlight(dlight.gpu.Reduction()),
    "general-reduction": _dlight(dlight.gpu.GeneralReduction()),
    "spatial, any sum": spatial.schedule_any,
    "fallback": _dlight(dlight.gpu.Fallback()),
    "loops": loops.schedule,
}
"""In the order in which they are asked."""


def schedule_module(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """The module with every TIR function bound to threads.

    Raises:
        GraphoptError: no rule takes a function.
    """
    out = module.clone()
    with machine.target():
        for name, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc):
                out.update_func(name, schedule_function(function, machine, name.name_hint))
    return out


def schedule_function(function: Any, machine: Machine, name: str = "main") -> Any:
    """The function bound to threads, with the attribute RULE; one that brings its own threads stays as it is.

    Raises:
        GraphoptError: no rule takes it.
    """
    if function.attrs.get("tirx.is_scheduled", 0) or has_threads(function.body):
        return function.with_attr(RULE, "its own")
    for rule, apply in _RULES.items():
        try:
            scheduled = apply(function, machine)
        except Exception:  # a rule finds out by trying, and TVM and dlight's asserts raise classes of their own
            continue
        if scheduled is not None:
            kept = {key: value for key, value in function.attrs.items() if key not in scheduled.attrs}
            for key, value in kept.items():
                scheduled = scheduled.with_attr(key, value)
            return scheduled.with_attr("tirx.is_scheduled", 1).with_attr(RULE, rule)
    raise GraphoptError(f"no schedule for GPUs takes the function {name}")
