"""Products whose operands are dequantized codes: recognised, and summed in 32-bit integers.

    Dequantize(x) * Dequantize(w) + Dequantize(b)   ->   float(sum of (x - zero) * (w - zero) + b) * scale

A QuantizeLinear behind it, perhaps behind Relu and Clip, goes on from the sums: one multiplication by x's scale times
w's scale over y's, rounding and saturation, as the integer kernels of ONNX Runtime do. The sum of two dequantized
values is quantized alike, each multiplied by its own scale over y's. Not here: how codes are multiplied
(targets/tvm/cpu/integers.py), and the rules of the operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.constants import const_array, const_tensor

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

BYTES = ("int8", "uint8")
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Factors:
    """The operands of a product.

    Attributes:
        x: codes of the left operand, with one scale and zero point.
        w: constant right operand, zero points taken off, within int8.
        scale: of the sums, one or one per output channel, float32.
        bias: int32 codes in units of `scale`, one per output channel, or None.
        offset: a float bias, or None.
    """

    x: ir.Value
    zero: int
    w: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    offset: np.ndarray | None

    def left(self, c: Lowering) -> Expr:
        """The left operand in 32-bit integers."""
        return shifted(c, c.get(self.x), self.zero)

    def right(self, c: Lowering) -> Expr:
        import numpy as np

        return c.const(self.w.astype(np.int32))


@dataclass(frozen=True)
class Sums:
    """Integers behind a float value: value = float(expr) * scale; `scale` broadcasts to them."""

    expr: Expr
    scale: np.ndarray


def shifted(c: Lowering, x: Expr, zero: int) -> Expr:
    """Codes in 32-bit integers, less their zero point."""
    wide = c.emit(c.op.astype(x, "int32"))
    return c.emit(c.op.subtract(wide, c.const(zero, "int32"))) if zero else wide


def factors(n: View, axis: int) -> Factors | None:
    """The operands of a Conv, MatMul or Gemm on dequantized codes of static shape; None when it has others.

    Args:
        n: inputs are x, constant w and, if any, a constant bias.
        axis: of w's output channels.
    """
    x, w = dequantized(n.value(0)), dequantized(n.value(1))
    if x is None or w is None or x.scale.size != 1 or n.static(0) is None:
        return None
    codes = const_array(w.codes)
    if codes is None or (w.scale.size != 1 and w.axis != axis):
        return None
    right = _within_int8(codes, w, axis)
    if right is None:
        return None
    scale = x.scale.reshape(()) * w.scale.reshape(() if w.scale.size == 1 else (-1,))
    channels = codes.shape[axis]
    bias, offset = _bias(n.value(2), scale, channels)
    if n.has(2) and bias is None and offset is None:
        return None
    return Factors(x.codes, int(x.zero.reshape(())), right, scale, bias, offset)


def to_float(c: Lowering, n: View, sums: Expr, found: Factors, trailing: int) -> Expr:
    """The value of a node from its sums, which a QuantizeLinear behind it will find.

    Args:
        trailing: axes behind the output channels.
    """

    def spread(array: np.ndarray) -> np.ndarray:
        leading = n.rank(0) - 1 - trailing
        return array.reshape(*[1] * leading, -1, *[1] * trailing) if array.ndim else array

    sums = c.emit(sums)
    scaled = c.op.multiply(c.op.astype(sums, "float32"), c.const(spread(found.scale)))
    if found.offset is not None:
        return c.op.add(scaled, c.const(spread(found.offset)))
    c.sums[n.node.outputs[0]] = Sums(sums, spread(found.scale))
    return scaled


def requantized(c: Lowering, n: View) -> Expr | None:
    """A QuantizeLinear that follows integers, perhaps behind Relu and Clip; None when it does not."""
    import numpy as np

    scale, zero = const_array(n.value(1)), const_array(n.value(2)) if n.has(2) else np.zeros((), np.int64)
    dtype = n.out_dtype()
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or dtype not in BYTES:
        return None
    step, point = np.float32(scale.reshape(())), int(zero.reshape(()))
    low, high = (limit - point for limit in LIMITS[dtype])
    value = n.value(0)
    while value is not None and _read_once(value):
        terms = _terms(c, value)
        if terms:
            scaled = [_in_steps(c, term, step) for term in terms]
            steps = scaled[0] if len(scaled) == 1 else c.op.add(*map(c.emit, scaled))
            bounds = c.const(low, "float32"), c.const(high, "float32")
            return saturated(c, steps, bounds, c.const(point, "float32"), dtype)
        clip = _clips(value)
        if clip is None:
            return None
        low, high = (int(np.clip(_steps(bound, step), low, high)) for bound in clip)
        producer = value.producer()
        assert producer is not None
        value = producer.inputs[0]
    return None


def _terms(c: Lowering, value: ir.Value) -> list[Sums]:
    """Integers with scales whose sum is a value: the sums of a product, or two dequantized values; none for others."""
    if value in c.sums:
        return [c.sums[value]]
    node = value.producer()
    if node is None or node.op_type != "Add" or node.domain not in _STANDARD:
        return []
    sides = [dequantized(side) for side in node.inputs]
    same = node.inputs[0] is not None and node.inputs[1] is not None and node.inputs[0].shape == node.inputs[1].shape
    if not same or not all(
        side is not None and side.scale.size == 1 and const_array(side.codes) is None for side in sides
    ):
        return []
    return [Sums(shifted(c, c.get(side.codes), int(side.zero)), side.scale.reshape(())) for side in sides if side]


def _in_steps(c: Lowering, term: Sums, step: np.float32) -> Expr:
    import numpy as np

    return c.op.multiply(c.op.astype(term.expr, "float32"), c.const((term.scale / step).astype(np.float32)))


def saturated(c: Lowering, steps: Expr, bounds: tuple[Expr, Expr], zero: Expr | None, dtype: str) -> Expr:
    """Codes of floats that count steps from the zero point: cut to the bounds, rounded halves to even, shifted."""
    whole = c.emit(c.op.round(c.op.minimum(c.op.maximum(steps, bounds[0]), bounds[1])))
    return c.op.astype(whole if zero is None else c.op.add(whole, zero), dtype)


@dataclass(frozen=True)
class Dequantized:
    """What a DequantizeLinear with constant parameters reads; scale and zero point have one shape."""

    codes: ir.Value
    scale: np.ndarray
    zero: np.ndarray
    axis: int


def dequantized(value: ir.Value | None) -> Dequantized | None:
    """The DequantizeLinear of 8-bit codes to float32 that makes a value, per tensor or per axis; None for others."""
    import numpy as np

    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain not in _STANDARD:
        return None
    assert value is not None
    codes, scale = node.inputs[0], const_array(node.inputs[1])
    if codes is None or codes.dtype is None or scale is None or scale.dtype != np.float32 or scale.ndim > 1:
        return None
    zero: np.ndarray | None = np.zeros_like(scale, np.int64)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = const_array(node.inputs[2])
    block = node.attributes.get("block_size")
    if zero is None or codes.dtype.name.lower() not in BYTES or (block is not None and block.as_int()):
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    rank = len(codes.shape) if codes.shape is not None else 0
    return Dequantized(codes, scale, zero.astype(np.int64), axis + rank if axis < 0 else axis)


def _within_int8(codes: np.ndarray, w: Dequantized, axis: int) -> np.ndarray | None:
    import numpy as np

    spread = [1] * codes.ndim
    spread[axis] = -1
    out = codes.astype(np.int64) - (w.zero.reshape(spread) if w.zero.size > 1 else w.zero.reshape(()))
    return out.astype(np.int8) if out.size and out.min() >= -128 and out.max() <= 127 else None


def _bias(value: ir.Value | None, scale: np.ndarray, channels: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A bias as codes in units of `scale`, or as floats; neither when it is computed or has another shape."""
    import numpy as np

    if value is None:
        return None, None
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear" and node.domain in _STANDARD:
        codes, step = const_array(node.inputs[0]), const_array(node.inputs[1])
        zero = const_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        if codes is None or step is None or zero is None or codes.shape != (channels,) or codes.dtype != np.int32:
            return None, None
        if not zero.any() and np.array_equal(np.broadcast_to(step, channels), np.broadcast_to(scale, channels)):
            return codes, None
        return None, (codes.astype(np.float32) - zero.astype(np.float32)) * step
    floats = const_array(value) if const_tensor(value) is not None else None
    if floats is None or floats.dtype != np.float32 or floats.shape != (channels,):
        return None, None
    return None, floats


def _clips(value: ir.Value) -> tuple[float, float] | None:
    """The bounds of a Relu or Clip that makes a value; None for other nodes, and for bounds that are not known."""
    import numpy as np

    node = value.producer()
    if node is None or node.domain not in _STANDARD:
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip" or "min" in node.attributes or "max" in node.attributes:
        return None
    bounds = []
    for index, free in ((1, -np.inf), (2, np.inf)):
        given = node.inputs[index] if len(node.inputs) > index else None
        bound = np.float32(free) if given is None else const_array(given)
        if bound is None or np.size(bound) != 1 or np.isnan(bound):
            return None
        bounds.append(float(np.reshape(bound, ())))
    return bounds[0], bounds[1]


def _steps(bound: float, step: np.float32) -> float:
    """The rounded number of steps of a bound."""
    import numpy as np

    return float(np.rint(np.float32(bound) / step)) if np.isfinite(bound) else bound


def _read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()
