"""Multiplications and additions by constants behind a linear op, folded into its weights and bias.

A scalar factor also travels upwards through ops that only move elements, such as the head split of attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._linear import ACTIVATIONS, fold, linear, per_channel, rounded

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


class _Scale(NodePass):
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Neg")
    after: ClassVar[tuple[str, ...]] = ACTIVATIONS
    linear_ops: ClassVar[frozenset[str]] = frozenset()

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        value, constant = _operands(m, node)
        path = self._path(m, value)
        base = path[-1].outputs[0]
        lin = linear(m, path[-1])
        axis, rank = (
            (lin.axis, lin.rank) if len(path) == 1 or path[0].op_type in ("Add", "Sub") else (-1, m.rank(value))
        )
        factor = _factor(m, node, constant, rank, axis, lin.count)
        if any(step.op_type in _MOVES for step in path[:-1]):
            m.require(factor.ndim == 0, "a factor per channel behind an op that moves elements")
        m.interior = path
        made = fold(op, m, lin, factor, None)
        for step in reversed(path[:-1]):
            made = _again(op, m, step, base, made, factor, (lin.rank, lin.axis, lin.count))
            base = step.outputs[0]
        return made

    def _path(self, m: Match, value: ir.Value) -> list[ir.Node]:
        """The nodes from `value` up to its linear op, which nothing else uses."""
        path: list[ir.Node] = []
        while len(path) < 8:
            step = value.producer()
            if step is None or step.domain != "" or step.graph is not m.root.graph:
                break
            m.sole_use(value)
            path.append(step)
            if step.op_type in self.linear_ops:
                return path
            if step.op_type in _MOVES or (step.op_type in ("Add", "Sub") and m.is_const(step.inputs[1])):
                found = step.inputs[0]
            elif step.op_type == "Add" and m.is_const(step.inputs[0]):
                found = step.inputs[1]
            else:
                break
            assert found is not None
            value = found
        raise Uninteresting("no linear op in front")


def _operands(m: Match, node: ir.Node) -> tuple[ir.Value, ir.Value | None]:
    a = node.inputs[0]
    if node.op_type == "Neg":
        assert a is not None
        return a, None
    b = node.inputs[1]
    assert a is not None and b is not None
    if m.is_const(b) and not m.is_const(a):
        return a, b
    if node.op_type == "Mul" and m.is_const(a) and not m.is_const(b):
        return b, a
    raise Uninteresting("no constant operand")


def _factor(m: Match, node: ir.Node, constant: ir.Value | None, rank: int, axis: int, count: int) -> np.ndarray:
    import numpy as np

    if constant is None:
        return np.asarray(-1.0)
    factor = per_channel(m, constant, rank, axis, count)
    if node.op_type == "Div":
        m.require((factor != 0).all(), "a division by zero")
        factor = 1.0 / factor
    return factor


def _again(
    op: Builder,
    m: Match,
    step: ir.Node,
    old: ir.Value,
    new: ir.Value,
    factor: np.ndarray,
    channel: tuple[int, int, int],
) -> ir.Value:
    """The step between linear op and multiplication, behind the new linear op: a constant summand is scaled too."""
    inputs = [new if value is old else value for value in step.inputs]
    if step.op_type in ("Add", "Sub"):
        at = 1 if step.inputs[0] is old else 0
        summand = step.inputs[at]
        assert summand is not None
        if factor.ndim == 0:
            exact = m.const(summand).astype("float64") * factor
        else:
            exact = per_channel(m, summand, *channel) * factor
            exact = exact.reshape([-1 if axis == channel[1] else 1 for axis in range(channel[0])])
        inputs[at] = rounded(op, m, exact, summand)
    return op.clone(step, inputs)


@dataclass(frozen=True)
class FuseConvScale(_Scale):
    """Conv(x, w, b) * s -> Conv(x, w * s, b * s), for a constant s per channel.

    Also division and Neg, and behind ConvTranspose, Gemm and BatchNormalization.
    """

    name: ClassVar[str] = "fuse-conv-scale"
    linear_ops: ClassVar[frozenset[str]] = frozenset({"Conv", "ConvTranspose", "Gemm", "BatchNormalization"})


@dataclass(frozen=True)
class FuseMatMulScale(_Scale):
    """(MatMul(x, w) + b) * s -> MatMul(x, w * s) + b * s, for constants w, b, s; s is scalar or per column."""

    name: ClassVar[str] = "fuse-matmul-scale"
    linear_ops: ClassVar[frozenset[str]] = frozenset({"MatMul"})


class FuseConvBias(NodePass):
    """Conv(x, w, b) + c -> Conv(x, w, b + c), for a constant c per channel.

    Also - c and c -, and behind ConvTranspose, Gemm and BatchNormalization.
    """

    name: ClassVar[str] = "fuse-conv-bias"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Add", "Sub")
    after: ClassVar[tuple[str, ...]] = ACTIVATIONS

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        a, b = node.inputs[0], node.inputs[1]
        swapped = m.is_const(a)
        value, constant = (b, a) if swapped else (a, b)
        base = value.producer() if value is not None else None
        if (
            base is None
            or base.op_type not in FuseConvScale.linear_ops
            or base.domain != ""
            or not m.is_const(constant)
        ):
            raise Uninteresting("not a constant added to a linear op")
        assert value is not None and constant is not None
        m.producer(value, base.op_type)
        m.sole_use(value)
        lin = linear(m, base)
        shift = per_channel(m, constant, lin.rank, lin.axis, lin.count)
        m.interior = [base]
        if node.op_type == "Sub" and swapped:
            return fold(op, m, lin, np.asarray(-1.0), shift)
        return fold(op, m, lin, None, -shift if node.op_type == "Sub" else shift)
