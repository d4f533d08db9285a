"""How an op is done on permuted data: `f(Transpose(u, perm)) = Transpose(g(u), perm)`, and what g is.

Lives here: one rule per kind of op, as a table. Which transposes to move is decided in sink_transposes.py.
A rule gets the node and the perm and says how inputs and attributes change, or raises NoMatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor, nbytes
from graphopt.ir.optable import QUANTIZED_OPS

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.match import Match

UNARY = frozenset(
    (
        *(
            "Abs",
            "Acos",
            "Acosh",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "BitwiseNot",
            "Cast",
            "Ceil",
            "Celu",
            "Clip",
            "Cos",
        ),
        *(
            "Cosh",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "IsInf",
            "IsNaN",
            "LeakyRelu",
            "Log",
        ),
        *("Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh"),
        *("Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu", "Identity"),
    )
)
BROADCAST = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "PRelu", "Where"),
        *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"),
        *("BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    )
)
_SOFTMAX = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_EXTREMES = frozenset({"ReduceMax", "ReduceMin"})
_SUMS = frozenset(
    (
        *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2"),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
    )
)
_REDUCE = _EXTREMES | _SUMS
OPS = UNARY | BROADCAST | _SOFTMAX | _REDUCE | {"Concat", "Split", "Slice", "Pad", "ArgMax", "ArgMin", "Squeeze"}
SHRINKING = _REDUCE | {"Slice", "ArgMax", "ArgMin"}
"""Ops whose result is smaller than their data: a Transpose behind them is cheaper."""
SHARED_LIMIT = 1 << 16
"""Bytes of a constant that is copied though others use it too."""


@dataclass(frozen=True)
class Form:
    """A node on permuted data.

    Attributes:
        data: indices of inputs that are permuted like the data.
        constants: inputs that are replaced by a constant, by index, each as a function that makes it.
        attributes: attributes that change.
        ends: True when the result is the same as before, so that no Transpose is needed behind it.
    """

    data: tuple[int, ...] = (0,)
    constants: dict[int, Callable[[], Any]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    ends: bool = False


Rule = Callable[["Match", "ir.Node", Sequence[int]], Form]


def form(m: Match, node: ir.Node, perm: Sequence[int], *, sums: bool) -> Form:
    """How `node` is done on data whose axis `perm[i]` is axis `i` of what it gets now.

    Args:
        m: A match at the node.
        node: Its op is one of OPS.
        perm: The perm of the Transpose in front of it.
        sums: Whether floats may be summed in another order.

    Raises:
        NoMatch: it cannot be done so, or not without knowing more.
    """
    values = [*node.inputs, *node.outputs]
    near = [value.producer() for value in node.inputs if value is not None]
    near += [use.node for output in node.outputs for use in output.uses()]
    if any(other is not None and other.op_type in QUANTIZED_OPS for other in near):
        raise NoMatch("it belongs to a quantize/dequantize group")
    if any(attr.is_ref() for attr in node.attributes.values()):
        raise NoMatch("an attribute is a function parameter")
    if m.rank(values[0]) != len(perm):
        first = m.rank(node.outputs[0])
        if node.op_type not in BROADCAST or first != len(perm):
            raise NoMatch("the rank is another")
    if node.op_type in UNARY:
        return Form()
    if node.op_type in BROADCAST:
        return _broadcast(m, node, perm)
    if node.op_type in _REDUCE:
        if node.op_type in _SUMS and not sums and m.is_float(node.inputs[0]):
            raise NoMatch("it would sum in another order, which rounds differently")
        if node.op_type in _EXTREMES and m.is_float(node.inputs[0]) and m.ctx.ranges.of(node.inputs[0]).nan:
            raise NoMatch("what it makes of a NaN depends on the order of the elements")
        return _reduce(m, node, perm)
    return _RULES[node.op_type](m, node, perm)


def _broadcast(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
    rank = len(perm)
    if m.rank(node.outputs[0]) != rank:
        raise NoMatch("the rank changes")
    data: list[int] = []
    constants: dict[int, Callable[[], Any]] = {}
    for index, value in enumerate(node.inputs):
        have = m.rank(value)
        if have == 0 or all(dim == 1 for dim in m.dims(value)):
            if have == rank and not m.is_const(value):
                data.append(index)
            continue
        if m.is_const(value):
            constants[index] = _permuted_constant(m, value, perm)
        elif have == rank:
            data.append(index)
        else:
            raise NoMatch(f"its input {index} has another rank")
    return Form(tuple(data), constants)


def _permuted_constant(m: Match, value: ir.Value | None, perm: Sequence[int]) -> Callable[[], Any]:
    tensor = const_tensor(value)
    assert tensor is not None and value is not None
    if nbytes(tensor) > (m.ctx.max_bytes if len(value.uses()) == 1 else SHARED_LIMIT):
        raise NoMatch(f"a permuted copy of {value.name!r} is too large")

    def make() -> Any:
        import numpy as np

        array = m.const(value)
        inverse = np.argsort(perm)
        return np.transpose(array.reshape((1,) * (len(perm) - array.ndim) + array.shape), inverse)

    return make


def _along(default: int) -> Rule:
    """Ops with one `axis` attribute along which they work."""

    def rule(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
        axis = perm[m.axis(m.attr(node, "axis", default), len(perm))]
        data = tuple(range(len(node.inputs))) if node.op_type == "Concat" else (0,)
        return Form(data, attributes={"axis": axis})

    return rule


def _softmax(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
    if m.opset() < 13:
        raise NoMatch("before opset 13 it flattens all axes behind its own")
    was = m.axis(m.attr(node, "axis", -1), len(perm))
    if was == len(perm) - 1 != perm[was]:
        raise NoMatch("it runs along the last axis, which is the fastest")
    return Form(attributes={"axis": perm[was]})


def _reduce(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
    given = m.axes(node)
    keep = bool(m.attr(node, "keepdims", 1))
    if not given:
        if m.attr(node, "noop_with_empty_axes", 0):
            raise NoMatch("it reduces nothing")
        return Form(ends=True)
    axes = sorted(perm[m.axis(axis, len(perm))] for axis in given)
    ends = not keep and _in_order([p for p in perm if p not in axes])
    if not keep and not ends:
        raise NoMatch("the axes that remain would stand in another order")
    return _with_axes(node, axes, ends)


def _squeeze(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
    given = m.axes(node)
    if not given:
        raise NoMatch("a Squeeze has no axes")
    axes = sorted(perm[m.axis(axis, len(perm))] for axis in given)
    if not _in_order([p for p in perm if p not in axes]):
        raise NoMatch("the axes that remain would stand in another order")
    return _with_axes(node, axes, True)


def _arg(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
    axis = perm[m.axis(m.attr(node, "axis", 0), len(perm))]
    keep = bool(m.attr(node, "keepdims", 1))
    if not keep and not _in_order([p for p in perm if p != axis]):
        raise NoMatch("the axes that remain would stand in another order")
    return Form(attributes={"axis": axis}, ends=not keep)


def _with_axes(node: ir.Node, axes: list[int], ends: bool) -> Form:
    if "axes" in node.attributes:
        return Form(attributes={"axes": axes}, ends=ends)
    return Form(constants={1: lambda: axes}, ends=ends)


def _slice(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
    if m.opset() < 10:
        raise NoMatch("before opset 10 the bounds are attributes")
    if m.input(3, node) is not None:
        axes = m.ints(m.input(3, node))
    else:
        axes = tuple(range(m.dim(m.input(1, node), 0)))
    moved = [perm[m.axis(axis, len(perm))] for axis in axes]
    return Form(constants={3: lambda: moved})


def _pad(m: Match, node: ir.Node, perm: Sequence[int]) -> Form:
    if m.opset() < 11 or m.input(3, node) is not None:
        raise NoMatch("its pads are not those of all axes")
    pads, rank = m.ints(m.input(1, node)), len(perm)
    moved = [0] * (2 * rank)
    for index, axis in enumerate(perm):
        moved[axis], moved[rank + axis] = pads[index], pads[rank + index]
    return Form(constants={1: lambda: moved})


def _in_order(axes: list[int]) -> bool:
    return axes == sorted(axes)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SOFTMAX, _softmax),
    "Concat": _along(1),
    "Split": _along(0),
    "Slice": _slice,
    "Pad": _pad,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Squeeze": _squeeze,
}
