"""Which nodes of a graph run in int8 and which values are rounded to codes: a quantization without numbers.

    flow = find_flow(graph, chosen)      # chosen: the compute nodes that are to run in int8
    flow.nodes       # in order: compute nodes, and ops between them that keep the codes
    flow.rounded     # their outputs that become codes: Quantize - Dequantize behind the node
    flow.fed         # float values that become codes only for int8 nodes that read them

A node without much work is taken in when all its data come from int8 nodes and an int8 node reads what it makes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphopt.ir.constants import const_tensor
from graphopt.passes.quantize._kinds import clip_high, data_slots, kind_of

if TYPE_CHECKING:
    from graphopt import ir


@dataclass
class Flow:
    """See the module. `same` maps the output of a node that only moves data to the value it came from."""

    nodes: dict[ir.Node, None] = field(default_factory=dict)
    rounded: dict[ir.Value, None] = field(default_factory=dict)
    fed: dict[ir.Value, None] = field(default_factory=dict)
    same: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def source(self, value: ir.Value) -> ir.Value:
        """The value whose range decides over the codes of `value`."""
        while value in self.same:
            value = self.same[value]
        return value

    def measured(self) -> list[ir.Value]:
        """The values whose ranges are needed, in order."""
        return [value for value in (*self.fed, *self.rounded) if value not in self.same]


def find_flow(graph: ir.Graph, chosen: Collection[ir.Node], left: Collection[ir.Node] = ()) -> Flow:
    """The int8 part of a graph around the chosen compute nodes; `left` are nodes that stay float whatever is around."""
    return _Finder(graph, chosen, left).go()


class _Finder:
    def __init__(self, graph: ir.Graph, chosen: Collection[ir.Node], left: Collection[ir.Node]) -> None:
        self.order = list(graph)
        self.chosen, self.left = chosen, left
        self.able: set[ir.Value] = set()  # values that could be codes
        self.wanted: set[ir.Value] = set()  # values that an int8 node reads

    def go(self) -> Flow:
        for node in self.order:
            if self._is_able(node):
                self.able.update(node.outputs)
        for node in reversed(self.order):
            if self._is_taken(node):
                self.wanted.update(value for slot in data_slots(node) if (value := node.inputs[slot]) is not None)
        flow = Flow()
        for node in self.order:
            if self._is_taken(node):
                self._take(flow, node)
        return flow

    def _is_able(self, node: ir.Node) -> bool:
        if node in self.chosen:
            return True
        kind = kind_of(node)
        if node in self.left or kind in ("compute", "float") or not _is_float32(node.outputs[0]):
            return False
        data = [node.inputs[slot] for slot in data_slots(node)]
        if any(value is None for value in data):
            return False
        if kind == "clips":
            return data[0] in self.able and _hidden(data[0]) and _ends_in_kernel(data[0])
        constants = [value for value in data if const_tensor(value) is not None]
        if constants and (node.op_type not in ("Add", "Mul") or not all(map(_is_float32, constants))):
            return False
        rest = [value for value in data if const_tensor(value) is None]
        return bool(rest) and all(value in self.able for value in rest)

    def _is_taken(self, node: ir.Node) -> bool:
        if node in self.chosen:
            return True
        if node.outputs[0] not in self.able:
            return False
        if any(value in self.wanted for value in node.outputs):
            return True
        # A Conv has no kernel with float output, so what clips its output is part of it.
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        return kind_of(node) == "clips" and producer is not None and producer.op_type == "Conv"

    def _take(self, flow: Flow, node: ir.Node) -> None:
        flow.nodes[node] = None
        for slot in data_slots(node):
            value = node.inputs[slot]
            behind_kernel = kind_of(node) == "clips"  # the codes begin behind the clip, not before it
            if value is not None and const_tensor(value) is None and value not in flow.rounded and not behind_kernel:
                flow.fed.setdefault(value)
        stays_float = node.op_type in ("MatMul", "Gemm") and node.outputs[0] not in self.wanted
        if stays_float or self._is_clipped(node):
            return
        for out in node.outputs:
            flow.rounded[out] = None
            if kind_of(node) == "moves":
                source = node.inputs[0]
                assert source is not None
                flow.same[out] = source

    def _is_clipped(self, node: ir.Node) -> bool:
        """The only reader is a clip that is taken: the codes begin behind it."""
        users = list(node.outputs[0].uses())
        return (
            len(users) == 1
            and not node.outputs[0].is_graph_output()
            and kind_of(users[0].node) == "clips"
            and self._is_taken(users[0].node)
        )


def _hidden(value: ir.Value | None) -> bool:
    """Read once and no output."""
    return value is not None and len(list(value.uses())) == 1 and not value.is_graph_output()


def _ends_in_kernel(value: ir.Value | None) -> bool:
    """Made by an op whose int8 kernel saturates its result."""
    producer = value.producer() if value is not None else None
    return producer is not None and kind_of(producer) in ("compute", "own")


def _is_float32(value: ir.Value | None) -> bool:
    from graphopt import ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def clipped_range(value: ir.Value, low: float, high: float) -> tuple[float, float]:
    """A measured range, cut where the op that made the value cuts."""
    producer = value.producer()
    if producer is None or kind_of(producer) != "clips":
        return low, high
    top = clip_high(producer)
    assert top is not None
    return max(low, 0.0), min(high, top)
