"""The last resort: loops bound as they are, none fused.

dlight's fallback fuses them all, which TVM's simplifier does not see through for some dynamic sizes.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import get_root_block

from graphopt.targets.tvm.machine import Machine

_THREADS = 256


def schedule(function: Any, machine: Machine) -> Any | None:
    """Each block's first loop over blocks of threads, its last over threads; None where a block is no loop nest."""
    sch = s_tir.Schedule(function)
    sums = []
    for block in sch.get_child_blocks(get_root_block(sch)):
        kinds = [item.iter_type for item in sch.get(block).iter_vars]
        loops = sch.get_loops(block)
        if len(kinds) != len(loops) or set(kinds) - {tirx.IterVar.DataPar, tirx.IterVar.CommReduce}:
            return None
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
        added = [loop for loop in loops if loop not in spatial]
        first, *middle, last = [*[sch.add_unit_loop(block) for _ in range(2 - len(spatial))], *spatial]
        column, thread = sch.split(last, [None, _THREADS])
        sch.reorder(first, column, thread, *middle, *added)
        sch.bind(first, "blockIdx.x")
        sch.bind(column, "blockIdx.y")
        sch.bind(thread, "threadIdx.x")
        if added:
            sums.append((block, added[0]))
    for block, loop in sums:
        sch.decompose_reduction(block, loop)
    return sch.mod["main"]
