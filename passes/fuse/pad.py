"""A Pad with constant widths, folded into the pads of the convolution or pooling behind it.

Legal only where the operator's own padding means the same: Conv pads with zero, MaxPool with minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder

_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Abs", "HardSigmoid", "Softplus"})


class FusePadConv(RewritePass):
    """Conv(Pad(x, p), w, b) -> Conv(x, w, b) with pads + p, for constant zero padding of spatial axes."""

    name: ClassVar[str] = "fuse-pad-conv"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(
        self, op: PatternBuilder, x: Any, pads: Any, w: Any, value: Any = None, axes: Any = None, b: Any = None
    ) -> Any:
        return op.Conv(op.Pad(x, pads, value, axes, _as="pad"), w, b, _as="conv")

    def rewrite(
        self,
        op: Builder,
        m: Match,
        x: ir.Value,
        pads: ir.Value,
        w: ir.Value,
        value: ir.Value | None,
        *rest: ir.Value | None,
    ) -> ir.Value:
        axes, b = rest
        rank = m.rank(x)
        widths = pad_widths(m, x, pads, axes)
        m.require(fill(m, value) == 0, "the padding is not zero")
        old = own_pads(m, m["conv"], rank - 2)
        total = _sum(old, widths[2:rank] + widths[rank + 2 :])
        return op.clone(m["conv"], [x, w, b], pads=total, auto_pad=None)


class FusePadPool(RewritePass):
    """AveragePool(Pad(x, p)) -> AveragePool(x) with pads p; MaxPool too where the padding never wins."""

    name: ClassVar[str] = "fuse-pad-pool"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
        return op.node(("AveragePool", "MaxPool"), op.Pad(x, pads, value, axes, _as="pad"), _as="pool")

    def rewrite(
        self, op: Builder, m: Match, x: ir.Value, pads: ir.Value, value: ir.Value | None, axes: ir.Value | None
    ) -> Any:
        pool, rank = m["pool"], m.rank(x)
        m.not_quantized([x, *pool.outputs])
        widths = pad_widths(m, x, pads, axes)
        old = own_pads(m, pool, rank - 2)
        total = _sum(old, widths[2:rank] + widths[rank + 2 :])
        kernel = m.attr(pool, "kernel_shape", ())
        m.require(not m.attr(pool, "ceil_mode", 0), "ceil_mode counts padding in its own way")
        m.require(all(d == 1 for d in m.attr(pool, "dilations", ())), "a dilated window may see nothing but padding")
        m.require(
            all(p < k for p, k in zip(total, (*kernel, *kernel), strict=True)),
            "the padding would be as wide as the window",
        )
        if pool.op_type == "AveragePool":
            m.require(fill(m, value) == 0, "the padding is not zero")
            m.require(
                not any(old) or m.attr(pool, "count_include_pad", 0),
                "the pool leaves its own padding out of the average, Pad's not",
            )
            return op.clone(pool, [x], pads=total, auto_pad=None, count_include_pad=1)
        m.require(len(pool.outputs) == 1, "the indices of MaxPool would change")
        _never_wins(m, x, fill(m, value), any(old))
        return op.clone(pool, [x], pads=total, auto_pad=None)


def pad_widths(m: Match, x: ir.Value, pads: ir.Value, axes: ir.Value | None) -> tuple[int, ...]:
    """Widths of a constant-mode Pad, all begins then all ends; none negative, none in batch and channel.

    Raises:
        NoMatch: another mode, unknown widths, or widths that a convolution or pool cannot take over.
    """
    rank = m.rank(x)
    m.require(m.attr("pad", "mode", "constant") == "constant", "the Pad's mode is not constant")
    given = m.ints(pads)
    chosen = [m.axis(axis, rank) for axis in m.ints(axes)] if axes is not None else list(range(rank))
    m.require(len(given) == 2 * len(chosen), "the Pad's widths do not fit its axes")
    widths = [0] * (2 * rank)
    for at, axis in enumerate(chosen):
        widths[axis], widths[rank + axis] = given[at], given[len(chosen) + at]
    m.require(rank >= 3 and min(widths) >= 0, "the Pad crops")
    m.require(not any((*widths[:2], *widths[rank : rank + 2])), "the Pad widens batch or channels")
    return tuple(widths)


def fill(m: Match, value: ir.Value | None) -> float:
    """The padding value; an absent one is zero."""
    return 0.0 if value is None else float(m.scalar(value))


def own_pads(m: Match, node: ir.Node, spatial: int) -> tuple[int, ...]:
    """The pads of a Conv or pool itself, begins then ends; NoMatch for SAME, which depends on the input's size."""
    kind = m.attr(node, "auto_pad", "NOTSET")
    m.require(kind in ("NOTSET", "VALID"), f"auto_pad={kind} depends on the size of the input")
    pads = m.attr(node, "pads", None) if kind == "NOTSET" else None
    return tuple(pads) if pads is not None else (0,) * (2 * spatial)


def _sum(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _never_wins(m: Match, x: ir.Value, value: float, pooled_pads: bool) -> None:
    """Every window holds an element of x; the padding must not be larger than any of them."""
    if value == -math.inf:
        return
    producer = x.producer()
    low: float | None = None
    if producer is not None and producer.domain == "":
        if producer.op_type in _NOT_NEGATIVE:
            low = 0.0
        elif producer.op_type == "Clip" and m.input(1, producer) is not None:
            low = float(m.scalar(m.input(1, producer)))
    m.require(low is not None and value <= low, f"padding with {value} may be the maximum")
