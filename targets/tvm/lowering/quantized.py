"""Rules of quantization: Q/DQ of all granularities, and the integer products, in 32-bit integers and floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.codes import LIMITS, requantized, saturated, shifted
from graphopt.targets.tvm.lowering.four_bits import FOUR_BITS, check_constants, codes_of, dequantized
from graphopt.targets.tvm.lowering.linear import convolved
from graphopt.targets.tvm.lowering.table import FLOATS, lowers

if TYPE_CHECKING:
    import numpy as np

    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

CODES = frozenset({"int8", "uint8", "int16", "uint16", "int32"})
BYTES = frozenset({"int8", "uint8"})


def spread(c: Lowering, n: View, index: int) -> Expr | None:
    """A scale or zero point with the rank of the data: per tensor, per axis, or one per block of an axis."""
    if not n.has(index):
        return None
    value, rank, own = codes_of(c, n, index), n.rank(0), n.rank(index)
    dims = n.dims(index) or ()
    if own == 0 or dims == (1,):
        return _reshaped(c, value, [1] * rank) if own else value
    axis = n.axis(1)
    if not n.attr("block_size", 0):
        if c.is_const(value):
            return _reshaped(c, value, [-1 if d == axis else 1 for d in range(rank)])
        return c.emit(c.op.expand_dims(value, [d for d in range(rank) if d != axis])) if rank > 1 else value
    block = int(n.attr("block_size"))

    def compute(a: Any, out: Any) -> Any:
        def at(*i: Any) -> Any:
            return a(*[c.tirx.floordiv(j, block) if d == axis else j for d, j in enumerate(i)])

        return c.te_lang.compute(out, at, name="repeat_blocks")

    return c.te(compute, value, name="repeat_blocks", shape=c.shape(n.value(0)))


def _reshaped(c: Lowering, value: Expr, shape: list[int]) -> Expr:
    """A value in another shape; a constant stays one."""
    return c.const(value.value.numpy().reshape(shape)) if c.is_const(value) else c.emit(c.reshape(value, shape))


@lowers("DequantizeLinear", dtypes=CODES | FOUR_BITS, check=check_constants)
def dequantize(c: Lowering, n: View) -> Expr:
    """(x - zero point) * scale."""
    if n.dtype(0) in FOUR_BITS:
        weights = dequantized(c, n)
        if weights is not None:
            return weights
    x, scale, zero = codes_of(c, n, 0), spread(c, n, 1), spread(c, n, 2)
    assert scale is not None
    if c.is_const(x) and c.is_const(scale) and (zero is None or c.is_const(zero)):
        codes = _integers(x) - (0 if zero is None else _integers(zero))
        return c.const(codes.astype(n.out_dtype()) * scale.value.numpy())
    wide = c.op.astype(x, "int32")
    if zero is not None:
        wide = c.op.subtract(wide, _wide(c, zero, "int32"))
    return c.op.multiply(c.op.astype(wide, n.out_dtype()), scale)


def _wide(c: Lowering, value: Expr, dtype: str) -> Expr:
    """A value in another type; a constant stays one."""
    return c.const(value.value.numpy().astype(dtype)) if c.is_const(value) else c.op.astype(value, dtype)


def _quantize_check(n: View) -> str | None:
    if n.out_dtype() not in LIMITS:
        return f"QuantizeLinear to {n.out_dtype() or 'an unknown type'} has no lowering to TVM"
    return None


@lowers("QuantizeLinear", dtypes=FLOATS, check=_quantize_check)
def quantize(c: Lowering, n: View) -> Expr:
    """saturate(round(x / scale) + zero point), halves to even."""
    found = requantized(c, n)
    if found is not None:
        return found
    return to_codes(c, c.op.divide(c.input(n, 0), spread(c, n, 1)), spread(c, n, 2), n.out_dtype())


def to_codes(c: Lowering, steps: Expr, zero: Expr | None, dtype: str) -> Expr:
    """saturate(round(steps) + zero) as integer codes."""
    steps = c.emit(steps)
    kind = c.dtype_of(steps)
    point = None if zero is None else _wide(c, zero, kind)
    limits = [c.const(limit, kind) for limit in LIMITS[dtype]]
    if point is not None and c.is_const(point):
        limits = [c.const((limit - point.value.numpy()).astype(kind)) for limit in LIMITS[dtype]]
    elif point is not None:
        limits = [c.emit(c.op.subtract(limit, point)) for limit in limits]
    return saturated(c, steps, (limits[0], limits[1]), point, dtype)


@lowers("DynamicQuantizeLinear", dtypes=frozenset({"float32"}))
def dynamic_quantize(c: Lowering, n: View) -> list[Expr]:
    """To uint8 over the range of the tensor, which is made to hold 0."""
    x, zero = c.input(n, 0), c.const(0, "float32")
    low = c.emit(c.op.minimum(c.op.min(x), zero))
    high = c.emit(c.op.maximum(c.op.max(x), zero))
    width = c.emit(c.op.divide(c.op.subtract(high, low), c.const(255, "float32")))
    scale = c.emit(c.op.where(c.op.equal(width, zero), c.const(1, "float32"), width))
    point = c.emit(to_codes(c, c.op.divide(c.op.negative(low), scale), None, "uint8"))
    return [to_codes(c, c.op.divide(x, scale), point, "uint8"), scale, point]


def _shifted(c: Lowering, x: Expr, zero: Expr | None) -> Expr:
    """Codes in 32-bit integers, less their zero point; constants stay constants."""
    if c.is_const(x) and (zero is None or c.is_const(zero)):
        return c.const(_wide(c, x, "int32").value.numpy() - (0 if zero is None else _integers(zero)))
    if zero is None or (c.is_const(zero) and _integers(zero).size == 1):
        return shifted(c, x, 0 if zero is None else int(_integers(zero).reshape(())))
    return c.emit(c.op.subtract(c.op.astype(x, "int32"), _wide(c, zero, "int32")))


def _integers(constant: Expr) -> np.ndarray:
    return constant.value.numpy().astype("int32")


def _ratio(c: Lowering, left: Expr, right: Expr, out: Expr) -> Expr:
    """left * right / out, of scales."""
    if all(map(c.is_const, (left, right, out))):
        return c.const(left.value.numpy() * right.value.numpy() / out.value.numpy())
    return c.op.divide(c.op.multiply(left, right), out)


def _rows(c: Lowering, n: View, index: int) -> Expr | None:
    """A zero point of a left operand: [M] counts rows."""
    value = c.optional(n, index)
    per_row = value is not None and n.rank(index) == 1 and n.dims(index) != (1,)
    return c.emit(c.op.expand_dims(value, [1])) if per_row else value


@lowers("MatMulInteger", dtypes=BYTES)
def matmul_integer(c: Lowering, n: View) -> Expr:
    b, zero = _shifted(c, c.input(n, 1), c.optional(n, 3)), _rows(c, n, 2)
    if zero is None or c.is_const(zero) or not c.is_const(b) or n.rank(1) != 2:
        return c.op.matmul(_shifted(c, c.input(n, 0), zero), b, out_dtype="int32")
    # A zero point that is computed is taken off behind the product, which is then one of codes.
    sums = c.emit(c.op.matmul(_shifted(c, c.input(n, 0), None), b, out_dtype="int32"))
    columns = c.const(b.value.numpy().sum(axis=0, dtype="int32"))
    return c.op.subtract(sums, c.op.multiply(c.op.astype(zero, "int32"), columns))


def _scale_check(n: View) -> str | None:
    return None if n.dtype(1) == "float32" else f"QLinearMatMul with scales in {n.dtype(1)} has no lowering to TVM"


@lowers("QLinearMatMul", dtypes=BYTES, check=_scale_check)
def qlinear_matmul(c: Lowering, n: View) -> Expr:
    """Operands a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero."""
    a = _shifted(c, c.input(n, 0), _rows(c, n, 2))
    b = _shifted(c, c.input(n, 3), c.input(n, 5))
    product = c.op.astype(c.op.matmul(a, b, out_dtype="int32"), "float32")
    left = _rows(c, n, 1)
    factor = _ratio(c, left, c.input(n, 4), c.input(n, 6))
    return to_codes(c, c.op.multiply(product, factor), c.input(n, 7), n.out_dtype())


def _static_kernel(index: int) -> Any:
    def check(n: View) -> str | None:
        dims, kernel = n.dims(0), n.static(index)
        if dims is None or len(dims) not in (3, 4) or kernel is None:
            return f"{n.op} of other than 1 or 2 spatial dims, or of a kernel of unknown size, has no lowering to TVM"
        if n.attr("auto_pad", "NOTSET").startswith("SAME") and not all(isinstance(d, int) for d in dims[2:]):
            return f"{n.op} with auto_pad on dynamic sizes has no lowering to TVM; bind them with --dim"
        return None

    return check


@lowers("ConvInteger", dtypes=BYTES, check=_static_kernel(1))
def conv_integer(c: Lowering, n: View) -> Expr:
    x = _shifted(c, c.input(n, 0), c.optional(n, 2))
    w = _shifted(c, c.input(n, 1), _kernels(c, n, 3, n.rank(1)))
    return convolved(c, n, x, w, 1, None)


@lowers("QLinearConv", dtypes=BYTES, check=_static_kernel(3))
def qlinear_conv(c: Lowering, n: View) -> Expr:
    """Operands x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias."""
    spatial = n.rank(0) - 2
    x = _shifted(c, c.input(n, 0), c.input(n, 2))
    w = _shifted(c, c.input(n, 3), _kernels(c, n, 5, n.rank(3)))
    total = c.emit(convolved(c, n, x, w, 3, c.optional(n, 8)))
    scale = c.input(n, 4)
    scale = c.per_channel(scale, spatial) if n.rank(4) == 1 and n.dims(4) != (1,) else scale
    factor = _ratio(c, c.input(n, 1), scale, c.input(n, 6))
    return to_codes(c, c.op.multiply(c.op.astype(total, "float32"), factor), c.input(n, 7), n.out_dtype())


def _kernels(c: Lowering, n: View, index: int, rank: int) -> Expr | None:
    """A zero point of a kernel: one, or one per output channel, which is the first axis."""
    value = c.optional(n, index)
    if value is None or n.rank(index) == 0 or n.dims(index) == (1,):
        return value
    if c.is_const(value):
        return _reshaped(c, value, [-1, *[1] * (rank - 1)])
    return c.emit(c.op.expand_dims(value, list(range(1, rank))))
