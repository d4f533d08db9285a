"""A factor that a summand keeps away from a linear op: the summand is divided by it, the weights are multiplied."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._expr import producer_is
from graphopt.passes.fuse._linear import ACTIVATIONS, copyable, linear, per_channel, rounded
from graphopt.passes.fuse.scale_conv import input_channel, times_input

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class FuseScaleShiftConv(NodePass):
    """Conv(x * s + t, w, b) -> Conv(x + t / s, w * s, b), for constants s and t per input channel.

    For summands that cannot go into the bias, because the convolution pads or because MatMul has none.
    """

    name: ClassVar[str] = "fuse-scale-shift-conv"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Conv", "ConvTranspose", "MatMul")
    after: ClassVar[tuple[str, ...]] = (*ACTIVATIONS, "fuse-scale-conv", "fuse-scale-matmul")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        position = 1 if node.op_type == "MatMul" and m.is_const(node.inputs[0]) else 0
        add, shift = _constant_operand(m, node.inputs[position], "Add")
        summed = add.inputs[0] if add.inputs[1] is shift else add.inputs[1]
        scale, factor = _constant_operand(m, summed, "Mul", "Div")
        x = scale.inputs[0] if scale.inputs[1] is factor else scale.inputs[1]
        assert x is not None
        for value in (node.inputs[position], summed):
            assert value is not None
            m.sole_use(value)
        m.not_quantized([x, summed, node.inputs[position]])
        m.require(m.same_shape(x, add.outputs[0]), "a constant makes the value larger")
        lin = linear(m, node)
        copyable(m, lin.weight)
        channel = input_channel(m, node, position)
        s, t = per_channel(m, factor, *channel), per_channel(m, shift, *channel)
        m.require((s != 0).all(), "the factor is zero")
        s = 1.0 / s if scale.op_type == "Div" else s
        inputs = list(node.inputs)
        inputs[1 - position] = rounded(
            op, m, times_input(m, node, m.const(lin.weight).astype(np.float64), s), lin.weight
        )
        inputs[position] = op.Add(x, rounded(op, m, _like(t / s, channel), shift))
        m.interior = [add, scale]
        return op.clone(node, inputs)


def _constant_operand(m: Match, value: ir.Value | None, *ops: str) -> tuple[ir.Node, ir.Value]:
    """The op that makes `value`, and its constant operand; a divisor is the second operand."""
    node = value.producer() if value is not None and producer_is(m, value, *ops) else None
    if node is None:
        raise Uninteresting("no factor and summand in front")
    for at in (1, 0) if node.op_type != "Div" else (1,):
        constant = node.inputs[at]
        if constant is not None and m.is_const(constant) and not m.is_const(node.inputs[1 - at]):
            return node, constant
    raise Uninteresting("no constant factor and summand in front")


def _like(array: np.ndarray, channel: tuple[int, int, int]) -> np.ndarray:
    """Numbers along the channel, shaped to broadcast against the value."""
    rank, axis, _ = channel
    return array if array.ndim == 0 else array.reshape([-1 if at == axis else 1 for at in range(rank)])
