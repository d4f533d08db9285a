"""Blocks that move elements: reshapes by constants and by shape arithmetic, transposes, slices, concats, pads.

Not here: ops that compute with floats.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import helper
from property.pool import FLOAT, INT64, Pool, fixed


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
    parts = [dim_of(p, x, pair) if pair[0] != pair[1] else p.ints(pair[0]) for pair in result]
    if any(part is None for part in parts):
        return
    target = (
        p.put("Concat", [str(part) for part in parts], fixed(len(parts)), INT64, axis=0)
        if len(parts) > 1
        else str(parts[0])
    )
    p.put("Reshape", [x, target], result)


def dim_of(p: Pool, x: str, pair: tuple[int, int]) -> str | None:
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
                left = dim_of(p, x, shape[one]) if shape[one][0] != shape[one][1] else p.ints(shape[one][0])
                right = dim_of(p, x, shape[two]) if shape[two][0] != shape[two][1] else p.ints(shape[two][0])
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
