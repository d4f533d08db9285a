"""Rule of the standard Attention (opset 23 and newer): two products around a softmax, masks as numbers that are added.

    y = softmax(softcap(q k^T * scale) + bias) v        rows whose bias is -inf throughout are 0

Scores and softmax of half precision are in float32. The attention kernel of CPUs takes the pattern of static sizes.
Not here: the attention ops of ONNX Runtime, which passes decompose.
Source: the text and the reference implementation of ONNX's Attention-25.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.table import FLOATS, lowers

if TYPE_CHECKING:
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

Q, K, V, MASK, PAST_KEY, PAST_VALUE, VALID = range(7)
"""Operands; VALID counts the keys of each sample that are no padding."""
PRESENT_KEY, PRESENT_VALUE, SCORES = 1, 2, 3
"""Outputs behind the first."""
RAW, CAPPED, BIASED, WEIGHTS = range(4)
"""What the output SCORES holds (attribute qk_matmul_output_mode)."""
_SOFTMAX_TYPES = {1: "float32", 10: "float16", 11: "float64"}


def _check(n: View) -> str | None:
    dims = [n.dims(index) for index in (Q, K, V)]
    if any(shape is None or len(shape) not in (3, 4) for shape in dims):
        return "Attention on other than 3 or 4 dims has no lowering to TVM"
    if not isinstance(_depth(n), int) or not all(isinstance(_heads(n, index), int) for index in (Q, K)):
        return "Attention with a dynamic number or size of heads has no lowering to TVM"
    if any(n.has(index) and n.dtype(index) not in ("bool", n.dtype(Q)) for index in (K, V, MASK)):
        return "Attention on operands of several float types has no lowering to TVM"
    if n.attr("softmax_precision", 1) not in _SOFTMAX_TYPES:
        return "Attention with a softmax in bfloat16 has no lowering to TVM"
    return None


@lowers("Attention", dtypes=FLOATS, check=_check)
def attention(c: Lowering, n: View) -> list[Expr | None]:
    dtype, mode = n.dtype(Q), int(n.attr("qk_matmul_output_mode", RAW))
    work = "float32" if dtype == "float16" else dtype
    present_k, present_v = _present(c, n, K, PAST_KEY), _present(c, n, V, PAST_VALUE)
    k, v = _per_query_head(c, n, _turned(c, n, present_k)), _per_query_head(c, n, present_v)
    q = c.emit(c.op.permute_dims(_split(c, n, Q), [0, 2, 1, 3])) if n.rank(Q) == 3 else c.input(n, Q)
    scale = float(n.attr("scale", 1 / math.sqrt(_depth(n))))

    stages = {RAW: c.emit(c.op.multiply(c.emit(c.op.matmul(q, k, out_dtype=work)), c.const(scale, work)))}
    cap = float(n.attr("softcap", 0.0))
    stages[CAPPED] = stages[RAW] if cap == 0 else _capped(c, stages[RAW], cap, work)
    bias = _bias(c, n, work)
    stages[BIASED] = stages[CAPPED] if bias is None else c.emit(c.op.add(stages[CAPPED], bias))
    weights = c.emit(c.op.nn.softmax(c.cast(stages[BIASED], _softmax_type(n, work)), axis=-1))
    weights = c.emit(c.cast(weights, dtype)) if weights.ty.dtype != dtype else weights
    out = c.emit(c.cast(c.emit(c.op.matmul(weights, v, out_dtype=work)), dtype))
    if n.rank(Q) == 3:
        out = c.emit(c.op.permute_dims(out, [0, 2, 1, 3]))
    attended = None if bias is None or not _rows_may_be_empty(n) else _attended(c, bias, work)
    if attended is not None:
        rows = attended if n.rank(Q) == 4 else c.emit(c.op.permute_dims(attended, [0, 2, 1, 3]))
        out = _kept(c, rows, out)
        stages[WEIGHTS] = _kept(c, attended, weights) if n.wants(SCORES) else weights
    else:
        stages[WEIGHTS] = weights
    return [
        c.reshape(out, c.out_shape(n)) if n.rank(Q) == 3 else out,
        present_k if n.wants(PRESENT_KEY) else None,
        present_v if n.wants(PRESENT_VALUE) else None,
        c.cast(stages[mode], dtype) if n.wants(SCORES) else None,
    ]


# ---- operands ------------------------------------------------------------------------------------------------------


def _heads(n: View, index: int) -> Any:
    """How many heads the queries (Q) or the keys and values have."""
    dims = n.dims(index)
    assert dims is not None
    return dims[1] if len(dims) == 4 else n.attr("q_num_heads" if index == Q else "kv_num_heads")


def _depth(n: View) -> Any:
    """Numbers per head of the queries."""
    dims = n.dims(Q)
    assert dims is not None
    if len(dims) == 4 or not isinstance(dims[2], int):
        return dims[-1]
    heads = n.attr("q_num_heads")
    return dims[2] // heads if heads else None


def _split(c: Lowering, n: View, index: int) -> Expr:
    """[batch, length, heads * depth] -> [batch, length, heads, depth]."""
    batch, length, width = c.shape(n.value(index))
    heads = int(_heads(n, Q if index == Q else K))
    return c.emit(c.reshape(c.input(n, index), [batch, length, heads, c.tirx.floordiv(width, heads)]))


def _present(c: Lowering, n: View, index: int, past: int) -> Expr:
    """Keys or values of all positions by head, those of the past first."""
    new = c.input(n, index)
    if n.rank(index) == 3:
        new = c.emit(c.op.permute_dims(_split(c, n, index), [0, 2, 1, 3]))
    return c.emit(c.op.concat([c.input(n, past), new], axis=2)) if n.has(past) else new


def _turned(c: Lowering, n: View, keys: Expr) -> Expr:
    """Keys as the second factor: [batch, heads, depth, length], by one transpose where heads were split just now."""
    if n.rank(K) == 3 and not n.has(PAST_KEY):
        return c.emit(c.op.permute_dims(_split(c, n, K), [0, 2, 3, 1]))
    return c.emit(c.op.permute_dims(keys, [0, 1, 3, 2]))


def _per_query_head(c: Lowering, n: View, value: Expr) -> Expr:
    """Heads repeated for the group of query heads that share them."""
    group = int(_heads(n, Q)) // int(_heads(n, K))
    return value if group == 1 else c.emit(c.op.repeat(value, group, axis=1))


# ---- scores --------------------------------------------------------------------------------------------------------


def _capped(c: Lowering, scores: Expr, cap: float, dtype: str) -> Expr:
    return c.emit(c.op.multiply(c.op.tanh(c.op.divide(scores, c.const(cap, dtype))), c.const(cap, dtype)))


def _softmax_type(n: View, work: str) -> str:
    asked = n.attr("softmax_precision")
    return work if asked is None else _SOFTMAX_TYPES[int(asked)]


def _rows_may_be_empty(n: View) -> bool:
    """A causal mask alone leaves each query its first key."""
    return n.has(MASK) or n.has(VALID) or _window(n) != (-1, -1)


def _attended(c: Lowering, bias: Expr, dtype: str) -> Expr:
    """Which queries attend to any key: the bias is not -inf throughout."""
    closed = c.op.equal(bias, c.const(-math.inf, dtype))
    count = c.op.max(c.op.where(closed, c.const(0, dtype), c.const(1, dtype)), axis=[3], keepdims=True)
    return c.emit(c.op.greater(c.emit(count), c.const(0, dtype)))


def _kept(c: Lowering, rows: Expr, value: Expr) -> Expr:
    """The rows of a value for which `rows`, of the same rank, is true; zeros else."""

    def compute(keep: Any, a: Any) -> Any:
        def at(*i: Any) -> Any:
            row = [0 if _is_one(size) else index for size, index in zip(keep.shape, i, strict=True)]
            # Not Select: in vectors TVM's CUDA code gives its condition the type of the values.
            return c.tirx.if_then_else(keep(*row), a(*i), c.tirx.const(0, a.dtype))

        return c.te_lang.compute(a.shape, at, name="attended_rows")

    return c.te(compute, rows, value, name="attended_rows")


def _window(n: View) -> tuple[int, int]:
    return int(n.attr("left_window_size", -1)), int(n.attr("right_window_size", -1))


def _bias(c: Lowering, n: View, dtype: str) -> Expr | None:
    """What is added to the scores, [batch or 1, heads or 1, queries or 1, keys]; None when nothing is masked."""
    causal, (left, right) = bool(n.attr("is_causal", 0)), _window(n)
    by_place = causal or left >= 0 or right >= 0
    if not by_place and not n.has(MASK) and not n.has(VALID):
        return None
    from_mask, from_counts = n.has(MASK), n.has(VALID)
    tirx, one = c.tirx, c.tirx.IntImm("int64", 1)
    batch, length, keys = c.shape(n.value(Q))[0], _length(c, n, Q), _length(c, n, K)
    before = c.shape(n.value(PAST_KEY))[2] if n.has(PAST_KEY) else tirx.IntImm("int64", 0)
    mask_shape = [*[one] * 4, *(c.shape(n.value(MASK)) if from_mask else ())][-4:]
    shape = [
        batch if from_counts else mask_shape[0],
        mask_shape[1],
        length if by_place else mask_shape[2],
        before + keys,
    ]
    zero, closed = tirx.const(0, dtype), tirx.const(-math.inf, dtype)

    def compute(*args: Any) -> Any:
        *tensors, (*out, past, queries) = args
        given = tensors[0] if from_mask else None
        counts = tensors[-1] if from_counts else None

        def at(b: Any, h: Any, i: Any, j: Any) -> Any:
            total = zero if given is None else _of_mask(c, given, (b, h, i, j), dtype)
            allowed = []
            place = i + (past if counts is None else counts(b) - queries)
            if causal:
                allowed.append(j <= place)
            if left >= 0:
                allowed.append(place - j <= left)
            if right >= 0:
                allowed.append(j - place <= right)
            if counts is not None:
                allowed.append(j < counts(b))
            return tirx.Select(tirx.all(*allowed), total, closed) if allowed else total

        return c.te_lang.compute(out, at, name="attention_bias")

    operands = [c.input(n, index) for index in (MASK, VALID) if n.has(index)]
    return c.te(compute, *operands, name="attention_bias", shape=[*shape, before, length])


def _length(c: Lowering, n: View, index: int) -> Any:
    return c.shape(n.value(index))[-2 if n.rank(index) == 4 else 1]


def _of_mask(c: Lowering, mask: Any, place: tuple[Any, ...], dtype: str) -> Any:
    """An element of the mask as a number to add; keys behind its last are closed."""
    tirx, closed = c.tirx, c.tirx.const(-math.inf, dtype)
    first = len(place) - len(mask.shape)
    last = mask.shape[-1]
    inside = [0 if _is_one(size) else index for size, index in zip(mask.shape, place[first:], strict=True)]
    key = tirx.min(place[-1], last - 1)
    element = mask(*inside[:-1], key)
    number = tirx.Select(element, tirx.const(0, dtype), closed) if mask.dtype == "bool" else element.astype(dtype)
    return tirx.Select(place[-1] < last, number, closed)


def _is_one(size: Any) -> bool:
    return getattr(size, "value", None) == 1
