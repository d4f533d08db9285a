"""Running sums for a GPU in two levels, as sums that other rules schedule.

TVM's own kernel for them lets threads of a warp read what others write without a barrier between (a race since Volta).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx


def cumsum(builder: Any, call: Any) -> Any:
    """Legalization of relax.cumsum; TVM's own where the axis is dynamic."""
    x, attrs = call.args[0], call.attrs
    dims = list(x.ty.shape)
    flat = attrs.axis is None
    if not all(isinstance(dim, tirx.IntImm) for dim in dims):
        return call.op.get_attr("FLegalize")(builder, call)
    shape = [int(dim) for dim in dims]
    axis = 0 if flat else int(attrs.axis) % len(shape)
    if flat:
        from tvm import relax

        shape = [math.prod(shape)]
        x = builder.emit(relax.op.reshape(x, shape))
    return builder.call_te(
        lambda a: _running(a, shape, axis, str(call.ty.dtype), bool(attrs.exclusive)), x, primfunc_name_hint="cumsum"
    )


def _running(x: Any, shape: list[int], axis: int, dtype: str, exclusive: bool) -> Any:
    """Sums of blocks of about sqrt(size), then of the blocks before and of the elements before within the block."""
    size = shape[axis]
    width = max(1, math.isqrt(size))
    blocks = math.ceil(size / width)
    zero = tirx.const(0, dtype)

    def at(indices: Any, position: Any) -> Any:
        place = [*indices[:axis], position, *indices[axis + 1 :]]
        return tirx.if_then_else(position < size, x(*place).astype(dtype), zero)

    k = te.reduce_axis((0, width), "k")
    totals = te.compute(
        [*shape[:axis], blocks, *shape[axis + 1 :]],
        lambda *i: te.sum(at(i, i[axis] * width + k), axis=k),
        name="totals",
    )
    b, j = te.reduce_axis((0, blocks), "b"), te.reduce_axis((0, width), "j")
    before = te.compute(
        [*shape[:axis], blocks, *shape[axis + 1 :]],
        lambda *i: te.sum(
            tirx.if_then_else(b < i[axis], totals(*i[:axis], b, *i[axis + 1 :]), zero), axis=b
        ),
        name="before",
    )  # fmt: skip

    def within(*i: Any) -> Any:
        position = i[axis] // width * width + j
        last = i[axis] if exclusive else i[axis] + 1
        return te.sum(tirx.if_then_else(position < last, at(i, position), zero), axis=j)

    inside = te.compute(shape, within, name="inside")
    return te.compute(
        shape, lambda *i: before(*i[:axis], i[axis] // width, *i[axis + 1 :]) + inside(*i), name="cumsum"
    )  # fmt: skip
