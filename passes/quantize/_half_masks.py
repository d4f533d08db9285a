"""Two idioms whose large numbers are no data: masks added to attention scores, and angles made from positions.

Both are recognized by what they compute, over a few nodes; not here: what is then done about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.constants import const_tensor
from graphopt.passes.quantize._half_rules import MOVES

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir

_REACH = 64
_ATTENTION = {"MultiHeadAttention": 5, "Attention": 5}
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Cast", "Concat"})


def only_masks_softmax(node: ir.Node, slot: int) -> bool:
    """Whether a large constant at this operand only ever becomes 0 or a large number that is added before a Softmax.

    There any number far below the scores gives the weight 0, so the constant may as well be smaller.
    """
    if node.domain != "":
        return False
    if node.op_type == "Mul":
        if not _is_integral(node.inputs[1 - slot], _REACH):
            return False
    elif not _passes_on(node, slot):
        return False
    pending, seen = list(node.outputs), 0
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return False
        for use in value.uses():
            seen += 1
            if seen > _REACH * 16:
                return False
            if _absorbs(use.node, use.idx):
                continue
            if not _passes_on(use.node, use.idx):
                return False
            pending.extend(use.node.outputs)
    return True


def _absorbs(node: ir.Node, slot: int) -> bool:
    if node.domain == "com.microsoft":
        return _ATTENTION.get(node.op_type) == slot
    return node.domain == "" and node.op_type in ("Softmax", "Shape", "Size") and slot == 0


def _passes_on(node: ir.Node, slot: int) -> bool:
    """Whether the number arrives at the output as it is, or added to another."""
    if node.domain != "":
        return False
    if node.op_type in ("Add", "Sub", "Max"):
        return True
    return (node.op_type == "Where" and slot > 0) or (node.op_type in MOVES and slot == 0)


def _is_integral(value: ir.Value | None, reach: int) -> bool:
    """Whether every element is a whole number, proven from constants and casts of integers."""
    if value is None or reach <= 0:
        return False
    tensor = const_tensor(value)
    if tensor is not None:
        return tensor.size <= 1024 and _whole(tensor.numpy())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in MOVES:
        return _is_integral(node.inputs[0], reach - 1)
    if node.op_type in ("Add", "Sub", "Mul"):
        return all(_is_integral(item, reach // 2) for item in node.inputs)
    source = node.inputs[0] if node.op_type == "Cast" else None
    return (
        source is not None and source.dtype is not None and (source.dtype.is_integer() or source.dtype.name == "BOOL")
    )


def _whole(array: np.ndarray) -> bool:
    import numpy as np

    return bool(np.all(np.isfinite(array) & (array == np.round(array))))


def is_angle(node: ir.Node) -> bool:
    """Whether a product takes positions (integers made float) and leads to Sin or Cos."""
    if node.domain != "" or node.op_type not in ("MatMul", "Einsum"):
        return False
    varying = [value for value in node.inputs if value is not None and not _is_fixed(value, _REACH)]
    return bool(varying) and all(_from_integers(v, _REACH) for v in varying) and _leads_to_angle(node)


def _is_fixed(value: ir.Value, reach: int) -> bool:
    """A constant, or one that was only moved."""
    producer = value.producer()
    if const_tensor(value) is not None:
        return True
    moved = producer is not None and reach > 0 and producer.domain == "" and producer.op_type in MOVES | {"Cast"}
    source = producer.inputs[0] if moved and producer is not None else None
    return source is not None and _is_fixed(source, reach - 1)


def _from_integers(value: ir.Value, reach: int) -> bool:
    producer = value.producer()
    if producer is None or reach <= 0 or producer.domain != "":
        return False
    source = producer.inputs[0] if producer.inputs else None
    if producer.op_type == "Cast" and source is not None and source.dtype is not None and source.dtype.is_integer():
        return True
    if producer.op_type == "Range":
        return True
    if producer.op_type not in _ELEMENTWISE | MOVES or source is None:
        return False
    data = producer.inputs if producer.op_type in _ELEMENTWISE else [source]
    varying = [item for item in data if item is not None and const_tensor(item) is None]
    return bool(varying) and all(_from_integers(item, reach // max(1, len(varying))) for item in varying)


def _leads_to_angle(node: ir.Node) -> bool:
    pending, seen = list(node.outputs), 0
    while pending and seen < _REACH:
        for use in pending.pop().uses():
            seen += 1
            if use.node.op_type in ("Sin", "Cos"):
                return True
            if use.node.domain == "" and use.node.op_type in _ELEMENTWISE | MOVES:
                pending.extend(use.node.outputs)
    return False
