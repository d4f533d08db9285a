"""How ranges pass through operators. Every rule holds for any input inside the ranges of its sources.

Bounds of float results are rounded to the element type: rounding is monotone, so a rounded bound bounds the rounded
results. A rule returns None for 'whatever the type can hold'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from graphopt.analysis.ranges import MAX_ELEMENTS, Interval
from graphopt.analysis.shape_attrs import attr_int, attr_tensor, optional_input
from graphopt.ir.constants import const_tensor
from graphopt.ir.sites import subgraphs

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.ranges import Ranges

Rule: TypeAlias = "Callable[[Ranges, ir.Node], Interval | None]"


def sources(value: ir.Value) -> list[ir.Value]:
    """The values whose ranges decide the range of this one."""
    node = value.producer()
    if node is None or const_tensor(value) is not None or node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type == "If":
        index = value.index()
        return [graph.outputs[index or 0] for _, graph in subgraphs(node)]
    return [source for source in node.inputs if source is not None] if node.op_type in RULES else []


def interval_of(ranges: Ranges, value: ir.Value) -> Interval | None:
    """The interval of one value whose sources are computed."""
    tensor = const_tensor(value)
    if tensor is not None:
        return _of_tensor(tensor)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    numbers = ranges.shapes.ints(value)
    if numbers:
        return Interval(min(numbers), max(numbers), nan=False)
    if node.op_type == "If":
        found = [ranges.known(source) for source in sources(value)]
        return _joined(found)
    rule = RULES.get(node.op_type)
    if rule is None or (value.index() and node.op_type not in _ALL_OUTPUTS):
        return None
    return rule(ranges, node)


def _of_tensor(tensor: ir.TensorProtocol) -> Interval | None:
    import numpy as np

    from graphopt import ir

    if tensor.size == 0 or tensor.size > MAX_ELEMENTS or tensor.dtype == ir.DataType.STRING:
        return None
    array = tensor.numpy()
    if np.iscomplexobj(array):
        return None
    if array.dtype.kind not in "fiub":
        array = array.astype(np.float32)
    nan = bool(np.isnan(array).any()) if array.dtype.kind == "f" else False
    if nan and bool(np.isnan(array).all()):
        return Interval()
    return Interval(_number(np.nanmin(array)), _number(np.nanmax(array)), nan)


def _number(element: object) -> float:
    """A Python number that is exact for 64-bit integers too."""
    import numpy as np

    return int(element) if isinstance(element, np.integer) else float(element)  # type: ignore[arg-type]


def _joined(found: list[Interval]) -> Interval | None:
    if not found:
        return None
    out = found[0]
    for other in found[1:]:
        out = out.join(other)
    return out


def _rounded(node: ir.Node, low: float, high: float, nan: bool) -> Interval | None:
    """The interval with float bounds rounded to the output's type."""
    import numpy as np

    dtype = node.outputs[0].dtype
    if dtype is None or math.isnan(low) or math.isnan(high):
        return None
    if dtype.is_integer():
        return Interval(low, high, nan=False)
    with np.errstate(over="ignore"):
        kind = dtype.numpy()
        return Interval(float(np.asarray(low, kind)), float(np.asarray(high, kind)), nan)


def _same(ranges: Ranges, node: ir.Node) -> Interval:
    return ranges.known(node.inputs[0])


def _all_inputs(ranges: Ranges, node: ir.Node) -> Interval | None:
    return _joined([ranges.known(value) for value in node.inputs if value is not None])


def _fixed(low: float, high: float) -> Rule:
    """An op with a fixed range; NaN comes through."""
    return lambda ranges, node: Interval(low, high, ranges.known(node.inputs[0]).nan)


def _softmax(ranges: Ranges, node: ir.Node) -> Interval:
    """NaN also where a whole row is -inf or an element is +inf."""
    x = ranges.known(node.inputs[0])
    return Interval(0, 1, x.nan or math.isinf(x.low) or math.isinf(x.high))


