"""Rules of ops that work element by element, with numpy's broadcasting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.table import ALL, FLOATS, INTS, NUMBERS, lowers

if TYPE_CHECKING:
    import numpy as np

    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

_UNARY_FLOAT = {
    "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Floor": "floor", "Ceil": "ceil", "Sin": "sin", "Cos": "cos",
    "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Tanh": "tanh",
    "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Erf": "erf", "Sigmoid": "sigmoid", "IsNaN": "isnan",
}  # fmt: skip
_UNARY_NUMBER = {"Abs": "abs", "Neg": "negative", "Sign": "sign"}
_BINARY = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide"}
_COMPARE = {
    "Less": "less", "LessOrEqual": "less_equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
    "Equal": "equal",
}  # fmt: skip
_LOGIC = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}
_BITS = {"BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor"}


@lowers(*_UNARY_FLOAT, dtypes=FLOATS)
def unary_float(c: Lowering, n: View) -> Expr:
    return getattr(c.op, _UNARY_FLOAT[n.op])(c.input(n, 0))


@lowers("Sinh", "Cosh", dtypes=FLOATS)
def hyperbolic(c: Lowering, n: View) -> Expr:
    """Halves of exponentials, of which LLVM has no functions; near 0, where those of sinh cancel, its Taylor series."""
    dtype = n.dtype(0)
    x = c.emit(c.widened(c.input(n, 0), dtype))
    wide = c.dtype_of(x)
    size, half = c.emit(c.op.abs(x)), c.const(math.log(2), wide)  # exp(|x|) / 2 overflows later than exp(|x|)
    up, down = (c.op.exp(c.op.subtract(side, half)) for side in (size, c.op.negative(size)))
    if n.op == "Cosh":
        return c.cast(c.op.add(up, down), dtype)
    square, series = c.emit(c.op.multiply(x, x)), c.const(1, wide)
    for order in (9, 8, 7, 6, 5, 4, 3, 2, 1):
        term = c.op.divide(square, c.const(2 * order * (2 * order + 1), wide))
        series = c.emit(c.op.add(c.const(1, wide), c.op.multiply(term, series)))
    large = c.op.multiply(c.op.sign(x), c.op.subtract(up, down))
    return c.cast(c.op.where(c.op.less(size, c.const(1, wide)), c.op.multiply(x, series), large), dtype)


@lowers(*_UNARY_NUMBER, dtypes=NUMBERS)
def unary(c: Lowering, n: View) -> Expr:
    return getattr(c.op, _UNARY_NUMBER[n.op])(c.input(n, 0))


def _binary_check(n: View) -> str | None:
    divisor = n.const(1) if n.op == "Div" else None
    if divisor is None or divisor.all() or divisor.dtype.kind == "f":
        return None
    return "Div of integers by zero has no result"


@lowers(*_BINARY, dtypes=NUMBERS, check=_binary_check)
def binary(c: Lowering, n: View) -> Expr:
    a, b = c.operands(n, 0, 1)
    divisor = n.const(1) if n.op == "Div" else None
    if divisor is not None and divisor.size == 1 and not divisor.any():  # TVM refuses to build x / 0
        return c.op.multiply(a, c.const(divisor + math.copysign(math.inf, divisor.item()), n.dtype(0)))
    if n.op == "Div" and n.dtype(0) in INTS:
        return _quotient(c, n, a, b)
    return getattr(c.op, _BINARY[n.op])(a, b)


def _quotient(c: Lowering, n: View, a: Expr, b: Expr) -> Expr:
    """Division of integers; x / 0 is 0, and the least number over -1 wraps around."""
    if _never_traps(n):
        return c.op.divide(a, b)
    # A factor and no choice: TVM knows inside of one that its condition does not hold, and would divide by b again.
    factor = c.cast(c.op.not_equal(b, c.const(0, n.dtype(0))), n.dtype(0))
    if not n.dtype(0).startswith("u"):
        factor = c.op.where(_is_minus_one(c, n, b), c.const(-1, n.dtype(0)), factor)
    return c.op.multiply(c.op.divide(a, _without_traps(c, n, b)), factor)


def _remainder(c: Lowering, n: View, a: Expr, b: Expr) -> Expr:
    """Remainder of integers; that of x / 0 is 0."""
    run = c.op.mod if n.attr("fmod", 0) else c.op.floor_mod
    return run(a, b if _never_traps(n) else _without_traps(c, n, b))


def _never_traps(n: View) -> bool:
    """Whether no divisor is 0 or -1, at which processors trap: always, and for the least number."""
    divisor = n.const(1)
    return divisor is not None and bool(divisor.all()) and not (divisor.astype("int64") == -1).any()


def _is_minus_one(c: Lowering, n: View, b: Expr) -> Expr:
    return c.op.equal(b, c.const(-1, n.dtype(0)))


def _without_traps(c: Lowering, n: View, b: Expr) -> Expr:
    """The divisor with 1 in place of 0 and -1."""
    traps = c.op.equal(b, c.const(0, n.dtype(0)))
    if not n.dtype(0).startswith("u"):
        traps = c.op.logical_or(traps, _is_minus_one(c, n, b))
    return c.op.where(traps, c.const(1, n.dtype(0)), b)


@lowers(*_COMPARE, dtypes=ALL)
def compare(c: Lowering, n: View) -> Expr:
    sides = c.operands(n, 0, 1)
    if n.dtype(0) == "bool":
        sides = [c.op.astype(side, "int8") for side in sides]
    return getattr(c.op, _COMPARE[n.op])(*sides)


@lowers(*_LOGIC, dtypes=frozenset({"bool"}))
def logic(c: Lowering, n: View) -> Expr:
    return getattr(c.op, _LOGIC[n.op])(*c.operands(n, 0, 1))


@lowers(*_BITS, dtypes=INTS)
def bits(c: Lowering, n: View) -> Expr:
    return getattr(c.op, _BITS[n.op])(*c.operands(n, 0, 1))


@lowers("Not", dtypes=frozenset({"bool"}))
def logical_not(c: Lowering, n: View) -> Expr:
    return c.op.logical_not(c.input(n, 0))


@lowers("BitwiseNot", dtypes=INTS)
def bitwise_not(c: Lowering, n: View) -> Expr:
    return c.op.bitwise_not(c.input(n, 0))


@lowers("BitShift", dtypes=INTS)
def bit_shift(c: Lowering, n: View) -> Expr:
    """A shift by the width and more, or by less than nothing, leaves the sign of a right shift, else zero.

    Hardware and compilers have no common result for it.
    """
    a, by = c.operands(n, 0, 1)
    dtype = n.dtype(0)
    left, width = n.attr("direction") == "LEFT", int(dtype.removeprefix("u").removeprefix("int"))
    zero = c.const(0, dtype)
    inside = c.op.logical_and(c.op.greater_equal(by, zero), c.op.less(by, c.const(width, dtype)))
    if not left and dtype.startswith("int"):
        return c.op.right_shift(a, c.op.where(inside, by, c.const(width - 1, dtype)))
    shifted = (c.op.left_shift if left else c.op.right_shift)(a, c.op.where(inside, by, zero))
    return c.op.where(inside, shifted, zero)


@lowers("Round", dtypes=FLOATS)
def round_half_even(c: Lowering, n: View) -> Expr:
    return c.op.round(c.input(n, 0))


@lowers("Reciprocal", dtypes=FLOATS)
def reciprocal(c: Lowering, n: View) -> Expr:
    return c.op.divide(c.const(1, n.dtype(0)), c.input(n, 0))


def _mod_check(n: View) -> str | None:
    fits = n.dtype(0) not in FLOATS or n.attr("fmod", 0)
    return None if fits else "Mod of floats without fmod=1 has no lowering to TVM"


@lowers("Mod", dtypes=NUMBERS, check=_mod_check)
def mod(c: Lowering, n: View) -> Expr:
    a, b = c.operands(n, 0, 1)
    if n.dtype(0) in FLOATS:
        return c.op.subtract(a, c.op.multiply(b, c.op.trunc(c.op.divide(a, b))))
    return _remainder(c, n, a, b)


def _pow_check(n: View) -> str | None:
    if n.dtype(0) in FLOATS or _small_exponent(n) is not None:
        return None
    return f"Pow of {n.dtype(0)} to an exponent that is no small constant has no lowering to TVM"


def _small_exponent(n: View) -> int | None:
    """The exponent when it is one of 1, 2, 3 for all elements."""
    exponent = n.const(1)
    if (
        exponent is None
        or exponent.size != 1
        or exponent.reshape(-1)[0] not in (1, 2, 3)
        or n.shapes.dims(n.value(1)) not in ((), (1,))
    ):
        return None
    return int(exponent.reshape(-1)[0])


@lowers("Pow", dtypes=NUMBERS, check=_pow_check)
def power(c: Lowering, n: View) -> Expr:
    small = _small_exponent(n)
    x, exponent = c.operands(n, 0, 1)
    if small is not None and n.rank(0) >= n.rank(1):
        out = x
        for _ in range(small - 1):
            out = c.op.multiply(out, x)
        return c.op.multiply(x, c.const(1, n.dtype(0))) if small == 1 else out
    return c.op.power(x, c.cast(exponent, n.dtype(0)))


@lowers("Min", "Max", dtypes=NUMBERS)
def extreme(c: Lowering, n: View) -> Expr:
    if n.dtype(0) not in FLOATS:
        return _folded(c, n, c.op.minimum if n.op == "Min" else c.op.maximum)
    wins = c.op.less if n.op == "Min" else c.op.greater

    def either(a: Expr, b: Expr) -> Expr:
        a = c.emit(a)
        return c.op.where(c.op.logical_or(wins(a, b), c.op.isnan(a)), a, b)

    return _folded(c, n, either)


@lowers("Sum", "Mean", dtypes=FLOATS)
def total(c: Lowering, n: View) -> Expr:
    out = _folded(c, n, c.op.add)
    if n.op == "Sum":
        return out
    return c.op.divide(out, c.const(len(n.node.inputs), n.dtype(0)))


def _folded(c: Lowering, n: View, combine: Any) -> Expr:
    out, *rest = c.operands(n, *range(len(n.node.inputs)))
    for operand in rest:
        out = combine(out, operand)
    return out


@lowers("Where", dtypes=ALL, data=1)
def where(c: Lowering, n: View) -> Expr:
    return c.op.where(*c.operands(n, 0, 1, 2))


_CASTS = ALL


def _cast_check(n: View) -> str | None:
    return None if n.out_dtype() in _CASTS else f"{n.op} to {n.out_dtype() or 'an unknown type'} has no lowering to TVM"


@lowers("Cast", "CastLike", dtypes=_CASTS, check=_cast_check)
def cast(c: Lowering, n: View) -> Expr:
    return c.cast(c.input(n, 0), n.out_dtype())


@lowers("Identity", dtypes=ALL)
def identity(c: Lowering, n: View) -> Expr:
    return c.input(n, 0)


def _dropout_check(n: View) -> str | None:
    training = n.const(2) if n.has(2) else None
    trains = n.has(2) and (training is None or bool(training.reshape(-1)[0]))
    return "Dropout in training mode is random" if trains else None


@lowers("Dropout", dtypes=FLOATS, check=_dropout_check)
def dropout(c: Lowering, n: View) -> list[Expr | None]:
    mask = c.op.full(c.relax.ShapeExpr(c.out_shape(n, 1)), c.const(True), "bool") if n.wants(1) else None
    return [c.input(n, 0), mask]


@lowers("IsInf", dtypes=FLOATS)
def is_inf(c: Lowering, n: View) -> Expr:
    x = c.input(n, 0)
    if n.attr("detect_positive", 1) and n.attr("detect_negative", 1):
        return c.op.isinf(x)
    limit = math.inf if n.attr("detect_positive", 1) else -math.inf
    if not (n.attr("detect_positive", 1) or n.attr("detect_negative", 1)):
        return c.op.logical_and(c.op.isinf(x), c.const(False))
    return c.op.equal(x, c.const(limit, n.dtype(0)))


@lowers("Clip", dtypes=NUMBERS)
def clip(c: Lowering, n: View) -> Expr:
    out = c.input(n, 0)
    # The lower bound first: where it is above the upper one, ONNX gives the upper one.
    for index, name, beyond in ((1, "min", c.op.less), (2, "max", c.op.greater)):
        fixed = n.attr(name) if name in n.node.attributes else _number(n.const(index))  # attributes: opset 6
        if fixed is not None:
            low, high = (fixed, None) if name == "min" else (None, fixed)
            out = c.emit(clipped(c, out, low, high, n.dtype(0)))
        elif n.has(index):
            bound = c.input(n, index)
            out = c.emit(c.op.where(beyond(out, bound), bound, out))
    return out


def _number(value: np.ndarray | None) -> float | None:
    return None if value is None else value.reshape(()).item()


def clipped(c: Lowering, x: Expr, low: float | None, high: float | None, dtype: str) -> Expr:
    """Between numbers. The number stands first: TVM's max(a, b) is `a > b ? a : b`, so that NaN in b stays NaN."""
    if low is not None:
        x = c.op.maximum(c.const(low, dtype), x)
    return x if high is None else c.op.minimum(c.const(high, dtype), x)


