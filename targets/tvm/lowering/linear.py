"""Rules of matrix products and convolutions. One-dimensional convolutions become two-dimensional with height 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering import codes
from graphopt.targets.tvm.lowering.table import FLOATS, NUMBERS, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any


@lowers("MatMul", dtypes=NUMBERS)
def matmul(c: Lowering, n: View) -> Expr:
    found = codes.factors(n, 1) if n.static(1) is not None and n.rank(1) == 2 and n.rank(0) >= 2 else None
    if found is not None:
        return codes.to_float(c, n, c.op.matmul(found.left(c), found.right(c), out_dtype="int32"), found, 0)
    return product(c, c.input(n, 0), c.input(n, 1), n.dtype(0))


def product(c: Lowering, a: Expr, b: Expr, dtype: str) -> Expr:
    """The matrix product; of half precision, summed in float32."""
    if dtype != "float16":
        return c.op.matmul(a, b)
    return c.op.astype(c.op.matmul(a, b, out_dtype="float32"), dtype)


@lowers("Gemm", dtypes=FLOATS)
def gemm(c: Lowering, n: View) -> Expr:
    """alpha * op(A) op(B) + beta * C."""
    found = _gemm_of_codes(c, n)
    if found is not None:
        return found
    dtype, alpha, beta = n.dtype(0), float(n.attr("alpha", 1.0)), float(n.attr("beta", 1.0))
    sides = []
    for index, flag in ((0, "transA"), (1, "transB")):
        side = c.input(n, index)
        sides.append(c.emit(c.op.permute_dims(side, [1, 0])) if n.attr(flag, 0) else side)
    out = product(c, sides[0], sides[1], dtype)
    if alpha != 1.0:
        out = c.op.multiply(out, c.const(alpha, dtype))
    if not n.has(2) or beta == 0.0:
        return out
    bias = c.input(n, 2)
    return c.op.add(out, bias if beta == 1.0 else c.op.multiply(bias, c.const(beta, dtype)))


def _gemm_of_codes(c: Lowering, n: View) -> Expr | None:
    if n.attr("transA", 0) or n.attr("alpha", 1.0) != 1.0 or n.attr("beta", 1.0) != 1.0:
        return None
    flipped = bool(n.attr("transB", 0))
    found = codes.factors(n, 0 if flipped else 1)
    if found is None:
        return None
    right = c.const(found.w.T.astype("int32")) if flipped else found.right(c)
    sums = c.emit(c.op.matmul(found.left(c), right, out_dtype="int32"))
    if found.bias is not None:
        sums = c.op.add(sums, c.const(found.bias))
    return codes.to_float(c, n, sums, found, 0)


def _conv_check(n: View) -> str | None:
    dims, kernel = n.dims(0), n.static(1)
    if dims is None or len(dims) not in (3, 4, 5):
        return f"{n.op} of rank {len(dims or ())} has no lowering to TVM; it has rules for 1 to 3 spatial dims"
    if kernel is None:
        return f"{n.op} with a kernel of unknown size has no lowering to TVM"
    if n.attr("auto_pad", "NOTSET").startswith("SAME") and not all(isinstance(dim, int) for dim in dims[2:]):
        return f"{n.op} with auto_pad on dynamic sizes has no lowering to TVM; bind them with --dim or --input-shapes"
    return None


def pads_of(n: View, kernel: tuple[int, ...], dims: tuple[Any, ...]) -> tuple[int, ...]:
    """Padding of a convolution or pooling over spatial dims: all begins, then all ends."""
    count = len(kernel)
    mode = n.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        return (0,) * (2 * count)
    if mode == "NOTSET":
        return tuple(n.attr("pads", (0,) * (2 * count)))
    begins, ends = [], []
    strides, dilations = n.attr("strides", (1,) * count), n.attr("dilations", (1,) * count)
    for size, k, stride, dilation in zip(dims, kernel, strides, dilations, strict=True):
        needed = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = needed // 2, needed - needed // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return (*begins, *ends)


@lowers("Conv", dtypes=FLOATS, check=_conv_check)
def conv(c: Lowering, n: View) -> Expr:
    found = codes.factors(n, 0) if n.rank(0) < 5 else None
    if found is not None:
        bias32 = None if found.bias is None else c.const(found.bias)
        sums = convolved(c, n, found.left(c), found.right(c), 1, bias32)
        return codes.to_float(c, n, sums, found, n.rank(0) - 2)
    dtype, bias = n.dtype(0), c.optional(n, 2)
    x, w = (c.widened(c.input(n, index), dtype) for index in (0, 1))
    return c.cast(convolved(c, n, x, w, 1, None if bias is None else c.widened(bias, dtype)), dtype)


def convolved(c: Lowering, n: View, x: Expr, w: Expr, kernel_at: int, bias: Expr | None) -> Expr:
    """The convolution of a Conv-like node on given operands; `kernel_at` is the operand with the kernel's shape."""
    shape, dims = n.static(kernel_at), n.dims(0)
    assert shape is not None and dims is not None
    kernel = shape[2:]
    count = len(kernel)
    pads = pads_of(n, kernel, dims[2:])
    strides, dilations = n.attr("strides", (1,) * count), n.attr("dilations", (1,) * count)
    if count == 1:
        x, w = _with_height(c, x), _with_height(c, w)
        pads, strides, dilations = (0, pads[0], 0, pads[1]), (1, *strides), (1, *dilations)
    run = c.op.nn.conv3d if count == 3 else c.op.nn.conv2d
    out = c.emit(run(x, w, strides=strides, padding=pads, dilation=dilations, groups=n.attr("group", 1)))
    if bias is not None:
        out = c.emit(c.op.add(out, c.per_channel(bias, max(count, 2))))
    return c.reshape(out, c.out_shape(n)) if count == 1 else out


