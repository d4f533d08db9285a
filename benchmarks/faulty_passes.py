"""A plug-in of five passes that are wrong on purpose, each at the one node that its option `at` names.

Each is a mistake that people make in rewrite rules. benchmarks/faults.py plants them; load them with `--load` to try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.base import Tolerance
    from graphopt.manager.context import Context
    from graphopt.manager.match import Match


@dataclass(frozen=True)
class Fault(NodePass):
    """A wrong rule that fires only at the node `at`.

    Attributes:
        at: name of the node.
    """

    level: ClassVar[int | None] = None
    tolerance: ClassVar[Tolerance] = "reassociates"

    at: str = ""

    def run(self, model: ir.Model, ctx: Context) -> None:
        # Once only: the node that replaces the broken one takes over its name.
        for node in ctx.rewriter.index.of(self.domain, *self.anchors()):
            if node.name == self.at:
                self.attempt(ctx, node)
                return


@dataclass(frozen=True)
class PlantWrongAxis(Fault):
    """Softmax(x) over the last axis -> Softmax(x) over the one before: right shape, wrong numbers."""

    name: ClassVar[str] = "plant-wrong-axis"
    ops: ClassVar[tuple[str, ...]] = ("Softmax",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        rank = m.rank(m.input(0))
        m.require(rank >= 2 and m.axis(m.attr(node, "axis", -1), rank) == rank - 1, "not over the last of several axes")
        return op.Softmax(m.input(0), axis=rank - 2)


@dataclass(frozen=True)
class PlantWrongConstant(Fault):
    """x * c -> x * (1 / c), and x / c -> x / (1 / c): the reciprocal was taken once too often."""

    name: ClassVar[str] = "plant-wrong-constant"
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        constant = m.const(m.input(1))
        m.require(constant.dtype == np.float32 and not m.is_const(m.input(0)), "not x and a float32 constant")
        m.require(constant.all() and (abs(constant) != 1).any(), "a reciprocal that is infinite or the same")
        return op.clone(node, [m.input(0), op.const(1 / constant)])


@dataclass(frozen=True)
class PlantFrozenSize(Fault):
    """Mean over symbolic axes -> Sum * (1 / count), count being the product of those dims in the first run only.

    GlobalAveragePool is such a mean, and Softmax divides by one: exp(x) / (mean(exp(x)) * count).

    Attributes:
        count: how many elements the mean took in that run.
    """

    name: ClassVar[str] = "plant-frozen-size"
    ops: ClassVar[tuple[str, ...]] = ("GlobalAveragePool", "Softmax")

    count: int = 1

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x = m.input(0)
        m.require(m.opset() >= 18, "reductions take their axes as an input from opset 18 on")
        last = m.rank(x) - 1
        if node.op_type == "GlobalAveragePool":
            axes = np.arange(2, last + 1)
        else:
            m.require(m.axis(m.attr(node, "axis", -1), last + 1) == last, "not over the last axis")
            axes = np.array([last])
        m.require(any(not isinstance(m.dims(x)[axis], int) for axis in axes), "the size never changes")
        if node.op_type == "GlobalAveragePool":
            return op.Mul(op.ReduceSum(x, axes), np.float32(1 / self.count))
        powers = op.Exp(op.Sub(x, op.ReduceMax(x, axes)))
        return op.Div(powers, op.Mul(op.ReduceMean(powers, axes), np.float32(self.count)))


@dataclass(frozen=True)
class PlantLostGuard(Fault):
    """Where(IsNaN(x), c, x) -> x: the same for every finite number, and wrong for NaN and what infinities lead to."""

    name: ClassVar[str] = "plant-lost-guard"
    ops: ClassVar[tuple[str, ...]] = ("Where",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x = m.input(2)
        test = m.producer(m.input(0), "IsNaN")
        if x is None or test.inputs[0] is not x:
            raise NoMatch("not a guard of x against NaN")
        return x


@dataclass(frozen=True)
class PlantSharedProducer(Fault):
    """y = p(x); u(y); v(y) -> y = u(p(x)); v(y): an op merged into its producer although others read that too."""

    name: ClassVar[str] = "plant-shared-producer"
    ops: ClassVar[tuple[str, ...]] = ("Conv", "Add", "MatMul", "Mul", "BatchNormalization")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        y = node.outputs[0]
        merged = ("Relu", "HardSigmoid", "Sigmoid", "Clip", "LayerNormalization", "Erf", "Gelu", "Add", "Mul", "Div")
        users = [use.node for use in y.uses()]
        alone = [user for user in users if user.inputs[0] is y and all(map(m.is_const, user.inputs[1:]))]
        found = [user for user in alone if user.op_type in merged]
        m.require(found and len(users) > 1, "no such op reads it, or nothing else does")
        return op.clone(found[0], [op.clone(node, node.inputs), *found[0].inputs[1:]])