# ---- activations ---------------------------------------------------------------------------------------------------


@lowers("Relu", dtypes=NUMBERS)
def relu(c: Lowering, n: View) -> Expr:
    return clipped(c, c.input(n, 0), 0, None, n.dtype(0))


@lowers("LeakyRelu", dtypes=FLOATS)
def leaky_relu(c: Lowering, n: View) -> Expr:
    return c.op.nn.leakyrelu(c.input(n, 0), float(n.attr("alpha", 0.01)))


@lowers("PRelu", dtypes=FLOATS)
def prelu(c: Lowering, n: View) -> Expr:
    x = c.input(n, 0)
    return c.op.where(c.op.less(x, c.const(0, n.dtype(0))), c.op.multiply(x, c.input(n, 1)), x)


@lowers("Elu", "Selu", "Celu", dtypes=FLOATS)
def elu(c: Lowering, n: View) -> Expr:
    x, dtype = c.input(n, 0), n.dtype(0)
    alpha = float(n.attr("alpha", 1.67326319217681884765625 if n.op == "Selu" else 1.0))
    inner = c.op.divide(x, c.const(alpha, dtype)) if n.op == "Celu" else x
    below = c.op.multiply(c.const(alpha, dtype), c.op.subtract(c.op.exp(inner), c.const(1, dtype)))
    out = c.op.where(c.op.less(x, c.const(0, dtype)), below, x)
    if n.op != "Selu":
        return out
    return c.op.multiply(out, c.const(float(n.attr("gamma", 1.05070102214813232421875)), dtype))


