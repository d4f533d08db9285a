"""Looking upwards from a node: the op in front of it, when a rule may merge the two.

Lives here because each `merge-*` rule asks the same first question. What is merged how is in the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.manager.worklist import Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.match import Match


def above(node: ir.Node, value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, when it is one of the ops and stands in the graph of `node`."""
    producer = value.producer() if value is not None else None
    if (
        producer is None
        or producer.op_type not in op_types
        or producer.domain != ""
        or producer.graph is not node.graph
    ):
        return None
    return producer


def require_above(m: Match, *op_types: str, position: int = 0) -> ir.Node:
    """The only-used node above an input of the root.

    Raises:
        Uninteresting: another op is there.
        NoMatch: it is there, but has other users, so that merging would not save it.
    """
    value = m.root.inputs[position]
    producer = above(m.root, value, *op_types)
    if producer is None:
        raise Uninteresting("another op is in front of it")
    assert value is not None
    m.sole_use(value)
    m.interior = [producer]
    return producer
