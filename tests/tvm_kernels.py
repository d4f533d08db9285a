"""Schedules, builds and runs tensor expressions for the tests of targets/tvm/cpu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.targets.tvm.machine import Isa, missing_flags, of

_ALL: tuple[Isa, ...] = ("avx512", "avx2", "neon")
# Instruction sets whose code runs here.
ISAS: list[Isa] = [isa for isa in _ALL if not missing_flags(isa)]


def compiled(places: Sequence[Any], out: Any, arrays: Sequence[np.ndarray], isa: Isa, threads: int = 2) -> np.ndarray:
    """Schedule, build and run a TE expression."""
    import tvm
    from tvm import te

    from graphopt.targets.tvm.cpu.dispatch import schedule_function

    machine = of(isa, threads)
    function = schedule_function(te.create_prim_func([*places, out]), machine)
    result = tvm.runtime.tensor(np.full([int(dim) for dim in out.shape], np.nan, "float32"))
    tvm.tirx.build(function, target=machine.target())["main"](*map(tvm.runtime.tensor, arrays), result)
    return result.numpy()
