"""Inlining of elementwise blocks, never into an anchor: rules read an anchor's own inputs.

Not here: which blocks are worth inlining; callers say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import s_tir, tirx

# The annotation under which an anchor says which rule is meant for it.
ANCHOR = "graphopt.anchor"


class NotTaken(Exception):
    """A rule does not apply to a function; the message says why."""


def inline(function: Any, wanted: Callable[[Any, Sequence[Any]], bool]) -> tuple[Any, list[Any]]:
    """Inline the elementwise blocks for which `wanted(block, users)` holds.

    Returns:
        The function, and the blocks that are left.

    Raises:
        NotTaken: the function is not made of blocks.
    """
    body = function.body
    if not isinstance(body, s_tir.SBlockRealize) or body.block.name_hint != "root":
        raise NotTaken("it is not made of blocks")
    schedule = s_tir.Schedule(function)
    for block in _blocks(schedule):
        node = schedule.get(block)
        if ANCHOR in node.annotations or node.init is not None or not isinstance(node.body, tirx.BufferStore):
            continue
        if any(node.writes[0].source.same_as(param) for param in function.params):
            continue
        users = [schedule.get(user) for user in schedule.get_consumers(block)]
        if not any(ANCHOR in user.annotations for user in users) and wanted(node, users):
            schedule.compute_inline(block)
    return schedule.mod["main"], [schedule.get(block) for block in _blocks(schedule)]


def _blocks(schedule: s_tir.Schedule) -> list[Any]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))