@lowers("ThresholdedRelu", dtypes=FLOATS)
def thresholded_relu(c: Lowering, n: View) -> Expr:
    x, dtype = c.input(n, 0), n.dtype(0)
    return c.op.where(c.op.greater(x, c.const(float(n.attr("alpha", 1.0)), dtype)), x, c.const(0, dtype))


@lowers("Shrink", dtypes=FLOATS)
def shrink(c: Lowering, n: View) -> Expr:
    x, dtype = c.input(n, 0), n.dtype(0)
    lambd, bias = c.const(float(n.attr("lambd", 0.5)), dtype), c.const(float(n.attr("bias", 0.0)), dtype)
    upper = c.op.where(c.op.greater(x, lambd), c.op.subtract(x, bias), c.const(0, dtype))
    return c.op.where(c.op.less(x, c.op.negative(lambd)), c.op.add(x, bias), upper)


@lowers("HardSigmoid", dtypes=FLOATS)
def hard_sigmoid(c: Lowering, n: View) -> Expr:
    return hard_sigmoid_of(c, c.input(n, 0), float(n.attr("alpha", 0.2)), float(n.attr("beta", 0.5)), n.dtype(0))


@lowers("HardSwish", dtypes=FLOATS)
def hard_swish(c: Lowering, n: View) -> Expr:
    x = c.input(n, 0)
    return c.op.multiply(x, hard_sigmoid_of(c, x, 1 / 6, 0.5, n.dtype(0)))


