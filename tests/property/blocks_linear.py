"""Blocks around linear ops: matmul, conv and pooling with what stands around them, attention, quantized groups.

Not here: elementwise ops by themselves.
"""

from __future__ import annotations

import math

import numpy as np
from property.pool import FLOAT, Pool, Shape, broadcast, fixed, is_static, sizes


def matmul(p: Pool) -> None:
    x = p.value(at_least=2)
    shape = p.shapes[x]
    a, b = shape[-1]
    if a != b:
        return
    n = int(p.one(2, 3, 4))
    result = (*shape[:-1], (n, n))
    if p.chance(0.3):
        scale = float(p.random.uniform(0.5, 2)) if p.chance(0.5) else None
        x = p.pair("Mul", x, p.scalar(scale) if scale is not None else p.floats(a), shape)
    if len(shape) == 2 and p.chance(0.3):
        flip = int(p.random.integers(2))
        y = p.put(
            "Gemm",
            [x, p.floats(n, a) if flip else p.floats(a, n)] + ([p.floats(n)] if p.chance(0.5) else []),
            result,
            transB=flip,
            alpha=float(p.one(1.0, 0.5)),
        )
    else:
        w = p.floats(a, n)
        if p.chance(0.2):
            w = p.put("Transpose", [p.floats(n, a)], fixed(a, n), FLOAT, perm=[1, 0])
        y = p.put("MatMul", [x, w], result)
    _behind(p, y, n, -1)