def _monotone(function: Callable[[float], float]) -> Rule:
    def rule(ranges: Ranges, node: ir.Node) -> Interval | None:
        x = ranges.known(node.inputs[0])
        try:
            return _rounded(node, function(x.low), function(x.high), x.nan)
        except (OverflowError, ValueError):
            return None

    return rule


def _relu(x: float) -> float:
    return max(x, 0)


def _keep_infinite(function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda x: x if math.isinf(x) else function(x)


def _abs(ranges: Ranges, node: ir.Node) -> Interval | None:
    x = ranges.known(node.inputs[0])
    low = 0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
    return _rounded(node, low, max(abs(x.low), abs(x.high)), x.nan)


def _neg(ranges: Ranges, node: ir.Node) -> Interval:
    x = ranges.known(node.inputs[0])
    return Interval(-x.high, -x.low, x.nan)


def _sqrt(ranges: Ranges, node: ir.Node) -> Interval:
    x = ranges.known(node.inputs[0])
    return Interval(0, math.inf, x.nan or x.low < 0)


def _clip(ranges: Ranges, node: ir.Node) -> Interval:
    x = ranges.known(node.inputs[0])
    low, high = Interval(-math.inf, -math.inf, nan=False), Interval(math.inf, math.inf, nan=False)
    for name, index in (("min", 1), ("max", 2)):
        attr, given = node.attributes.get(name), optional_input(node, index)
        bound = Interval(attr.as_float(), attr.as_float(), nan=False) if attr is not None else None
        if bound is None and given is not None:
            bound = ranges.known(given)
        if bound is not None and name == "min":
            low = bound
        elif bound is not None:
            high = bound
    if low.nan or high.nan:
        return Interval(nan=True)
    return Interval(min(max(x.low, low.low), high.low), min(max(x.high, low.high), high.high), x.nan)


def _cast(ranges: Ranges, node: ir.Node) -> Interval | None:
    from graphopt import ir

    x = ranges.known(node.inputs[0])
    dtype = ir.DataType(attr_int(node, "to", 0))
    if dtype == ir.DataType.BOOL:
        if x.nan or x.low <= 0 <= x.high:
            return Interval(0, 0, nan=False) if x.always(0) else None
        return Interval(1, 1, nan=False)
    if dtype.is_integer():
        if x.nan or math.isinf(x.low) or math.isinf(x.high):
            return None
        return Interval(math.trunc(x.low), math.trunc(x.high), nan=False)
    # A saturating 8-bit float clamps where others give infinity or NaN.
    return _rounded(node, x.low, x.high, x.nan) if dtype.bitwidth >= 16 else None


def _not(ranges: Ranges, node: ir.Node) -> Interval:
    x = ranges.known(node.inputs[0])
    return Interval(1 - x.high, 1 - x.low, nan=False)


def _where(ranges: Ranges, node: ir.Node) -> Interval:
    condition, x, y = (ranges.known(value) for value in node.inputs)
    if condition.always(1):
        return x
    return y if condition.always(0) else x.join(y)


def _arithmetic(ranges: Ranges, node: ir.Node) -> Interval | None:
    a, b = (ranges.known(value) for value in node.inputs[:2])
    nan = a.nan or b.nan or any(math.isinf(bound) for bound in (a.low, a.high, b.low, b.high))
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        size = max(abs(a.low), abs(a.high))
        least = 0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high))
        return _rounded(node, least * least, size * size, a.nan)
    if node.op_type == "Add":
        return _rounded(node, a.low + b.low, a.high + b.high, nan)
    if node.op_type == "Sub":
        return _rounded(node, a.low - b.high, a.high - b.low, nan)
    corners = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return _rounded(node, min(corners), max(corners), nan)


def _times(x: float, y: float) -> float:
    """The product of bounds: a zero bound stays zero, as the infinite one is only approached."""
    return 0 if x == 0 or y == 0 else x * y


def _extreme(ranges: Ranges, node: ir.Node) -> Interval:
    found = [ranges.known(value) for value in node.inputs if value is not None]
    pick = max if node.op_type == "Max" else min
    return Interval(pick(x.low for x in found), pick(x.high for x in found), any(x.nan for x in found))


