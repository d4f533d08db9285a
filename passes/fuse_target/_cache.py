"""Keys and values behind a cache: Concat(past, new) by position, which GroupQueryAttention makes by itself.

Lives here: finding the Concat behind grouped heads, and giving its graph output to the fused node. The node is made in
_emit_attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.manager.worklist import Uninteresting
from graphopt.passes.fuse_target._layout import View, pick, walk

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.match import Match

# Slots of GroupQueryAttention: new keys (values), past ones, and the output that holds both.
_SLOTS = ((1, 3, 1), (2, 4, 2))


@dataclass(frozen=True)
class Joined:
    """Keys or values of all positions.

    Attributes:
        view: the Concat's output [batch, heads, positions, channels], each head repeated for a group of query heads.
        past: what came before, [batch, heads, past positions, channels].
        new: what is added, [batch, positions, heads * channels] or positions first.
    """

    view: View
    past: ir.Value
    new: View


def find_joined(m: Match, views: Sequence[View], channel: str) -> Joined | None:
    """Keys or values whose Concat leads here alone: what else reads it would have it made twice."""
    for view in views:
        node = view.value.producer()
        if node is None or not _joins(m, node) or len(view.value.uses()) != 1:
            continue
        past, added = node.inputs
        if past is None or added is None or not view.lies("B", "H", "T", channel):
            continue
        new = pick(tuple(walk(m, added, ("B", "H", "S", channel))), "S", f"H{channel}", unscaled=True)
        if new is not None and not new.repeated:
            return Joined(view, past, new)
    return None


def present(m: Match, node: ir.Node) -> ir.Value:
    """The output of a GroupQueryAttention that holds what this Concat makes.

    Raises:
        Uninteresting: there is none.
    """
    if not _joins(m, node) or node.outputs[0].uses():
        raise Uninteresting("no cache of an attention")
    past, added = node.inputs
    assert past is not None and added is not None
    users = [(user, slot) for user, slot in past.uses() if _is_grouped(user) and user.graph is node.graph]
    if not users:  # nor is it known that there are four dims
        raise Uninteresting("no cache of an attention")
    sources = {id(v.value) for v in walk(m, added, ("B", "H", "S", "D")) if _is_by_position(v)}
    for user, slot in users:
        for new, old, output in _SLOTS:
            if slot == old and id(user.inputs[new]) in sources:
                return user.outputs[output]
    raise Uninteresting("no cache of an attention")


def _joins(m: Match, node: ir.Node) -> bool:
    """Whether a node appends to the positions, if its output is [batch, heads, positions, channels]."""
    return (node.domain, node.op_type) == ("", "Concat") and len(node.inputs) == 2 and m.attr(node, "axis") in (2, -2)


def _is_grouped(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("com.microsoft", "GroupQueryAttention")


def _is_by_position(view: View) -> bool:
    return view.lies("B", "S", "HD") and view.scale == 1.0 and not view.repeated
