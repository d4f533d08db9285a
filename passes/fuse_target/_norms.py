"""Layer and RMS normalizations as the exporters write them, seen from their last node.

Lives here: recognising one and its parameters. Not here: what it is fused with (skip_norm.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_scalar
from graphopt.manager.worklist import Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.match import Match


@dataclass(frozen=True)
class Norm:
    """A normalization over the last axis.

    Attributes:
        source: what is normalized.
        scale: 1-D parameter, None where it was folded away.
        bias: 1-D parameter, None for an RMS norm and where there is none.
        epsilon: added to the variance or mean square.
        centred: True for a layer norm, False for an RMS norm.
        nodes: its nodes other than the last.
    """

    source: ir.Value
    scale: ir.Value | None
    bias: ir.Value | None
    epsilon: float
    centred: bool
    nodes: tuple[ir.Node, ...] = ()


def find_norm(m: Match, node: ir.Node) -> Norm:
    """The normalization whose last node is `node`.

    Raises:
        Uninteresting: there is none.
        NoMatch: its axis or parameters do not fit.
    """
    if node.op_type == "LayerNormalization":
        return _layer_norm(m, node)
    if node.op_type == "RMSNormalization":
        return _rms_norm(m, node)
    if node.op_type in ("Mul", "Div"):
        return _decomposed(m, node)
    raise Uninteresting("no normalization")


def _layer_norm(m: Match, node: ir.Node) -> Norm:
    source, scale, bias = m.input(0, node), m.input(1, node), m.input(2, node)
    assert source is not None and scale is not None
    rank = m.rank(source)
    m.require(m.axis(m.attr(node, "axis", -1), rank) == rank - 1, "the norm covers more than the last axis")
    m.require(len(node.outputs) == 1 or not any(out.uses() for out in node.outputs[1:]), "mean or deviation is used")
    return Norm(source, scale, bias, float(m.attr(node, "epsilon", 1e-5)), centred=True)


def _rms_norm(m: Match, node: ir.Node) -> Norm:
    source, scale = m.input(0, node), m.input(1, node)
    assert source is not None and scale is not None
    rank = m.rank(source)
    m.require(m.axis(m.attr(node, "axis", -1), rank) == rank - 1, "the norm covers more than the last axis")
    return Norm(source, scale, None, float(m.attr(node, "epsilon", 1e-5)), centred=False)


def _decomposed(m: Match, node: ir.Node) -> Norm:
    """w * (x * 1/sqrt(mean(x^2) + e)), with x / sqrt(...) and (...)^-0.5 as variants; w may have been folded away."""
    for first, second in ((0, 1), (1, 0)) if node.op_type == "Mul" else ():
        scale, normal = node.inputs[first], node.inputs[second]
        made = _made_by(m, normal, "Mul", "Div")
        if scale is None or made is None or scale.shape is None or len(scale.shape) != 1:
            continue
        found = _normalized(m, made)
        if found is None:
            continue
        source, epsilon, nodes = found
        return Norm(source, scale, None, epsilon, centred=False, nodes=(made, *nodes))
    found = _normalized(m, node)
    if found is None:
        raise Uninteresting("no normalization")
    m.require(not _is_scaled_next(node), "the norm's scale follows")
    source, epsilon, nodes = found
    return Norm(source, None, None, epsilon, centred=False, nodes=nodes)


def _is_scaled_next(node: ir.Node) -> bool:
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Mul" or users[0].domain != "":
        return False
    other = next((value for value in users[0].inputs if value is not node.outputs[0]), None)
    return other is not None and other.shape is not None and len(other.shape) == 1


def _normalized(m: Match, node: ir.Node) -> tuple[ir.Value, float, tuple[ir.Node, ...]] | None:
    """x, epsilon and the inner nodes when `node` is x / sqrt(mean(x^2) + epsilon)."""
    for first, second in ((0, 1), (1, 0)):
        source, factor = node.inputs[first], node.inputs[second]
        if source is None or (node.op_type == "Div" and first == 1):
            continue
        root = _inverse_root(m, factor) if node.op_type == "Mul" else _root(m, factor)
        if root is None:
            continue
        inside, nodes = root
        found = _mean_square(m, inside, source)
        if found is not None:
            return source, found[0], (*nodes, *found[1])
    return None


def _inverse_root(m: Match, value: ir.Value | None) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    node = _made_by(m, value, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Pow":
        inside = node.inputs[0]
        return (inside, (node,)) if inside is not None and const_scalar(node.inputs[1]) == -0.5 else None
    if node.op_type == "Div" and const_scalar(node.inputs[0]) != 1.0:
        return None
    found = _root(m, node.inputs[0 if node.op_type == "Reciprocal" else 1])
    return (found[0], (node, *found[1])) if found is not None else None


def _root(m: Match, value: ir.Value | None) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    node = _made_by(m, value, "Sqrt", "Pow")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Pow" and const_scalar(node.inputs[1]) != 0.5:
        return None
    return node.inputs[0], (node,)


def _mean_square(m: Match, value: ir.Value, source: ir.Value) -> tuple[float, tuple[ir.Node, ...]] | None:
    """Epsilon and nodes when `value` is mean(source^2, last axis) + epsilon."""
    add = _made_by(m, value, "Add")
    if add is None:
        return None
    for first, second in ((0, 1), (1, 0)):
        epsilon, mean = const_scalar(add.inputs[second]), _made_by(m, add.inputs[first], "ReduceMean")
        if epsilon is None or mean is None:
            continue
        square = _made_by(m, mean.inputs[0], "Pow", "Mul")
        if square is None or square.inputs[0] is not source:
            continue
        if square.op_type == "Pow" and const_scalar(square.inputs[1]) != 2:
            continue
        if square.op_type == "Mul" and square.inputs[1] is not source:
            continue
        rank = m.rank(source)
        axes = m.axes(mean)
        if m.attr(mean, "keepdims", 1) != 1 or axes is None or [m.axis(axis, rank) for axis in axes] != [rank - 1]:
            raise NoMatch("the mean square does not run over the last axis alone")
        return float(epsilon), (add, mean, square)
    return None


def _made_by(m: Match, value: ir.Value | None, *ops: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or node.op_type not in ops or node.graph is not m.root.graph:
        return None
    return node
