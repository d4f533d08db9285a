"""Arithmetic on the known elements of small integer tensors, as shape-building chains do it.

Elements are ints or symbols (`analysis.dims`); an element that cannot be told becomes a new symbol. Not here: which op
does what (`shape_rules`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.analysis import dims

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shapes import Shapes

Elements = Sequence["Dim"]


def elementwise(s: Shapes, node: ir.Node) -> list[Dim] | None:
    """The elements of a broadcasting arithmetic, comparison or logical op; None when an input is unknown."""
    operands: list[Elements] = []
    for value in node.inputs:
        known = s.values(value)
        if known is None:
            return None
        operands.append(known)
    length = max((len(known) for known in operands if len(known) != 1), default=1)
    if any(len(known) not in (1, length) for known in operands):
        return None
    out: list[Dim] = []
    for index in range(length):
        total, *rest = (known[0] if len(known) == 1 else known[index] for known in operands)
        for other in rest:
            result = _apply(node.op_type, total, other)
            if result is None:
                return None
            total = result
        out.append(s.fresh_data() if dims.is_unknown(total) else total)
    return out


def wraps(element: Dim, dtype: ir.DataType | None) -> bool:
    """Whether an element is a number that its integer type cannot hold: in the runtime it is another one."""
    if not isinstance(element, int) or dtype is None or not dtype.is_integer():
        return False
    bits = dtype.bitwidth - dtype.is_signed()
    return not -(2**bits if dtype.is_signed() else 0) <= element < 2**bits


def _apply(op: str, a: Dim, b: Dim) -> Dim | None:
    """One binary operation; unknown when the result cannot be told, None when the op is not followed at all."""
    if op in ("Add", "Sum"):
        return dims.add(a, b)
    if op == "Sub":
        return dims.subtract(a, b)
    if op == "Mul":
        return dims.multiply(a, b)
    if op in ("Max", "Min"):
        return dims.maximum(a, b) if op == "Max" else dims.minimum(a, b)
    if op in ("Div", "Mod"):
        return _divide(op, a, b)
    if op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
        return _compare(op, a, b)
    if op in ("And", "Or", "Xor"):
        return _logical(op, a, b)
    return None


def _divide(op: str, a: Dim, b: Dim) -> Dim:
    """Div truncates toward zero and Mod has the sign of the divisor: the same as floor where nothing is negative."""
    if isinstance(a, int) and isinstance(b, int) and b:
        if op == "Mod":
            return a % b if a >= 0 and b > 0 else dims.unknown()
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if not dims.nonnegative(a) or not dims.nonnegative(b) or b == 0:
        return dims.unknown()
    quotient = dims.floor_divide(a, b)
    return quotient if op == "Div" else dims.subtract(a, dims.multiply(b, quotient))


def _compare(op: str, a: Dim, b: Dim) -> Dim:
    difference = dims.subtract(a, b)
    if op == "Equal":
        if difference == 0:
            return 1
        apart = dims.nonnegative(dims.subtract(difference, 1)) or dims.nonnegative(dims.subtract(-1, difference))
        return 0 if apart else dims.unknown()
    if op in ("Less", "LessOrEqual"):
        difference, op = dims.multiply(difference, -1), {"Less": "Greater", "LessOrEqual": "GreaterOrEqual"}[op]
    least = 1 if op == "Greater" else 0
    if dims.nonnegative(dims.subtract(difference, least)):
        return 1
    return 0 if dims.nonnegative(dims.subtract(least - 1, difference)) else dims.unknown()


def _logical(op: str, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return {"And": a & b, "Or": a | b, "Xor": a ^ b}[op]
    decisive = {"And": 0, "Or": 1}.get(op)
    return decisive if decisive is not None and decisive in (a, b) else dims.unknown()


def where(s: Shapes, condition: Elements | None, x: Elements | None, y: Elements | None) -> list[Dim] | None:
    """The elements of Where; an unknown condition picks the element that both branches share."""
    if x is None or y is None:
        return None
    lengths = {len(part) for part in (condition, x, y) if part is not None and len(part) != 1}
    if len(lengths) > 1 or (condition is None and not lengths):
        return None
    length = lengths.pop() if lengths else 1
    out: list[Dim] = []
    for index in range(length):
        a, b = (part[0] if len(part) == 1 else part[index] for part in (x, y))
        picked = None if condition is None else condition[0] if len(condition) == 1 else condition[index]
        if isinstance(picked, int):
            out.append(a if picked else b)
        else:
            out.append(a if dims.equal(a, b) else s.fresh_data())
    return out


def cast(values: Elements, dtype: ir.DataType | None) -> Elements | None:
    """The elements after a cast to an integer type or bool; None for other types or where a number would wrap."""
    from graphopt import ir

    if dtype == ir.DataType.BOOL:
        return None if any(not isinstance(e, int) for e in values) else [int(e != 0) for e in values]
    limits = {ir.DataType.INT64: 2**63, ir.DataType.INT32: 2**31}
    if dtype not in limits:
        return None
    return values if all(not isinstance(e, int) or -limits[dtype] <= e < limits[dtype] for e in values) else None


def concat(s: Shapes, parts: Sequence[tuple[Elements | None, tuple[int, ...] | None]]) -> list[Dim] | None:
    """The elements of a rank-1 Concat of (elements, shape) parts; a part of known length only gives new symbols."""
    if all(known is None for known, _ in parts):
        return None
    out: list[Dim] = []
    for known, shape in parts:
        if known is not None:
            out.extend(known)
        elif shape is not None and shape[0] <= 64:
            out.extend(s.fresh_data() for _ in range(shape[0]))
        else:
            return None
    return out


def slice_length(s: Shapes, dim: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    """The length of `dim[start:end:step]` as ONNX clamps it; a new symbol where the signs are not known."""
    if not isinstance(step, int) or step == 0:
        return s.fresh()
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        return _concrete_length(dim, start, end, step)
    if step < 0:
        if not isinstance(start, int) or not isinstance(end, int):
            return s.fresh()
        whole = (start == -1 or start >= 2**31 - 1) and end <= -(2**31)
        return dims.ceil_divide(dim, -step) if whole else s.fresh()
    first, last = _clamped(dim, start), _clamped(dim, end)
    if first is None or last is None:
        return s.fresh()
    return s.known(dims.ceil_divide(dims.maximum(0, dims.subtract(last, first)), step))


def sliced(data: Elements, start: Dim, end: Dim, step: Dim) -> Elements | None:
    """The elements of a slice with numbers for bounds; Python clamps as ONNX does, but has no end before the front."""
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int) or step == 0:
        return None
    return data[slice(start, None if step < 0 and end < -len(data) else end, step)]


def _clamped(dim: Dim, bound: Dim) -> Dim | None:
    """A slice bound for a positive step, from the front and clamped to 0..dim; None when its sign is unknown."""
    if isinstance(bound, int) and bound >= 2**31 - 1:
        return dim
    if dims.nonnegative(bound):
        return dims.minimum(dim, bound)
    if dims.nonnegative(dims.subtract(-1, bound)):
        return dims.maximum(0, dims.add(dim, bound))
    return None


def _concrete_length(dim: int, start: int, end: int, step: int) -> int:
    first = start + dim if start < 0 else start
    last = end + dim if end < 0 else end
    if step > 0:
        first, last = min(max(first, 0), dim), min(max(last, 0), dim)
        return max(0, -((first - last) // step))
    first, last = min(max(first, 0), dim - 1), min(max(last, -1), dim - 1)
    return max(0, -((first - last) // step)) if dim else 0


def even_parts(s: Shapes, dim: Dim, count: int, *, ragged: bool) -> list[Dim] | None:
    """The sizes of Split without sizes. Before `num_outputs` (opset 18) the parts had to be equal."""
    if not ragged:
        part = dims.floor_divide(dim, count)
        return [part if isinstance(part, int) else s.known(part)] * count
    if not isinstance(dim, int):
        return None
    chunk = -(-dim // count)
    return [max(0, min(chunk, dim - index * chunk)) for index in range(count)]


def scaled(s: Shapes, dim: Dim, factor: float) -> Dim:
    """floor(dim * factor) where exact arithmetic and a runtime's float32 product agree, else a new symbol."""
    import math
    from fractions import Fraction

    import numpy as np

    exact = Fraction(float(np.float32(factor)))
    if isinstance(dim, int):
        size = math.floor(dim * exact)
        return size if size == int(np.float32(factor) * np.float32(dim)) else s.fresh()
    if exact.denominator > 64:
        return s.fresh()
    return s.known(dims.floor_divide(dims.multiply(dim, exact.numerator), exact.denominator))
