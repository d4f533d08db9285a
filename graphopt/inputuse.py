"""How a model uses each of its inputs: as indices into a table, as a mask, a length, a target shape, a condition, ...

Found by following an input through the ops that only move or convert its elements. `feeds.py` makes values from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt import ir

# Ops that pass the elements of an input on: op -> the input slots that they take them from.
_CARRIERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Expand"), (0,)),
    **dict.fromkeys(("Flatten", "Slice"), (0,)),
    **dict.fromkeys(("Tile", "Split", "Gather", "GatherElements", "GatherND", "Clip", "Pad", "Trilu", "Dropout"), (0,)),
    **dict.fromkeys(("Concat", "Max", "Min"), (0, 1, 2, 3)),
    "Where": (1, 2),
}
# Ops that take an index into their first input: op -> slot of the index.
_INDEX = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "ScatterElements": 1,
    "ScatterND": 1,
    "GatherBlockQuantized": 1,
}
# Slots that are no data: (op, slot) -> role.
_SLOTS: dict[tuple[str, int], str] = {
    ("Reshape", 1): "reshape",
    ("Expand", 1): "ones",
    ("Tile", 1): "repeats",
    ("ConstantOfShape", 0): "sizes",
    ("RandomNormalLike", 0): "sizes",
    ("TopK", 1): "count",
    ("OneHot", 1): "count",
    ("Range", 1): "count",
    ("Range", 0): "zero",
    ("Range", 2): "one",
    ("Loop", 0): "trips",
    ("Loop", 1): "condition",
    ("If", 0): "condition",
    ("Where", 0): "boolean",
    ("CumSum", 1): "zero",
    ("Slice", 1): "zero",
    ("Slice", 2): "end",
    ("Slice", 3): "axes",
    ("Slice", 4): "one",
    ("Unsqueeze", 1): "axes",
    ("Squeeze", 1): "axes",
    ("Pad", 1): "pads",
    ("Resize", 2): "scales",
    ("SequenceAt", 1): "zero",
    ("SequenceErase", 1): "zero",
    ("SequenceInsert", 2): "zero",
    ("SplitToSequence", 1): "one",
    ("NonMaxSuppression", 2): "count",
    ("LSTM", 4): "length",
    ("GRU", 4): "length",
    ("RNN", 4): "length",
    ("LSTM", 5): "state",
    ("LSTM", 6): "state",
    ("GRU", 5): "state",
    ("RNN", 5): "state",
    ("ReverseSequence", 1): "length",
    ("GroupQueryAttention", 5): "last-key",
    ("GroupQueryAttention", 6): "total-keys",
    ("Div", 1): "divisor",
    ("Mod", 1): "divisor",
    ("Log", 0): "positive",
    ("Sqrt", 0): "positive",
    ("Asin", 0): "unit",
    ("Acos", 0): "unit",
    ("Atanh", 0): "unit",
    ("Acosh", 0): "over-one",
    **{(f"Reduce{kind}", 1): "axes" for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2")},
}
_MAX_CLASSES = 1 << 20
_COMPARE = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "MatMul", "Relu", "ReduceSum", "ReduceMean", "Abs", "Neg", "Sum"})
_CONVOLVES = frozenset(
    {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize", "ConvInteger", "QLinearConv", "STFT"}
)


@dataclass
class InputUse:
    """What is known of one graph input.

    Attributes:
        bounds: exclusive upper bounds of index values, as dims of the tables they look into (int or SymbolicDim).
        roles: names of the special roles that some use gives it (`reshape`, `length`, `condition`, ...).
        nodes: for each role the (node, slot) that gives it.
        compared: scalars that it is compared with for equality.
        arithmetic: whether its elements are computed with as numbers.
        boolean: whether it decides between two values, as a mask does.
        convolved: whether it goes into a convolution, pooling or resizing.
    """

    bounds: list[int | ir.SymbolicDim] = field(default_factory=list)
    roles: set[str] = field(default_factory=set)
    nodes: dict[str, tuple[ir.Node, int]] = field(default_factory=dict)
    compared: list[float] = field(default_factory=list)
    arithmetic: bool = False
    boolean: bool = False
    convolved: bool = False


def input_use(model: ir.Model, value: ir.Value) -> InputUse:
    """Follow `value` (a graph input) to its uses, into subgraph bodies and functions."""
    use = InputUse()
    branch_outputs: dict[int, ir.Value] | None = None
    todo: deque[tuple[ir.Value, int, bool]] = deque([(value, 0, False)])
    seen = {id(value)}
    while todo:
        current, shift, as_bool = todo.popleft()
        if current.is_graph_output() and current.graph is not model.graph:
            branch_outputs = _branch_outputs(model) if branch_outputs is None else branch_outputs
            outer = branch_outputs.get(id(current))
            if outer is not None and id(outer) not in seen:
                seen.add(id(outer))
                todo.append((outer, shift, as_bool))
        for node, slot in current.uses():
            for following, extra, is_bool in _follow(model, node, slot):
                if id(following) not in seen:
                    seen.add(id(following))
                    todo.append((following, shift + extra, as_bool or is_bool))
            _note(use, node, slot, shift, as_bool)
    return use


def _branch_outputs(model: ir.Model) -> dict[int, ir.Value]:
    """Outputs of If branches and Loop/Scan bodies by id, with the outer value that each becomes."""
    out: dict[int, ir.Value] = {}
    for node in model.graph.all_nodes():
        skipped = 1 if node.op_type == "Loop" else 0  # a loop body first gives its condition
        for attribute in node.attributes.values():
            if attribute.type.name == "GRAPH":
                inner = attribute.as_graph().outputs[skipped:]
                out.update({id(value): outer for value, outer in zip(inner, node.outputs, strict=False)})
    return out


def _follow(model: ir.Model, node: ir.Node, slot: int) -> Iterator[tuple[ir.Value, int, bool]]:
    """Values that hold the same elements as input `slot` of `node`: (value, what was added, whether made boolean)."""
    from graphopt import ir

    function = model.functions.get(node.op_identifier())
    if function is not None:
        if slot < len(function.inputs):
            yield function.inputs[slot], 0, False
        return
    if node.op_type in ("Loop", "Scan") and "body" in node.attributes:
        body = node.attributes["body"].as_graph()
        if slot < len(body.inputs) and (node.op_type == "Scan" or slot >= 2):
            yield body.inputs[slot], 0, False
    if slot in _CARRIERS.get(node.op_type, ()):
        to = node.attributes.get("to") if node.op_type == "Cast" else None
        is_bool = to is not None and to.as_int() == ir.DataType.BOOL.value
        for output in node.outputs:
            yield output, 0, is_bool
    elif node.op_type == "Add" and (constant := _scalar(node.inputs[1 - slot])) is not None:
        yield node.outputs[0], int(constant), False  # position ids are often shifted before their table


def _note(use: InputUse, node: ir.Node, slot: int, shift: int, as_bool: bool) -> None:
    use.boolean = use.boolean or as_bool
    if _INDEX.get(node.op_type) == slot and node.inputs[0] is not None:
        bound = _table_size(node)
        if bound is not None:
            use.bounds.append(bound - shift if isinstance(bound, int) else bound)
        use.roles.add("index")
    if node.op_type == "EmbedLayerNormalization" and slot in (0, 1):
        table = node.inputs[2 if slot == 0 else 4]
        if table is not None and table.shape is not None:
            use.bounds.append(table.shape[0])
        use.roles.add("index")
    if node.op_type == "OneHot" and slot == 0 and (depth := _scalar(node.inputs[1])) is not None:
        use.bounds.append(int(depth))
    role = _SLOTS.get((node.op_type, slot))
    if role is not None:
        use.roles.add(role)
        use.nodes.setdefault(role, (node, slot))
    if node.op_type in _COMPARE and len(node.inputs) == 2:
        other = _scalar(node.inputs[1 - slot])
        if other is not None and node.op_type == "Equal":
            use.compared.append(other)
        classes = _classes(node.inputs[1 - slot]) if node.op_type == "Equal" else None
        if classes is not None:  # a one-hot encoding written out: every value has a row of its own
            use.bounds.append(classes - shift)
        use.boolean = use.boolean or other in (0, 1)
    if node.op_type == "Sub" and slot == 1 and _scalar(node.inputs[0]) == 1:
        use.boolean = True  # the (1 - mask) * -10000 of exported transformers
    if node.op_type in ("Not", "And", "Or"):
        use.boolean = True
    use.arithmetic = use.arithmetic or node.op_type in _ARITHMETIC
    use.convolved = use.convolved or node.op_type in _CONVOLVES


def _table_size(node: ir.Node) -> int | ir.SymbolicDim | None:
    table = node.inputs[0]
    if table is None or table.shape is None or len(table.shape) == 0:
        return None
    if node.op_type in ("GatherND", "ScatterND"):
        sizes = [dim for dim in table.shape if isinstance(dim, int)]
        return min(sizes) if len(sizes) == len(table.shape) else 1
    default = 0
    attribute = node.attributes.get("gather_axis" if node.op_type == "GatherBlockQuantized" else "axis")
    axis = attribute.as_int() if attribute is not None else default
    return table.shape[axis] if -len(table.shape) <= axis < len(table.shape) else None


def _scalar(value: ir.Value | None) -> float | None:
    """The number that a one-element constant holds."""
    from graphopt import ir

    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def _classes(value: ir.Value | None) -> int | None:
    """One more than the largest of several integer constants that an input is compared with."""
    from graphopt import ir

    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or not 1 < tensor.size <= _MAX_CLASSES or not tensor.dtype.is_integer():
        return None
    return int(tensor.numpy().max()) + 1