def _with_height(c: Lowering, x: Expr) -> Expr:
    if c.is_const(x):
        return c.const(x.value.numpy()[:, :, None])
    x = c.emit(x)
    return c.emit(c.op.expand_dims(x, [2]))


def _transpose_check(n: View) -> str | None:
    dims, kernel = n.dims(0), n.static(1)
    if dims is None or len(dims) not in (3, 4, 5) or kernel is None:
        return "ConvTranspose of other than 1 to 3 spatial dims, or of a kernel of unknown size, has no lowering to TVM"
    wants_sizes = n.attr("auto_pad", "NOTSET").startswith("SAME") or "output_shape" in n.node.attributes
    if wants_sizes and not all(isinstance(dim, int) for dim in dims[2:]):
        return "ConvTranspose with a given output size on dynamic sizes has no lowering to TVM; bind them with --dim"
    return None


@lowers("ConvTranspose", dtypes=FLOATS, check=_transpose_check)
def conv_transpose(c: Lowering, n: View) -> Expr:
    shape = n.static(1)
    assert shape is not None
    kernel = shape[2:]
    count = len(kernel)
    strides, dilations = n.attr("strides", (1,) * count), n.attr("dilations", (1,) * count)
    pads, extra = _transpose_pads(n, kernel, strides, dilations)
    x, w = c.input(n, 0), c.input(n, 1)
    if count == 1:
        x, w = _with_height(c, x), _with_height(c, w)
        pads, strides, dilations, extra = (0, pads[0], 0, pads[1]), (1, *strides), (1, *dilations), (0, *extra)
    run = c.op.nn.conv3d_transpose if count == 3 else c.op.nn.conv2d_transpose
    out = c.emit(
        run(x, w, strides=strides, padding=pads, output_padding=extra, dilation=dilations, groups=n.attr("group", 1))
    )
    bias = c.optional(n, 2)
    if bias is not None:
        out = c.emit(c.op.add(out, c.per_channel(bias, max(count, 2))))
    return c.reshape(out, c.out_shape(n)) if count == 1 else out


def _transpose_pads(
    n: View, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding (begins, then ends) and output padding of a transposed convolution, as ONNX derives them."""
    count = len(kernel)
    extra = tuple(n.attr("output_padding", (0,) * count))
    mode, wanted, dims = n.attr("auto_pad", "NOTSET"), n.attr("output_shape"), n.dims(0)
    assert dims is not None
    if wanted is None and mode == "NOTSET":
        return tuple(n.attr("pads", (0,) * (2 * count))), extra
    if wanted is None and mode == "VALID":
        return (0,) * (2 * count), extra
    begins, ends, more = [], [], []
    for axis in range(count):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        size = dims[2 + axis]
        assert isinstance(size, int)
        target = wanted[axis - count] if wanted is not None else size * strides[axis]
        total = strides[axis] * (size - 1) + extra[axis] + reach - target
        more.append(extra[axis] + max(-total, 0))
        small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return (*begins, *ends), tuple(more)
