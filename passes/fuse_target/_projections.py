"""The linear layers that make q, k and v: found behind a view, read as weight and bias in head order.

Lives here: MatMul + Add with constant weights, also when one layer makes two or all three of q, k and v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.match import Match
    from graphopt.passes.fuse_target._layout import Factor, View


@dataclass(frozen=True)
class Projection:
    """One of q, k and v as x @ weight + bias.

    Attributes:
        source: x, [batch, positions, width].
        product: x @ weight before the bias was added; None when the layer makes others too.
        weight: the constant [width, outputs of the layer].
        bias: the constant [outputs of the layer], None when the layer has none.
        picked: the factors of the layer's outputs, with the index of those that were selected.
    """

    source: ir.Value
    product: ir.Value | None
    weight: ir.Value
    bias: ir.Value | None
    picked: tuple[Factor, ...]

    def read_weight(self, m: Match) -> np.ndarray:
        """The columns of the weight that belong to this projection, [width, heads * channels]."""
        weight = m.const(self.weight)
        return self._pick(weight.reshape(weight.shape[0], *self._sizes()), 1).reshape(weight.shape[0], -1)

    def read_bias(self, m: Match) -> np.ndarray | None:
        """The elements of the bias that belong to this projection, [heads * channels]."""
        if self.bias is None:
            return None
        return self._pick(m.const(self.bias).reshape(self._sizes()), 0).reshape(-1)

    def _sizes(self) -> tuple[int, ...]:
        return tuple(int(factor.size) for factor in self.picked)

    def _pick(self, array: Any, first: int) -> Any:
        chosen = (slice(None),) * first + tuple(slice(None) if f.index is None else f.index for f in self.picked)
        return array[chosen]


def find_projection(m: Match, view: View) -> Projection:
    """The linear layer that makes the viewed value [batch, positions, outputs].

    Raises:
        NoMatch: no MatMul by a constant matrix, or the outputs do not divide into known heads.
    """
    node = view.value.producer()
    m.require(node is not None and node.domain == "" and node.graph is m.root.graph, "not made by a linear layer")
    assert node is not None
    picked = view.axes[-1]
    m.require(len(view.axes) == 3 and all(isinstance(factor.size, int) for factor in picked), "heads of unknown size")
    bias: ir.Value | None = None
    if node.op_type == "Add":
        node, bias = _biased(m, node)
    m.require(node.op_type == "MatMul" and node.domain == "", f"made by {node.op_type}, not by a linear layer")
    source, weight = node.inputs[0], node.inputs[1]
    assert source is not None and weight is not None
    m.require(m.is_const(weight) and m.rank(weight) == 2, "the weight is no constant matrix")
    m.require(m.rank(source) == 3, "the layer's input has no batch and positions")
    m.not_quantized((weight, bias, source))
    alone = not any(factor.index is not None for factor in picked)
    return Projection(source, node.outputs[0] if alone else None, weight, bias, picked)


def _biased(m: Match, node: ir.Node) -> tuple[ir.Node, ir.Value]:
    for data, other in ((0, 1), (1, 0)):
        product, bias = node.inputs[data], node.inputs[other]
        made = product.producer() if product is not None else None
        if made is None or made.op_type != "MatMul" or bias is None or not m.is_const(bias):
            continue
        dims = m.shape(bias)
        if len(dims) == 1 and m.equal(dims[0], m.dims(product)[-1]):
            return made, bias
    raise NoMatch("made by an Add that is not the bias of a linear layer")