def conv(p: Pool) -> None:
    x = p.value(rank=int(p.one(4, 4, 3)))
    shape = p.shapes[x]
    (channels, other), *space = shape[1:]
    if channels != other:
        return
    group = channels if p.chance(0.2) else 1
    out = channels if group > 1 else int(p.one(2, 3, 4))
    kernel = [int(p.one(1, 1, 3)) for _ in space]
    kernel = [1 if min(pair) < 3 else size for pair, size in zip(space, kernel, strict=True)]
    stride = int(p.one(1, 1, 2))
    margin = [size // 2 if p.chance(0.5) else 0 for size in kernel]
    result = tuple(
        tuple((pair[k] + 2 * m - size) // stride + 1 for k in (0, 1))
        for pair, size, m in zip(space, kernel, margin, strict=True)
    )
    w = p.floats(out, channels // group, *kernel)
    if p.chance(0.1):
        w = _dequantized(p, out, channels // group, *kernel)
    extra = [p.floats(out)] if p.chance(0.5) else []
    y = p.put(
        "Conv",
        [x, w, *extra],
        (shape[0], (out, out), *result),
        group=group,
        pads=margin * 2,
        strides=[stride] * len(space),
    )  # type: ignore[arg-type]
    _behind(p, y, out, 1)


def _dequantized(p: Pool, *dims: int) -> str:
    """A weight behind DequantizeLinear: a group that must stay as it is."""
    q = p.const(p.random.integers(-100, 100, dims).astype(np.int8), "q")
    return p.put("DequantizeLinear", [q, p.const(np.float32(0.02))], fixed(*dims), FLOAT)


def _behind(p: Pool, y: str, channels: int, axis: int) -> None:
    """What stands behind a linear op: batch norm, scale, bias, activation, in odd shapes."""
    shape = p.shapes[y]
    tail = [1] * (len(shape) - 2) if axis == 1 else []
    for _ in range(int(p.one(0, 1, 2))):
        choice = str(p.one("bn", "Mul", "Add", "Sub", "Div", "act"))
        if choice == "bn":
            if axis == 1 or len(shape) == 2:
                stats = [p.floats(channels), p.floats(channels), p.floats(channels), p.floats(channels, positive=True)]
                y = p.put("BatchNormalization", [y, *stats], shape, epsilon=float(p.one(1e-5, 1e-3)))
        elif choice == "act":
            y = p.put(str(p.one("Relu", "Sigmoid", "Tanh", "LeakyRelu")), [y], shape)
        else:
            lead = p.one([1], [], [channels] if p.chance(0.1) else [1])
            dims = [*(lead if axis == 1 else []), int(p.one(channels, channels, 1)), *tail]  # type: ignore[has-type,misc]
            result = broadcast(shape, fixed(*dims))
            if result == shape:
                c = p.floats(*dims, positive=choice == "Div")
                y = p.pair(choice, y, c, shape) if choice in ("Mul", "Add") else p.put(choice, [y, c], shape)


def pooling(p: Pool) -> None:
    x = p.value(rank=4)
    shape = p.shapes[x]
    if p.chance(0.3):
        p.put("ReduceMean", [x, p.ints(2, 3)], (*shape[:2], (1, 1), (1, 1)), keepdims=1)
        return
    if min(*shape[2], *shape[3]) < 2:
        return
    margin = int(p.random.integers(2))
    if margin and p.chance(0.5):
        grown = (*shape[:2], *[(a + 2, b + 2) for a, b in shape[2:]])
        x, shape, margin = p.put("Pad", [x, p.ints(0, 0, 1, 1, 0, 0, 1, 1)], grown), grown, 0
    result = (*shape[:2], *[(a + 2 * margin - 1, b + 2 * margin - 1) for a, b in shape[2:]])
    p.put(str(p.one("MaxPool", "AveragePool")), [x], result, kernel_shape=[2, 2], pads=[margin] * 4)


def quantized(p: Pool) -> None:
    x = p.value()
    scale, zero = p.const(np.float32(0.05), "s"), p.const(np.uint8(128), "z")
    q = p.put("QuantizeLinear", [x, scale, zero], p.shapes[x], 2)
    p.put("DequantizeLinear", [q, scale, zero], p.shapes[x], FLOAT)


def folded(p: Pool) -> None:
    """An expression of constants, then used."""
    dims = [int(size) for size in p.random.integers(1, 4, int(p.random.integers(0, 3)))]
    c = p.floats(*dims)
    for _ in range(int(p.random.integers(1, 4))):
        c = p.put(str(p.one("Neg", "Exp", "Sigmoid", "Abs")), [c], fixed(*dims), FLOAT)
    if p.chance(0.5):
        c = p.pair("Mul", c, p.floats(*dims), fixed(*dims), FLOAT)
    x = p.value()
    result = broadcast(p.shapes[x], fixed(*dims))
    if result is not None:
        p.pair("Add", x, c, result)


def attention(p: Pool) -> None:
    """softmax(q k^T * scale + mask) v with projections, as exporters write it; heads split by Reshape and Transpose."""
    if p.chance(0.25):
        cached_attention(p)
        return
    heads, size = int(p.one(1, 2, 3)), int(p.one(2, 4))
    width = heads * size
    batch, length = p.shape(2)
    x = p.given((batch, length, (width, width)))
    shape = p.shapes[x]
    split_heads: Shape = (batch, (heads, heads), length, (size, size))
    target = [0, 0, heads, size] if p.chance(0.7) or not is_static(shape) else [*sizes(shape)[:2], heads, size]
    rows = []
    for which in range(3):
        y = p.put("MatMul", [x, p.floats(width, width)], shape)
        if p.chance(0.8):
            y = p.pair("Add", y, p.floats(width), shape)
        y = p.put("Reshape", [y, p.ints(*target)], (batch, length, (heads, heads), (size, size)))
        if which == 1 and p.chance(0.6):
            rows.append(p.put("Transpose", [y], (batch, (heads, heads), (size, size), length), perm=[0, 2, 3, 1]))
        else:
            y = p.put("Transpose", [y], split_heads, perm=[0, 2, 1, 3])
            rows.append(
                y
                if which != 1
                else p.put("Transpose", [y], (batch, (heads, heads), (size, size), length), perm=[0, 1, 3, 2])
            )
    q, k, v = rows
    scale = 1 / math.sqrt(size)
    scores: Shape = (batch, (heads, heads), length, length)
    form = int(p.random.integers(3))
    if form == 0:
        root = p.scalar(math.sqrt(scale))
        q, k = p.pair("Mul", q, root, split_heads), p.pair("Mul", k, root, p.shapes[k])
    elif form == 1:
        q = p.pair("Mul", q, p.scalar(scale), split_heads)
    s = p.put("MatMul", [q, k], scores)
    if form == 2:
        s = (
            p.put("Div", [s, p.scalar(1 / scale)], scores)
            if p.chance(0.5)
            else p.pair("Mul", s, p.scalar(scale), scores)
        )
    if p.chance(0.5):
        mask = p.given((batch, (1, 1), (1, 1), length)) if p.chance(0.6) else p.given((batch, (1, 1), length, length))
        s = p.pair("Add", s, mask, scores)
    a = p.put("MatMul", [p.put("Softmax", [s], scores, axis=-1), v], split_heads)
    y = p.put("Transpose", [a], (batch, length, (heads, heads), (size, size)), perm=[0, 2, 1, 3])
    p.put("Reshape", [y, p.ints(0, 0, width)], shape)


def cached_attention(p: Pool) -> None:
    """Attention of a decoder: grouped heads behind a cache, Concat(past, new), which is an output."""
    groups, repeat, size = int(p.one(1, 2)), int(p.one(2, 3)), 8
    batch, length, past = p.shape(3)
    if p.chance(0.8):
        batch, length = ((1, 1), length) if p.chance(0.5) else (batch, (1, 1))
    whole = (past[0] + length[0], past[1] + length[1])
    heads = groups * repeat

    def by_head(count: int) -> str:
        rows = p.given((batch, length, (count * size, count * size)))
        split = p.put("Reshape", [rows, p.ints(0, 0, count, size)], (batch, length, (count, count), (size, size)))
        return p.put("Transpose", [split], (batch, (count, count), length, (size, size)), perm=[0, 2, 1, 3])

    def joined() -> str:
        shape: Shape = (batch, (groups, groups), whole, (size, size))
        before = p.given((batch, (groups, groups), past, (size, size)))
        cache = p.put("Concat", [before, by_head(groups)], shape, axis=int(p.one(2, -2)))
        if p.chance(0.8):
            p.outputs.append(cache)
        apart = p.put("Unsqueeze", [cache, p.ints(2)], (*shape[:2], (1, 1), *shape[2:]))
        wide = p.put("Expand", [apart, p.ints(1, 1, repeat, 1, 1)], (*shape[:2], (repeat, repeat), *shape[2:]))
        return p.put("Reshape", [wide, p.ints(0, heads, -1, size)], (batch, (heads, heads), *shape[2:]))

    query, key, value = by_head(heads), joined(), joined()
    turned = p.put("Transpose", [key], (batch, (heads, heads), (size, size), whole), perm=[0, 1, 3, 2])
    shape: Shape = (batch, (heads, heads), length, whole)
    scores = p.put("Mul", [p.put("MatMul", [query, turned], shape), p.scalar(1 / math.sqrt(size))], shape)
    if is_static((whole,)) and p.chance(0.5):
        scores = p.pair("Add", scores, p.given((batch, (1, 1), length, whole)), shape)
    mixed = p.put("MatMul", [p.put("Softmax", [scores], shape, axis=-1), value], (*shape[:3], (size, size)))
    rows = p.put("Transpose", [mixed], (batch, length, (heads, heads), (size, size)), perm=[0, 2, 1, 3])
    p.put("Reshape", [rows, p.ints(0, 0, heads * size)], (batch, length, (heads * size, heads * size)))