def hard_sigmoid_of(c: Lowering, x: Expr, alpha: float, beta: float, dtype: str) -> Expr:
    """max(0, min(1, alpha * x + beta))."""
    line = c.op.add(c.op.multiply(x, c.const(alpha, dtype)), c.const(beta, dtype))
    return clipped(c, line, 0, 1, dtype)


@lowers("Swish", dtypes=FLOATS)
def swish(c: Lowering, n: View) -> Expr:
    x, alpha = c.input(n, 0), float(n.attr("alpha", 1.0))
    return c.op.multiply(x, c.op.sigmoid(x if alpha == 1.0 else c.op.multiply(x, c.const(alpha, n.dtype(0)))))


@lowers("Softplus", dtypes=FLOATS)
def softplus(c: Lowering, n: View) -> Expr:
    return softplus_of(c, c.input(n, 0), n.dtype(0))


@lowers("Mish", dtypes=FLOATS)
def mish(c: Lowering, n: View) -> Expr:
    x = c.input(n, 0)
    return c.op.multiply(x, c.op.tanh(softplus_of(c, x, n.dtype(0))))


def softplus_of(c: Lowering, x: Expr, dtype: str) -> Expr:
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    small = c.op.exp(c.op.negative(c.op.abs(x)))
    return c.op.add(clipped(c, x, 0, None, dtype), c.op.log(c.op.add(small, c.const(1, dtype))))


@lowers("Softsign", dtypes=FLOATS)
def softsign(c: Lowering, n: View) -> Expr:
    x = c.input(n, 0)
    return c.op.divide(x, c.op.add(c.op.abs(x), c.const(1, n.dtype(0))))


@lowers("Gelu", dtypes=FLOATS)
def gelu(c: Lowering, n: View) -> Expr:
    return (c.op.nn.gelu_tanh if n.attr("approximate", "none") == "tanh" else c.op.nn.gelu)(c.input(n, 0))
