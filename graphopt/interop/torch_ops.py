"""What the ops that move, compare and reduce compute, as torch functions; `OPS` maps ONNX names to them.

Inputs come first, attributes as keywords, as the ONNX schema names them. Not here: convolutions, norms, activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphopt.errors import GraphoptError

T = torch.Tensor
# ONNX TensorProto numbers of the element types that torch computes with.
_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def ints(value: T | Sequence[int] | None) -> list[int] | None:
    """A shape-like operand as Python integers."""
    if isinstance(value, T):
        return [int(item) for item in value.reshape(-1).tolist()]
    return None if value is None else [int(item) for item in value]


def dtype_of(number: int) -> torch.dtype:
    if number not in _DTYPES:
        raise GraphoptError(f"element type {number} has no torch form")
    return _DTYPES[number]


# -- arithmetic -------------------------------------------------------------------------------------------------


def div(a: T, b: T) -> T:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(a: T, b: T) -> T:
    return torch.pow(a, b).to(a.dtype)


def mod(a: T, b: T, *, fmod: int = 0) -> T:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def maximum(*items: T) -> T:
    return functools.reduce(torch.maximum, items)


def minimum(*items: T) -> T:
    return functools.reduce(torch.minimum, items)


def add_all(*items: T) -> T:
    return functools.reduce(torch.add, items)


def mean_all(*items: T) -> T:
    return add_all(*items) / len(items)


def gemm(
    a: T, b: T, c: T | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> T:
    a, b = (a.t() if transA else a), (b.t() if transB else b)
    out = a @ b
    out = out if alpha == 1.0 else out * alpha
    return out if c is None else out + (c if beta == 1.0 else c * beta)


def einsum(*items: T, equation: str) -> T:
    return torch.einsum(equation, *items)


def cumsum(x: T, axis: T, *, exclusive: int = 0, reverse: int = 0) -> T:
    dim = int(axis)
    x = x.flip(dim) if reverse else x
    out = torch.cumsum(x, dim, dtype=x.dtype)
    out = out - x if exclusive else out
    return out.flip(dim) if reverse else out


def isinf(x: T, *, detect_negative: int = 1, detect_positive: int = 1) -> T:
    out = torch.zeros_like(x, dtype=torch.bool)
    out = out | torch.isneginf(x) if detect_negative else out
    return out | torch.isposinf(x) if detect_positive else out


def cast(x: T, *, to: int, saturate: int = 1, round_mode: str = "up") -> T:
    return x.to(dtype_of(to))


def cast_like(x: T, like: T, *, saturate: int = 1, round_mode: str = "up") -> T:
    return x.to(like.dtype)


# -- shapes -----------------------------------------------------------------------------------------------------


def shape(x: T, *, start: int = 0, end: int | None = None) -> T:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def size(x: T) -> T:
    return torch.tensor(x.numel(), dtype=torch.int64)


def reshape(x: T, target: T, *, allowzero: int = 0) -> T:
    dims = ints(target) or []
    if not allowzero:
        dims = [x.shape[index] if dim == 0 else dim for index, dim in enumerate(dims)]
    return x.reshape(dims)


def flatten(x: T, *, axis: int = 1) -> T:
    axis = axis % x.dim() if axis < 0 else axis
    rows = 1
    for dim in x.shape[:axis]:
        rows *= dim
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, x.numel() // max(rows, 1))


def transpose(x: T, *, perm: Sequence[int] | None = None) -> T:
    return x.permute(list(perm) if perm is not None else list(range(x.dim()))[::-1])


def squeeze(x: T, target: T | None = None, *, axes: Sequence[int] | None = None) -> T:
    dims = ints(target) if target is not None else ints(axes)
    return x.squeeze() if dims is None else x.squeeze(tuple(dims))


def unsqueeze(x: T, target: T | None = None, *, axes: Sequence[int] | None = None) -> T:
    dims = ints(target) if target is not None else ints(axes)
    assert dims is not None
    rank = x.dim() + len(dims)
    for dim in sorted(dim % rank for dim in dims):
        x = x.unsqueeze(dim)
    return x


def expand(x: T, target: T) -> T:
    # ONNX expands both ways: a target dim of 1 keeps the input's.
    return x.broadcast_to(_common(list(x.shape), ints(target) or []))


def _common(a: list[int], b: list[int]) -> list[int]:
    rank = max(len(a), len(b))
    pairs = zip([1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b, strict=True)
    return [right if left == 1 else left for left, right in pairs]


def tile(x: T, repeats: T) -> T:
    return x.repeat(ints(repeats) or [])


def concat(*items: T, axis: int) -> T:
    return torch.cat(items, dim=axis)


def split(
    x: T,
    sizes: T | None = None,
    *,
    axis: int = 0,
    split: Sequence[int] | None = None,
    num_outputs: int = 0,
    outputs: int = 1,
) -> tuple[T, ...]:
    given = ints(sizes) if sizes is not None else ints(split)
    if given is None:
        part = -(-x.shape[axis] // (num_outputs or outputs))
        given = [min(part, x.shape[axis] - start) for start in range(0, x.shape[axis], part)]
    return torch.split(x, given, dim=axis)


def slice_by(x: T, starts: T, ends: T, axes: T | None = None, steps: T | None = None) -> T:
    first, last = ints(starts) or [], ints(ends) or []
    dims = ints(axes) if axes is not None else list(range(len(first)))
    stride = ints(steps) if steps is not None else [1] * len(first)
    for begin, end, dim, step in zip(first, last, dims or [], stride or [], strict=True):
        length = x.shape[dim]
        if step > 0:
            begin, end, step = slice(begin, end, step).indices(length)
            x = x[(slice(None),) * (dim % x.dim()) + (slice(begin, max(begin, end), step),)]
        else:
            # ONNX has no open end for a backward slice: a very negative one stands for it.
            stop = None if end < -length else end
            index = torch.tensor(range(length)[begin:stop:step], dtype=torch.int64, device=x.device)
            x = x.index_select(dim, index)
    return x


def _wrap(index: T, length: int) -> T:
    return torch.where(index < 0, index + length, index).to(torch.int64)


def gather(x: T, index: T, *, axis: int = 0) -> T:
    axis = axis % x.dim()
    flat = x.index_select(axis, _wrap(index, x.shape[axis]).reshape(-1))
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def gather_elements(x: T, index: T, *, axis: int = 0) -> T:
    return torch.gather(x, axis, _wrap(index, x.shape[axis]))


def gather_nd(x: T, index: T, *, batch_dims: int = 0) -> T:
    lead = [
        torch.arange(dim).reshape([-1] + [1] * (index.dim() - 2 - at)) for at, dim in enumerate(x.shape[:batch_dims])
    ]
    steps = [_wrap(index[..., at], x.shape[batch_dims + at]) for at in range(index.shape[-1])]
    return x[(*lead, *steps)]


def scatter_nd(x: T, index: T, updates: T, *, reduction: str = "none") -> T:
    if reduction not in ("none", "add"):
        raise GraphoptError(f"ScatterND with reduction={reduction} has no torch form")
    steps = tuple(_wrap(index[..., at], x.shape[at]) for at in range(index.shape[-1]))
    return x.index_put(steps, updates, accumulate=reduction == "add")


def scatter_elements(x: T, index: T, updates: T, *, axis: int = 0, reduction: str = "none") -> T:
    place = _wrap(index, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, place, updates)
    how = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, place, updates, how)


def range_(start: T, limit: T, delta: T) -> T:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def constant_of_shape(target: T, *, value: Sequence[float] | None = None) -> T:
    fill = 0.0 if value is None else value[0]
    dtype = torch.bool if isinstance(fill, bool) else torch.int64 if isinstance(fill, int) else torch.float32
    return torch.full(ints(target) or [], fill, dtype=dtype)


def trilu(x: T, k: T | None = None, *, upper: int = 1) -> T:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def identity(x: T) -> T:
    return x


# -- reductions -------------------------------------------------------------------------------------------------


def reduction(function: Callable[[T, list[int], bool], T]) -> Callable[..., T]:
    """A Reduce op from a function of tensor, axes and keepdims; axes are an input or, in older opsets, an attribute."""

    def apply(
        x: T,
        target: T | None = None,
        *,
        axes: Sequence[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> T:
        dims = ints(target) if target is not None else ints(axes)
        if not dims:
            if noop_with_empty_axes:
                return x
            dims = list(range(x.dim()))
        return function(x, dims, bool(keepdims)) if dims else x

    apply.__name__ = apply.__qualname__ = f"reduce_{function.__name__}"
    return apply


def sum_(x: T, dims: list[int], keep: bool) -> T:
    return x.sum(dims, keepdim=keep, dtype=x.dtype)


def mean(x: T, dims: list[int], keep: bool) -> T:
    return x.mean(dims, keepdim=keep)


def amax(x: T, dims: list[int], keep: bool) -> T:
    return x.amax(dims, keepdim=keep)


def amin(x: T, dims: list[int], keep: bool) -> T:
    return x.amin(dims, keepdim=keep)


def prod(x: T, dims: list[int], keep: bool) -> T:
    for dim in sorted((dim % x.dim() for dim in dims), reverse=True):
        x = x.prod(dim, keepdim=keep, dtype=x.dtype)
    return x


def l1(x: T, dims: list[int], keep: bool) -> T:
    return x.abs().sum(dims, keepdim=keep, dtype=x.dtype)


def l2(x: T, dims: list[int], keep: bool) -> T:
    return (x * x).sum(dims, keepdim=keep, dtype=x.dtype).sqrt()


def sum_square(x: T, dims: list[int], keep: bool) -> T:
    return (x * x).sum(dims, keepdim=keep, dtype=x.dtype)


def logsumexp(x: T, dims: list[int], keep: bool) -> T:
    return torch.logsumexp(x, dims, keepdim=keep)


def argmax(x: T, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> T:
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, keepdim=bool(keepdims))
    return torch.argmax(x, axis, keepdim=bool(keepdims))


def argmin(x: T, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> T:
    return argmax(-x, axis=axis, keepdims=keepdims, select_last_index=select_last_index)


def topk(x: T, k: T, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[T, T]:
    values, index = torch.topk(x, int(k), axis, bool(largest), bool(sorted))
    return values, index


_SAME_NAME = (
    *("Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Erf"),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
)
OPS: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name.lower()) for name in _SAME_NAME},
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": div, "Pow": power, "Mod": mod, "MatMul": torch.matmul,
    "Gemm": gemm, "Einsum": einsum, "Max": maximum, "Min": minimum, "Sum": add_all, "Mean": mean_all, "CumSum": cumsum,
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Not": torch.logical_not,
    "IsNaN": torch.isnan, "IsInf": isinf, "Where": torch.where, "Cast": cast, "CastLike": cast_like,
    "Shape": shape, "Size": size, "Reshape": reshape, "Flatten": flatten, "Transpose": transpose, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze, "Expand": expand, "Tile": tile, "Concat": concat, "Split": split, "Slice": slice_by,
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd, "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements, "Range": range_, "ConstantOfShape": constant_of_shape, "Trilu": trilu,
    "Identity": identity, "ArgMax": argmax, "ArgMin": argmin, "TopK": topk,
    "ReduceSum": reduction(sum_), "ReduceMean": reduction(mean), "ReduceMax": reduction(amax),
    "ReduceMin": reduction(amin),
    "ReduceProd": reduction(prod), "ReduceL1": reduction(l1), "ReduceL2": reduction(l2),
    "ReduceSumSquare": reduction(sum_square), "ReduceLogSumExp": reduction(logsumexp),
}  # fmt: skip
