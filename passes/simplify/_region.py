"""The part of a model that can be computed in advance, and how much of it is worth its bytes.

Sizes come from inferred shapes, so nothing is evaluated to find out that it would be too big.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from graphopt.ir.constants import const_tensor, nbytes

if TYPE_CHECKING:
    from graphopt import ir

SMALL = 256
"""Results of up to this many bytes weigh no more in a file than the node that makes them."""

_NATIVE = frozenset(
    {"FLOAT", "DOUBLE", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"}
)


def is_foldable_type(value: ir.Value) -> bool:
    """A tensor whose element type numpy has itself."""
    from graphopt import ir

    return isinstance(value.type, ir.TensorType) and value.dtype is not None and value.dtype.name in _NATIVE


def value_bytes(value: ir.Value) -> int:
    """Size of a value of static shape; a constant's own size."""
    tensor = const_tensor(value)
    if tensor is not None:
        return nbytes(tensor)
    assert value.shape is not None and value.dtype is not None
    dims = [dim if isinstance(dim, int) else 0 for dim in value.shape]
    return math.prod(dims) * value.dtype.bitwidth // 8


class Region:
    """Foldable nodes, operands first; `nodes[n]` holds the elements of n's output where they are known already."""

    def __init__(self, nodes: dict[ir.Node, tuple[int, ...] | None], max_bytes: int) -> None:
        self.nodes = nodes
        self.max_bytes = max_bytes
        self.kept: set[ir.Node] = set()
        """Nodes that stay in the model since their results are too large; others may be computed from them."""
        self._refuse_large()

    def remove(self, nodes: Iterable[ir.Node]) -> None:
        """Take nodes out, and with them all that is computed from their results."""
        gone = set(nodes)
        for node in list(self.nodes):
            if node in gone or (
                self.nodes[node] is None and any(v is not None and v.producer() in gone for v in node.inputs)
            ):
                gone.add(node)
                self.nodes.pop(node, None)

    def _refuse_large(self) -> None:
        large = [
            node
            for node in self.nodes
            if node.op_type != "Constant"
            and self.nodes[node] is None
            and any(value_bytes(v) > self.max_bytes for v in (*node.inputs, *node.outputs) if v is not None)
        ]
        if large:
            self.remove(large)

    def is_boundary(self, value: ir.Value) -> bool:
        """Whether something that stays uses the value."""
        return value.is_graph_output() or any(
            use.node not in self.nodes or use.node in self.kept for use in value.uses()
        )

    def shrink(self, allowed: int) -> list[tuple[ir.Node, str]]:
        """Drop results that would grow the model by more than `allowed` bytes in all; return them with the reason.

        Seen from the users, so that for a refused result its operands may be kept where those are small.
        """
        self.kept.clear()
        uses: dict[ir.Value, int] = {}
        refused: list[tuple[ir.Node, str]] = []
        for node in reversed(list(self.nodes)):
            made = sum(value_bytes(out) for out in node.outputs if self.is_boundary(out))
            if node.op_type == "Constant" or not any(self.is_boundary(out) for out in node.outputs):
                continue
            growth = made - self._release(node, uses)
            if growth <= SMALL or growth <= allowed:
                allowed -= growth
                continue
            self.kept.add(node)
            refused.append((node, f"its result would grow the model by {growth} bytes, {max(allowed, 0)} are allowed"))
        return refused

    def _release(self, node: ir.Node, uses: dict[ir.Value, int]) -> int:
        """The bytes of constants that disappear with `node`; `uses` counts what is left once earlier nodes are gone."""
        freed = 0
        stack = [node]
        while stack:
            for value in stack.pop().inputs:
                if value is None:
                    continue
                left = uses.get(value)
                left = uses[value] = (len(value.uses()) + value.is_graph_output() if left is None else left) - 1
                if left:
                    continue
                producer = value.producer()
                if const_tensor(value) is not None:
                    freed += value_bytes(value)
                elif producer in self.nodes and not any(
                    uses.get(out, len(out.uses()) + out.is_graph_output()) for out in producer.outputs
                ):
                    stack.append(producer)
        return freed

    def needed(self) -> list[ir.Node]:
        """The nodes whose results are wanted outside, or by other such nodes, operands first."""
        wanted: set[ir.Node] = set()
        for node in reversed(list(self.nodes)):
            if node in wanted or (node not in self.kept and any(self.is_boundary(out) for out in node.outputs)):
                wanted.add(node)
                if self.nodes[node] is None:
                    wanted.update(p for v in node.inputs if v is not None and (p := v.producer()) in self.nodes)
        return [node for node in self.nodes if node in wanted]
