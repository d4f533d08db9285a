"""Reductions from their parts: ReduceL2, ReduceSumSquare, Softmax, LogSoftmax, GlobalAveragePool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass
from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


class FuseReduceL2(RewritePass):
    """Sqrt(ReduceSum(x * x)) -> ReduceL2(x)."""

    name: ClassVar[str] = "fuse-reduce-l2"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, axes: Any = None) -> Any:
        squares = op.one_of(op.Mul(x, x), op.Pow(x, 2.0), op.Pow(op.Abs(x), 2.0))
        total = op.one_of(op.ReduceSum(squares, axes, _as="sum"), op.ReduceSumSquare(x, axes, _as="sum"))
        return op.Sqrt(total)

    def rewrite(self, op: Builder, m: Match, x: ir.Value, axes: ir.Value | None) -> ir.Value:
        return _reduce(op, m, "ReduceL2", x, m["sum"])


class FuseReduceSumSquare(RewritePass):
    """ReduceSum(x * x) -> ReduceSumSquare(x)."""

    name: ClassVar[str] = "fuse-reduce-sum-square"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    after: ClassVar[tuple[str, ...]] = ("fuse-reduce-l2",)

    def pattern(self, op: PatternBuilder, x: Any, axes: Any = None) -> Any:
        return op.ReduceSum(op.one_of(op.Mul(x, x), op.Pow(x, 2.0)), axes, _as="sum")

    def rewrite(self, op: Builder, m: Match, x: ir.Value, axes: ir.Value | None) -> ir.Value:
        return _reduce(op, m, "ReduceSumSquare", x, m["sum"])


def _reduce(op: Builder, m: Match, kind: str, x: ir.Value, old: ir.Node) -> ir.Value:
    """Another reduction over the axes of `old`, which are an attribute before opset 18 (13 for ReduceSum)."""
    m.require(m.is_float(x), "not of floats")
    axes, all_of_none = m.axes(old), m.attr(old, "noop_with_empty_axes", 0)
    m.require(axes or not all_of_none, "without axes this ReduceSum reduces nothing")
    m.supports(kind, like=x)
    keepdims = m.attr(old, "keepdims", 1)
    if not axes:
        return op.node(kind, x, keepdims=keepdims)
    if m.opset() >= 18:
        given = m.input(1, old)
        return op.node(kind, x, given if given is not None else list(axes), keepdims=keepdims)
    return op.node(kind, x, axes=axes, keepdims=keepdims)


class FuseSoftmax(RewritePass):
    """e / ReduceSum(e) -> Softmax(x), e = Exp(x - ReduceMax(x)), along one axis."""

    name: ClassVar[str] = "fuse-softmax"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, most: Any = None, every: Any = None) -> Any:
        power = op.Exp(op.Sub(x, op.ReduceMax(x, most, _as="max")))
        total = op.ReduceSum(power, every, _as="sum")
        return [op.Div(power, total), op.Mul(power, op.Reciprocal(total))]

    def rewrite(self, op: Builder, m: Match, x: ir.Value, *_: ir.Value | None) -> ir.Value:
        axis = _one_axis(m, x)
        m.supports("Softmax", like=x)
        return op.Softmax(x, axis=axis)


class FuseLogSoftmax(RewritePass):
    """d - Log(ReduceSum(Exp(d))) -> LogSoftmax(x), d = x - ReduceMax(x), along one axis."""

    name: ClassVar[str] = "fuse-log-softmax"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(self, op: PatternBuilder, x: Any, most: Any = None, every: Any = None) -> Any:
        below = op.Sub(x, op.ReduceMax(x, most, _as="max"))
        return op.Sub(below, op.Log(op.ReduceSum(op.Exp(below), every, _as="sum")))

    def rewrite(self, op: Builder, m: Match, x: ir.Value, *_: ir.Value | None) -> ir.Value:
        axis = _one_axis(m, x)
        m.supports("LogSoftmax", like=x)
        return op.LogSoftmax(x, axis=axis)


def _one_axis(m: Match, x: ir.Value) -> int:
    """The one axis along which "max" and "sum" reduce, keeping their dims."""
    m.require(m.is_float(x) and m.opset() >= 13, "Softmax is along one axis from opset 13")
    found = []
    for label in ("max", "sum"):
        m.require(m.attr(label, "keepdims", 1) == 1, f"the {label} drops its axis")
        axes = m.axes(m[label]) or ()
        m.require(len(axes) == 1, f"the {label} is not along one axis")
        found.append(m.axis(axes[0], m.rank(x)))
    m.require(found[0] == found[1], "maximum and sum are along different axes")
    return found[0] - m.rank(x)


class FuseGlobalPool(NodePass):
    """ReduceMean(x, all spatial axes) -> GlobalAveragePool(x), keeping dims; also AveragePool over the whole."""

    name: ClassVar[str] = "fuse-global-pool"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("ReduceMean", "AveragePool")
    # A mean along spatial axes may be the beginning of a normalisation.
    after: ClassVar[tuple[str, ...]] = ("fuse-instance-norm", "fuse-layer-norm")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x = node.inputs[0]
        rank = m.rank(x)
        if rank not in (4, 5) or x is None:
            raise Uninteresting("not an image or a volume")
        m.require(m.is_float(x), "not of floats")
        if node.op_type == "ReduceMean":
            axes = m.axes(node)
            if not axes or sorted(m.axis(axis, rank) for axis in axes) != list(range(2, rank)):
                raise Uninteresting("not over all spatial axes")
            m.require(m.attr(node, "keepdims", 1) == 1, "the result has no spatial dims")
        else:
            self._whole(m, node, rank)
        m.not_quantized([x, node.outputs[0]])
        m.supports("GlobalAveragePool", like=x)
        return op.GlobalAveragePool(x)

    def _whole(self, m: Match, node: ir.Node, rank: int) -> None:
        kernel = tuple(m.attr(node, "kernel_shape", ()))
        if any(not isinstance(dim, int) for dim in m.dims(node.inputs[0])[2:]):
            raise Uninteresting("the spatial dims are not known")
        size = tuple(m.dim(node.inputs[0], axis) for axis in range(2, rank))
        if kernel != size:
            raise Uninteresting("the window is not the whole")
        m.require(not any(m.attr(node, "pads", ())), "the window reaches over padding")
        m.require(m.attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID"), "the window reaches over padding")
        m.require(all(d == 1 for d in m.attr(node, "dilations", ())), "a dilated window")