def _compare(ranges: Ranges, node: ir.Node) -> Interval | None:
    a, b = (ranges.known(value) for value in node.inputs)
    op = node.op_type
    if a.nan or b.nan:
        return None
    if op in ("Less", "LessOrEqual"):
        a, b, op = b, a, {"Less": "Greater", "LessOrEqual": "GreaterOrEqual"}[op]
    if op == "Equal":
        sure, never = a.low == a.high == b.low == b.high, a.high < b.low or b.high < a.low
    elif op == "Greater":
        sure, never = a.low > b.high, a.high <= b.low
    else:
        sure, never = a.low >= b.high, a.high < b.low
    return Interval(1, 1, nan=False) if sure else Interval(0, 0, nan=False) if never else None


def _logical(ranges: Ranges, node: ir.Node) -> Interval:
    a, b = (ranges.known(value) for value in node.inputs)
    pick = min if node.op_type == "And" else max
    return Interval(pick(a.low, b.low), pick(a.high, b.high), nan=False)


def _constant_of_shape(ranges: Ranges, node: ir.Node) -> Interval | None:
    value = node.attributes.get("value")
    if value is not None and value.is_ref():
        return None  # a function's caller gives it
    tensor = attr_tensor(node, "value")
    return Interval(0, 0, nan=False) if tensor is None else _of_tensor(tensor)


def _size(ranges: Ranges, node: ir.Node) -> Interval:
    return Interval(0, 2**63 - 1, nan=False)


def _arg(ranges: Ranges, node: ir.Node) -> Interval:
    size = ranges.shapes.dims(node.inputs[0])
    dim = size[attr_int(node, "axis", 0)] if size else None
    return Interval(0, dim - 1 if isinstance(dim, int) and dim else 2**63 - 1, nan=False)


def _with_zero(ranges: Ranges, node: ir.Node) -> Interval:
    return ranges.known(node.inputs[0]).join(Interval(0, 0, nan=False))


def _pad(ranges: Ranges, node: ir.Node) -> Interval | None:
    x = ranges.known(node.inputs[0])
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return x
    attr, given = node.attributes.get("value"), optional_input(node, 2)
    if given is not None:
        return x.join(ranges.known(given))
    fill = attr.as_float() if attr is not None else 0.0
    return x.join(Interval(fill, fill, nan=False))


def _not_negative_sum(ranges: Ranges, node: ir.Node) -> Interval | None:
    x = ranges.known(node.inputs[0])
    return Interval(0, math.inf, x.nan) if x.low >= 0 and not node.inputs[0].dtype.is_integer() else None  # type: ignore[union-attr]


_MOVES = (
    "DepthToSpace Expand Flatten Gather GatherElements GatherND GlobalMaxPool Identity MaxPool Reshape ReverseSequence "
    "Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVES.split(), _same),
    **dict.fromkeys(("Sigmoid", "HardSigmoid"), _fixed(0, 1)),
    **dict.fromkeys(("Tanh", "Softsign"), _fixed(-1, 1)),
    **dict.fromkeys(("Exp", "Softplus"), _fixed(0, math.inf)),
    "Sign": _fixed(-1, 1),
    "Softmax": _softmax,
    "Relu": _monotone(_relu),
    "Floor": _monotone(_keep_infinite(math.floor)),
    "Ceil": _monotone(_keep_infinite(math.ceil)),
    "Round": _monotone(_keep_infinite(round)),
    "Abs": _abs,
    "Neg": _neg,
    "Sqrt": _sqrt,
    "Clip": _clip,
    "Cast": _cast,
    "Not": _not,
    "Where": _where,
    "Concat": _all_inputs,
    **dict.fromkeys(("Add", "Sub", "Mul"), _arithmetic),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), _compare),
    **dict.fromkeys(("And", "Or"), _logical),
    "ConstantOfShape": _constant_of_shape,
    **dict.fromkeys(("Shape", "Size", "NonZero"), _size),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Trilu", "AveragePool"), _with_zero),
    "Pad": _pad,
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceSumSquare"), _not_negative_sum),
}

_ALL_OUTPUTS = frozenset({"Split"})
