"""Typed building blocks: each takes live values of a Pool, appends what exporters write, and leaves its result there.

Constant order and association are random, shapes may be symbolic, broadcasts are odd on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from property.pool import BOOL, FLOAT, INT64, SYMBOLS, Pool, Shape, broadcast, fixed, is_static, sizes

Block = Callable[[Pool], None]


def unary(p: Pool) -> None:
    x = p.value()
    op = str(
        p.one(
            "Neg",
            "Abs",
            "Relu",
            "Sigmoid",
            "Tanh",
            "Identity",
            "LeakyRelu",
            "HardSigmoid",
            "Dropout",
            "Floor",
            "Elu",
            "Softplus",
            "Erf",
        )
    )
    p.put(op, [x], p.shapes[x])


def odd_operand(p: Pool) -> None:
    """x op c, c of a shape with dims of 1, fewer dims or one more, and often a number that does nothing."""
    x = p.value()
    shape = p.shapes[x]
    dims = [a if a == b and p.chance(0.6) else 1 for a, b in shape][int(p.random.integers(len(shape) + 1)) :]
    if p.chance(0.15):
        dims = [1] * (len(shape) - len(dims) + 1) + dims
    op = str(p.one("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"))
    if p.chance(0.35):
        array = np.full(dims, p.one(0.0, 1.0, -1.0, -0.0, 2.0), np.float32)
    else:
        array = p.random.uniform(0.5, 1.5, dims).astype(np.float32)
    c = p.const(array)
    result = broadcast(shape, fixed(*dims))
    assert result is not None
    if op in ("Div", "Pow"):
        array[array == 0] = 1
        c = p.const(array)
        x = x if op == "Div" else p.put("Abs", [x], shape)
    p.put(op, [x, c] if op in ("Div", "Pow") or p.chance(0.7) else [c, x], result)


def two_values(p: Pool) -> None:
    x = p.value()
    others = [
        name
        for name in p.shapes
        if p.types.get(name) == FLOAT and name not in p.weights and broadcast(p.shapes[x], p.shapes[name]) is not None
    ]
    y = str(p.one(*others))
    result = broadcast(p.shapes[x], p.shapes[y])
    assert result is not None
    if math.prod(a for a, _ in result) < 5000:
        p.put(str(p.one("Add", "Mul", "Sub", "Max")), [x, y], result)


def again(p: Pool) -> None:
    """The same op on the same operands a second time, or with one attribute or operand order changed."""
    nodes = [
        node
        for node in p.nodes
        if len(node.output) == 1 and node.output[0] in p.shapes and not any(a.HasField("g") for a in node.attribute)
    ]
    if nodes:
        node = nodes[int(p.random.integers(len(nodes)))]
        name = p.fresh("again")
        twin = type(node)()
        twin.CopyFrom(node)
        twin.output[0] = name
        p.nodes.append(twin)
        p.types[name], p.shapes[name] = p.types[node.output[0]], p.shapes[node.output[0]]
        if p.types[name] == FLOAT and p.chance(0.6):
            p.put("Add", [name, node.output[0]], p.shapes[name])


def clip(p: Pool) -> None:
    x = p.value()
    low, high = sorted(p.random.uniform(-2, 6, 2))
    bounds = [p.const(np.float32(low)) if p.chance(0.7) else "", p.const(np.float32(high)) if p.chance(0.7) else ""]
    p.put("Clip", [x, *bounds], p.shapes[x])


def cast(p: Pool) -> None:
    x = p.value()
    kind = int(p.one(1, 11, 7, 6, 9, 10))  # float, double, int64, int32, bool, float16
    y = p.put("Cast", [x], p.shapes[x], kind, to=kind)
    p.put("Cast", [y], p.shapes[x], FLOAT, to=FLOAT)


def where(p: Pool) -> None:
    x = p.value(at_least=1)
    shape = p.shapes[x]
    if p.chance(0.4):
        test = p.const(np.full(p.one((), (1,)), p.chance(0.5)))  # type: ignore[arg-type]
    else:
        test = p.put(str(p.one("Greater", "LessOrEqual")), [x, p.scalar(float(p.random.normal()))], shape, BOOL)
    other = p.scalar(float(p.one(0.0, 1.0, -10000.0)))
    p.put("Where", [test, x, other] if p.chance(0.5) else [test, other, x], shape, FLOAT)


# -- layout -----------------------------------------------------------------------------------------------------------


def transpose(p: Pool) -> None:
    x = p.value(at_least=2)
    for _ in range(int(p.one(1, 1, 2))):
        perm = [int(axis) for axis in p.random.permutation(len(p.shapes[x]))]
        x = p.put("Transpose", [x], tuple(p.shapes[x][axis] for axis in perm), perm=perm)
        if p.chance(0.3):
            x = p.put(str(p.one("Relu", "Neg", "Sigmoid")), [x], p.shapes[x])


def reshape(p: Pool) -> None:
    """Split, merge or flatten dims; the shape is constant, or computed from Shape where a dim is symbolic."""
    x = p.value(at_least=1)
    shape = list(p.shapes[x])
    axis = int(p.random.integers(len(shape)))
    a, b = shape[axis]
    if a == b and a in (4, 6, 8) and p.chance(0.5):
        new = [*shape[:axis], (2, 2), (a // 2, a // 2), *shape[axis + 1 :]]
    elif axis + 1 < len(shape):
        c, d = shape[axis + 1]
        new = [*shape[:axis], (a * c, b * d), *shape[axis + 2 :]]
    else:
        new = [*shape, (1, 1)] if p.chance(0.5) else shape
    result = tuple(new)
    moving = [index for index, (a, b) in enumerate(result) if a != b]
    if len(moving) <= 1 and p.chance(0.6):
        spot = (
            moving[0]
            if moving
            else (int(p.random.integers(len(result))) if p.chance(0.5) and all(a for a, _ in result) else -1)
        )
        p.put("Reshape", [x, p.ints(*[-1 if index == spot else a for index, (a, _) in enumerate(result)])], result)
        return
    parts = [_dim(p, x, pair) if pair[0] != pair[1] else p.ints(pair[0]) for pair in result]
    if any(part is None for part in parts):
        return
    target = (
        p.put("Concat", [str(part) for part in parts], fixed(len(parts)), INT64, axis=0)
        if len(parts) > 1
        else str(parts[0])
    )
    p.put("Reshape", [x, target], result)


def _dim(p: Pool, x: str, pair: tuple[int, int]) -> str | None:
    """One symbolic dim of x as a vector of one element, the way exporters compute it, or a product of two."""
    shape = p.shapes[x]
    spots = [index for index, dim in enumerate(shape) if dim == pair]
    if spots:
        spot = int(p.one(*spots))
        if p.chance(0.3):
            return p.put("Shape", [x], fixed(1), INT64, start=spot, end=spot + 1)
        whole = p.put("Shape", [x], fixed(len(shape)), INT64)
        if p.chance(0.4):
            return p.put("Slice", [whole, p.ints(spot), p.ints(spot + 1), p.ints(0)], fixed(1), INT64)
        if p.chance(0.3):
            return p.put("Gather", [whole, p.ints(spot)], fixed(1), INT64, axis=0)
        element = p.put("Gather", [whole, p.const(np.int64(spot), "ints")], (), INT64, axis=0)
        return p.put("Unsqueeze", [element, p.ints(0)], fixed(1), INT64)
    for one in range(len(shape)):
        for two in range(one + 1, len(shape)):
            if (shape[one][0] * shape[two][0], shape[one][1] * shape[two][1]) == pair:
                left = _dim(p, x, shape[one]) if shape[one][0] != shape[one][1] else p.ints(shape[one][0])
                right = _dim(p, x, shape[two]) if shape[two][0] != shape[two][1] else p.ints(shape[two][0])
                return p.pair("Mul", str(left), str(right), fixed(1), INT64)
    return None


def squeeze(p: Pool) -> None:
    x = p.value(at_least=1)
    shape = list(p.shapes[x])
    ones = [axis for axis, dim in enumerate(shape) if dim == (1, 1)]
    if ones and p.chance(0.5):
        axis = int(p.one(*ones))
        p.put(
            "Squeeze", [x, p.ints(axis - (len(shape) if p.chance(0.3) else 0))], tuple(shape[:axis] + shape[axis + 1 :])
        )
    elif len(shape) < 5:
        axis = int(p.random.integers(len(shape) + 1))
        p.put("Unsqueeze", [x, p.ints(axis)], (*shape[:axis], (1, 1), *shape[axis:]))


def expand(p: Pool) -> None:
    x = p.value()
    shape = p.shapes[x]
    target = tuple((3, 3) if dim == (1, 1) and p.chance(0.5) else dim for dim in shape)
    want = [a if a == b else 1 for a, b in target]
    if p.chance(0.3):
        want, target = [1, *want], ((1, 1), *target)
    if len(target) <= 5:
        p.put("Expand", [x, p.ints(*want)], target)


def slices(p: Pool) -> None:
    """One or two slices, often of everything, sometimes backwards or with steps."""
    x = p.value(at_least=1)
    for _ in range(int(p.one(1, 2))):
        shape = list(p.shapes[x])
        axis = int(p.random.integers(len(shape)))
        a, b = shape[axis]
        if a != b or p.chance(0.25):
            p.put("Slice", [x, p.ints(0), p.ints(2**63 - 1), p.ints(axis)], tuple(shape))
            return
        start, stop = sorted(int(item) for item in p.random.integers(0, a + 1, 2))
        step = int(p.one(1, 1, 1, 2, -1))
        indices = range(a)[start:stop:step] if step > 0 else range(a)[::step]
        if not len(indices):
            return
        bounds = (start, stop - a if stop < a and p.chance(0.3) else stop) if step > 0 else (a - 1, -(a + 1))
        shape[axis] = (len(indices), len(indices))
        x = p.put("Slice", [x, p.ints(bounds[0]), p.ints(bounds[1]), p.ints(axis), p.ints(step)], tuple(shape))


def concat(p: Pool) -> None:
    x = p.value(at_least=1)
    shape = p.shapes[x]
    axis = int(p.random.integers(len(shape)))
    fits = [
        name
        for name, other in p.shapes.items()
        if p.types.get(name) == FLOAT
        and len(other) == len(shape)
        and all(i == axis or a == b for i, (a, b) in enumerate(zip(shape, other, strict=True)))
    ]
    parts = [str(p.one(*fits)) for _ in range(int(p.one(1, 1, 2)))]
    total = tuple(sum(p.shapes[name][axis][k] for name in [x, *parts]) for k in (0, 1))
    if total[0] <= 24:
        p.put("Concat", [x, *parts], tuple(total if i == axis else dim for i, dim in enumerate(shape)), axis=axis)  # type: ignore[misc]


def split(p: Pool) -> None:
    """Split and put together again, in order or not, or use the parts by themselves."""
    x = p.value(at_least=1)
    shape = list(p.shapes[x])
    axes = [axis for axis, (a, b) in enumerate(shape) if a == b and a >= 2]
    if not axes:
        return
    axis = int(p.one(*axes))
    first = int(p.random.integers(1, shape[axis][0]))
    counts = [first, shape[axis][0] - first]
    names = [p.fresh("part"), p.fresh("part")]
    from onnx import helper

    p.nodes.append(helper.make_node("Split", [x, p.ints(*counts)], names, axis=axis))
    for name, count in zip(names, counts, strict=True):
        p.types[name] = FLOAT
        p.shapes[name] = tuple((count, count) if i == axis else dim for i, dim in enumerate(shape))
    if p.chance(0.7):
        order = names if p.chance(0.7) else names[::-1]
        if p.chance(0.2):
            order = [p.put("Relu", [order[0]], p.shapes[order[0]]), order[1]]
        p.put("Concat", order, tuple(shape), axis=axis)


def gather(p: Pool) -> None:
    x = p.value(at_least=1)
    shape = p.shapes[x]
    axes = [axis for axis, (a, b) in enumerate(shape) if a == b and a]
    if axes:
        axis = int(p.one(*axes))
        size = shape[axis][0]
        if p.chance(0.3):
            p.put(
                "Gather",
                [x, p.const(np.int64(p.random.integers(-size, size)), "ints")],
                shape[:axis] + shape[axis + 1 :],
                axis=axis,
            )
        else:
            picks = p.random.integers(-size, size, int(p.random.integers(1, 4)))
            p.put(
                "Gather",
                [x, p.ints(*map(int, picks))],
                (*shape[:axis], (len(picks), len(picks)), *shape[axis + 1 :]),
                axis=axis,
            )


def pad(p: Pool) -> None:
    x = p.value(at_least=1)
    shape = p.shapes[x]
    for _ in range(int(p.one(1, 2))):
        pads = [int(p.one(0, 0, 1)) for _ in range(2 * len(shape))]
        shape = tuple(
            (a + pads[i] + pads[i + len(shape)], b + pads[i] + pads[i + len(shape)]) for i, (a, b) in enumerate(shape)
        )
        if math.prod(a for a, _ in shape) > 4000:
            return
        x = p.put("Pad", [x, p.ints(*pads)] + ([p.const(np.float32(p.one(0.0, 1.0)))] if p.chance(0.3) else []), shape)


# -- numbers ----------------------------------------------------------------------------------------------------------


def reduction(p: Pool) -> None:
    x = p.value(at_least=1)
    shape = p.shapes[x]
    count = int(p.random.integers(1, len(shape) + 1))
    axes = sorted(int(axis) for axis in p.random.permutation(len(shape))[:count])
    keep = int(p.random.integers(2))
    result = (
        tuple((1, 1) if i in axes else dim for i, dim in enumerate(shape))
        if keep
        else tuple(dim for i, dim in enumerate(shape) if i not in axes)
    )
    op = str(p.one("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"))
    signed = [axis - len(shape) if p.chance(0.2) else axis for axis in axes]
    y = p.put(op, [x, p.ints(*signed)], result, keepdims=keep)
    if keep and p.chance(0.3):
        p.put("Squeeze", [y, p.ints(*axes)], tuple(dim for i, dim in enumerate(shape) if i not in axes))


def softmax(p: Pool) -> None:
    x = p.value(at_least=1)
    axis = int(p.random.integers(-len(p.shapes[x]), len(p.shapes[x])))
    y = p.put(str(p.one("Softmax", "LogSoftmax")), [x], p.shapes[x], axis=axis)
    if p.chance(0.2):
        p.put("Log", [y], p.shapes[x])


def activation(p: Pool) -> None:
    """Gelu, Swish, HardSwish, Mish and their like as exporters take them apart, in any association."""
    x = p.value()
    shape = p.shapes[x]

    def both(op: str, a: str, b: str) -> str:
        return p.pair(op, a, b, broadcast(p.shapes[a], p.shapes[b]) or shape)

    kind = str(p.one("gelu", "tanh", "swish", "hard-swish", "mish", "quick-gelu", "leaky", "prelu"))
    if kind == "gelu":
        inner = p.put(
            "Erf",
            [
                p.put("Div", [x, p.scalar(math.sqrt(2))], _with(p, x))
                if p.chance(0.5)
                else both("Mul", x, p.scalar(math.sqrt(0.5)))
            ],
            _with(p, x),
        )
        _product(p, [x, both("Add", inner, p.scalar(1.0)), p.scalar(0.5)])
    elif kind == "tanh":
        cube = p.put("Pow", [x, p.scalar(3.0)], _with(p, x)) if p.chance(0.5) else both("Mul", both("Mul", x, x), x)
        inner = both("Mul", both("Add", x, both("Mul", cube, p.scalar(0.044715))), p.scalar(math.sqrt(2 / math.pi)))
        _product(p, [x, both("Add", p.put("Tanh", [inner], p.shapes[inner]), p.scalar(1.0)), p.scalar(0.5)])
    elif kind in ("swish", "quick-gelu"):
        inner = x if kind == "swish" else both("Mul", x, p.scalar(1.702))
        both("Mul", x, p.put("Sigmoid", [inner], p.shapes[inner]))
    elif kind == "hard-swish":
        inner = both("Add", x, p.scalar(3.0))
        inner = p.put("Clip", [inner, p.const(np.float32(0)), p.const(np.float32(6))], p.shapes[inner])
        if p.chance(0.5):
            p.put("Div", [both("Mul", x, inner), p.scalar(6.0)], broadcast(p.shapes[inner], fixed(1)) or shape)
        else:
            _product(p, [x, inner, p.scalar(1 / 6)])
    elif kind == "mish":
        inner = (
            p.put("Softplus", [x], shape)
            if p.chance(0.5)
            else p.put("Log", [both("Add", p.put("Exp", [x], shape), p.scalar(1.0))], _with(p, x))
        )
        both("Mul", x, p.put("Tanh", [inner], p.shapes[inner]))
    elif kind == "leaky":
        p.put("Max", [x, both("Mul", x, p.scalar(float(p.one(0.1, 0.01, 1.5))))], _with(p, x))
    else:
        negative = p.put("Relu", [p.put("Neg", [x], shape)], shape)
        scaled = both("Mul", negative, p.scalar(float(p.one(0.25, -0.25))))
        p.put(str(p.one("Add", "Sub")), [p.put("Relu", [x], shape), scaled], _with(p, x))


def _with(p: Pool, x: str) -> Shape:
    """The shape of x with a constant of one element: a scalar may become a vector of one."""
    return p.shapes[x] if p.shapes[x] else fixed(1)


def _product(p: Pool, factors: list[str]) -> str:
    """The factors multiplied in any order and association."""
    factors = [factors[int(index)] for index in p.random.permutation(len(factors))]
    while len(factors) > 1:
        spot = int(p.random.integers(len(factors) - 1))
        a, b = factors[spot], factors[spot + 1]
        factors[spot : spot + 2] = [p.pair("Mul", a, b, broadcast(p.shapes[a], p.shapes[b]) or ())]
    return factors[0]


def normalisation(p: Pool) -> None:
    """Layer norm or RMS norm over trailing axes, taken apart, sometimes behind a residual sum."""
    x = p.value(at_least=2)
    shape = p.shapes[x]
    if shape[-1][0] != shape[-1][1] or shape[-1][0] < 2:
        return
    size, last = shape[-1][0], p.one(-1, len(shape) - 1)
    axes = p.ints(int(last))  # type: ignore[call-overload]
    if p.chance(0.4):
        fits = [
            name
            for name, other in p.shapes.items()
            if other == shape and p.types[name] == FLOAT and name not in p.weights
        ]
        x = p.pair("Add", x, str(p.one(*fits)), shape)
    low = (*shape[:-1], (1, 1))
    centred = x
    if p.chance(0.7):
        centred = p.put("Sub", [x, p.put("ReduceMean", [x, axes], low, keepdims=1)], shape)
    square = p.put("Pow", [centred, p.scalar(2.0)], shape) if p.chance(0.5) else p.put("Mul", [centred, centred], shape)
    spread = p.pair(
        "Add", p.put("ReduceMean", [square, axes], low, keepdims=1), p.scalar(float(p.one(1e-5, 1e-6, 1e-12))), low
    )
    root = p.put("Sqrt", [spread], low)
    if p.chance(0.6):
        y = p.put("Div", [centred, root], shape)
    else:
        y = p.pair("Mul", centred, p.put("Reciprocal", [root], low), shape)
    if p.chance(0.8):
        y = p.pair("Mul", y, p.floats(size), shape)
    if p.chance(0.7):
        p.pair("Add", y, p.floats(size), shape)


# -- linear -----------------------------------------------------------------------------------------------------------


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


BLOCKS: tuple[tuple[Block, float], ...] = (
    (unary, 2), (odd_operand, 3), (two_values, 2), (again, 1), (clip, 1), (cast, 1), (where, 1),
    (transpose, 2), (reshape, 2.5), (squeeze, 1), (expand, 1), (slices, 1.5), (concat, 1.5), (split, 1), (gather, 1),
    (pad, 1),    (reduction, 1.5), (softmax, 0.7), (activation, 2), (normalisation, 1.5),
    (matmul, 1.5), (conv, 2), (pooling, 0.7), (quantized, 0.4), (folded, 1), (attention, 0.3),
)  # fmt: skip
"""Every block with how often it is drawn."""


def dead(p: Pool) -> None:
    """Nodes that no output needs, and a weight that nothing reads."""
    x = p.value()
    y = p.put("Exp", [x], p.shapes[x])
    for name in (y, p.put("Add", [y, p.scalar(2.0)], _with(p, y))):
        p.unwanted.add(name)
    p.weight(np.float32(1), "unread")


def exported(p: Pool) -> None:
    """A node with the notes that torch's exporter leaves."""
    x = p.value()
    p.put("LeakyRelu", [x], p.shapes[x], alpha=0.125)
    note = p.nodes[-1].metadata_props.add()
    note.key, note.value = "pkg.torch.onnx.stack_trace", "File model.py, line 1"


def symbolic(p: Pool) -> None:
    """Shape arithmetic on an input with symbolic dims."""
    x = p.given((SYMBOLS["N"], *p.shape(2)))
    target = p.put("Concat", [str(_dim(p, x, SYMBOLS["N"])), p.ints(-1)], fixed(2), INT64, axis=0)
    _, (a, b), (c, d) = p.shapes[x]
    p.put("Reshape", [x, target], (SYMBOLS["N"], (a * c, b * d)))


def grow(p: Pool, count: int, aimed: Sequence[Block] = ()) -> None:
    """Append `count` random blocks and the aimed ones; what nothing reads then is an output, and some of the rest."""
    start = len(p.nodes)
    blocks = [block for block, _ in BLOCKS]
    weights = np.array([weight for _, weight in BLOCKS])
    for _ in range(count):
        blocks[int(p.random.choice(len(blocks), p=weights / weights.sum()))](p)
    for block in aimed:
        block(p)
    read = {name for node in p.nodes for name in node.input}
    made = [name for node in p.nodes[start:] for name in node.output if name in p.types and name not in p.unwanted]
    p.outputs += [name for name in made if name not in read or p.chance(0.05)]
    if not p.outputs:
        p.outputs = made[-1:]
