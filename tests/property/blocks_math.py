"""Blocks of elementwise ops with odd broadcasts, reductions, activations and norms as exporters take them apart.

Constant order and association are random.
"""

from __future__ import annotations

import math

import numpy as np
from property.pool import BOOL, FLOAT, Pool, Shape, broadcast, fixed


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
