"""One thread for each output, or for four neighbours: elementwise functions, moves of data, windows, short sums.

    for block: for thread:
        register = 0; for position in the window: register += ...
        out = epilogue(register)

Not here: sums that a whole block of threads shares (dlight's reduction rules).
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import s_tir, sym, tirx
from tvm.s_tir.dlight.analysis import get_root_block
from tvm.s_tir.dlight.gpu import matmul as dlight
from tvm_ffi import structural_map

from graphopt.targets.tvm.machine import Machine

_THREADS = 256
_VECTOR = 4
_MANY = 1 << 16
"""Outputs from which on threads enough are left when each computes a vector of them."""
_SHORT, _LONG = 128, 4096
"""Terms up to which one thread adds them: where there are some outputs, and where there are many."""
_SOME = 1024
_UNROLLED = 32


def schedule(function: Any, machine: Machine) -> Any | None:
    """The function with a thread for each output; None when it has long sums, several of them, or dynamic sizes."""
    return _schedule(function, any_sum=False)


def schedule_any(function: Any, machine: Machine) -> Any | None:
    """The same with sums of any length: what no rule takes that shares a sum among threads."""
    return _schedule(function, any_sum=True)


def _schedule(function: Any, any_sum: bool) -> Any | None:
    sch = s_tir.Schedule(function)
    blocks = sch.get_child_blocks(get_root_block(sch))
    sums = [block for block in blocks if _has(sch, block, tirx.IterVar.CommReduce)]
    if len(sums) > 1 or not all(_is_plain(sch, block) for block in blocks):
        return None
    if sums:
        terms, outputs = _extents(sch, sums[0])
        worth = (terms <= _SHORT and outputs >= _SOME) or (terms <= _LONG and outputs >= _MANY // 2)
        if not (worth or any_sum):
            return None
        dlight.auto_inline_producers(sch, sums[0])
        last = sch.cache_write(sums[0], 0, "local")
        dlight.auto_inline_consumer_chain(sch, last)
    else:
        last = blocks[-1]
        dlight.auto_inline_producers(sch, last)
    if len(sch.get_child_blocks(get_root_block(sch))) != len(sums) + 1:
        return None  # several results, or a step that nothing can be joined with
    vector = _VECTOR if all(_is_vector(sch, block) for block in (*sums, last)) else 1
    main = sums[0] if sums else last
    spatial, added = _split_kinds(sch, main)
    sch.reorder(*spatial, *added)
    *outer, inner = spatial or [sch.add_unit_loop(main)]
    # Cut before it is fused: indices of other axes then do not depend on the lane.
    inner, lanes = sch.split(inner, [None, vector])
    everything = sch.fuse(*outer, inner)
    # No more threads than outputs: TVM drops the condition on a store whose place does not depend on the thread.
    block, thread = sch.split(everything, [None, min(_THREADS, int(sch.get(everything).extent))])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if vector > 1:
        sch.vectorize(lanes)
    if sums:
        sch.reorder(*added, lanes)
        _sum(sch, main, last, thread, added, vector)
    return sch.mod["main"]


def _sum(sch: Any, main: Any, last: Any, thread: Any, added: list[Any], vector: int) -> None:
    """Add in registers, then the epilogue."""
    sch.reverse_compute_at(last, thread, preserve_unit_loops=True)
    if vector > 1:
        sch.vectorize(sch.get_loops(last)[-1])
    if math.prod(int(sch.get(loop).extent) for loop in added) <= _UNROLLED:
        for loop in added:
            sch.unroll(loop)
        sch.annotate(thread, "pragma_auto_unroll_max_step", 0)
        sch.annotate(thread, "pragma_unroll_explicit", 0)
    sch.decompose_reduction(main, added[0])


def _split_kinds(sch: Any, block: Any) -> tuple[list[Any], list[Any]]:
    """Loops of a block over its outputs, and those over the terms of its sums."""
    loops: tuple[list[Any], list[Any]] = ([], [])
    for loop, item in zip(sch.get_loops(block), sch.get(block).iter_vars, strict=True):
        loops[item.iter_type == tirx.IterVar.CommReduce].append(loop)
    return loops


def _has(sch: Any, block: Any, kind: int) -> bool:
    return any(item.iter_type == kind for item in sch.get(block).iter_vars)


def _is_plain(sch: Any, block: Any) -> bool:
    """Whether a block stores one element of known place in each round of loops of known extents."""
    stmt = sch.get(block)
    known = all(item.iter_type in (tirx.IterVar.DataPar, tirx.IterVar.CommReduce) for item in stmt.iter_vars)
    static = all(isinstance(item.dom.extent, tirx.IntImm) for item in stmt.iter_vars)
    return known and static and isinstance(stmt.body, tirx.BufferStore) and len(stmt.writes) == 1


def _extents(sch: Any, block: Any) -> tuple[int, int]:
    """Terms of a sum, and how many there are."""
    sizes = {tirx.IterVar.CommReduce: 1, tirx.IterVar.DataPar: 1}
    for item in sch.get(block).iter_vars:
        sizes[item.iter_type] *= int(item.dom.extent)
    return sizes[tirx.IterVar.CommReduce], sizes[tirx.IterVar.DataPar]


def _is_vector(sch: Any, block: Any) -> bool:
    """Whether threads may take four neighbours each: enough outputs, no bools, operands read as neighbours or once."""
    stmt = sch.get(block)
    spatial = [item for item in stmt.iter_vars if item.iter_type == tirx.IterVar.DataPar]
    if not spatial or int(spatial[-1].dom.extent) % _VECTOR or _extents(sch, block)[1] < _MANY:
        return False
    if any(holds_bools(region.source) for region in (*stmt.reads, *stmt.writes)):
        return False
    return all(_follows(indices, spatial[-1].var) for indices in _accesses(stmt.body))


def holds_bools(buffer: Any) -> bool:
    """TVM's CUDA code moves vectors of bools as if each had two bytes."""
    return str(buffer.ty.dtype) == "bool"


def _accesses(body: Any) -> list[Any]:
    found = [list(body.indices)]

    def keep(node: Any) -> Any:
        found.append(list(node.indices))
        return node

    structural_map(body, [(tvm.ir.TensorLoad, keep)])
    return found


def _follows(indices: list[Any], var: Any) -> bool:
    """Whether the last index is the variable plus what does not contain it, as no other does, or none contains it."""
    uses = [_contains(index, var) for index in indices]
    if not any(uses):
        return True
    return not any(uses[:-1]) and not _contains(sym.Analyzer().simplify(indices[-1] - var), var)


def _contains(index: Any, var: Any) -> bool:
    return any(item.same_as(var) for item in tirx.analysis.undefined_vars(index))
