"""The QOperator form: nodes that take and give codes, for runtimes that do not know Dequantize - op - Quantize groups.

Not here: choosing scales (quantize_static.py). Ops without a standard QOperator stay in the QDQ form around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.quantize._kinds import clip_high, kind_of

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

_CODES = frozenset({"INT8", "UINT8"})


class ToQOperator(NodePass):
    """Quantize(f(Conv(Dequantize(x), Dequantize(w), Dequantize(b)))) -> QLinearConv(x, w, b), with all their scales.

    MatMul likewise -> QLinearMatMul. f is nothing, or a Relu or Clip that the saturation of the codes replaces. Kernels
    multiply sums by a rounded ratio of scales, so that a result on the border of two codes may become the other one.
    """

    name: ClassVar[str] = "to-qoperator"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    tolerance: ClassVar[Tolerance] = "lossy"
    after: ClassVar[tuple[str, ...]] = ("round-weights", "correct-bias", "integer-io")
    ops: ClassVar[tuple[str, ...]] = ("QuantizeLinear",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        given = node.inputs[0]
        compute = _computed(m, given, node)
        if compute is None:
            raise Uninteresting("it quantizes no product")
        m.require("axis" not in node.attributes or m.rank(node.inputs[1]) == 0, "the result has a scale per channel")
        x, w = (_dequantize(m, value) for value in compute.inputs[:2])
        out = _zero(m, op, node)
        m.require(m.rank(x.inputs[1]) == 0, "the input has a scale per channel")
        m.require(m.dtype(x.inputs[0]) == m.dtype(node.outputs[0]), "input and result have codes of different types")
        _check_codes(m, x, w)
        operands = [x.inputs[0], x.inputs[1], _zero(m, op, x), w.inputs[0], w.inputs[1], _zero(m, op, w)]
        if compute.op_type == "MatMul":
            rank = m.rank(w.inputs[0])
            per_column = m.axis(m.attr(w, "axis", 1), rank) == rank - 1
            m.require(m.rank(w.inputs[1]) == 0 or per_column, "scales do not lie along columns")
            made: ir.Value = op.QLinearMatMul(*operands, node.inputs[1], out)
            return made
        m.require(m.rank(w.inputs[1]) == 0 or m.attr(w, "axis", 1) == 0, "scales do not lie along output channels")
        bias = _bias(m, compute, x, w)
        attributes = {name: attr.value for name, attr in compute.attributes.items()}
        conv: ir.Value = op.QLinearConv(*operands, node.inputs[1], out, *bias, **attributes)
        return conv


def _computed(m: Match, value: ir.Value | None, quantize: ir.Node) -> ir.Node | None:
    """The Conv or MatMul whose result a QuantizeLinear rounds, behind a clip that its codes replace."""
    maker = value.producer() if value is not None else None
    if maker is not None and kind_of(maker) == "clips":
        inner = maker.inputs[0]
        before = inner.producer() if inner is not None else None
        if before is None or before.op_type not in ("Conv", "MatMul"):
            return None
        m.sole_use(maker.outputs[0])
        _replaces(m, quantize, maker)
        maker = before
    if maker is None or maker.op_type not in ("Conv", "MatMul") or maker.domain != "":
        return None
    m.sole_use(maker.outputs[0])
    return maker


def _replaces(m: Match, quantize: ir.Node, clip: ir.Node) -> None:
    """Codes begin at zero and end where the clip does.

    Raises:
        NoMatch: they do not.
    """
    dtype = m.dtype(quantize.outputs[0])
    m.require(dtype.name in _CODES, f"codes are {dtype.name}")
    lowest, highest = (0, 255) if dtype.name == "UINT8" else (-128, 127)
    has_zero = len(quantize.inputs) > 2 and quantize.inputs[2] is not None
    zero = int(m.scalar(quantize.inputs[2])) if has_zero else 0
    high = clip_high(clip)
    assert high is not None
    m.require(zero == lowest, "its codes go below zero, where the clip cuts")
    top = (highest - zero) * float(m.scalar(quantize.inputs[1]))
    m.require(top <= high * (1 + 1e-6), "its codes go beyond where the clip cuts")


def _dequantize(m: Match, value: ir.Value | None) -> ir.Node:
    maker = m.producer(value, "DequantizeLinear")
    m.require(m.attr(maker, "block_size", 0) == 0, "scales are per block")
    return maker


def _check_codes(m: Match, *nodes: ir.Node) -> None:
    for node in nodes:
        dtype = m.dtype(node.inputs[0])
        m.require(dtype.name in _CODES, f"codes are {dtype.name}")


def _zero(m: Match, op: Builder, node: ir.Node) -> ir.Value:
    """A Q's or DQ's zero point; made where it is left out."""
    import numpy as np

    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2]
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    made: ir.Value = op.const(np.zeros(m.shape(node.inputs[1]), m.dtype(codes).numpy()))
    return made


def _bias(m: Match, conv: ir.Node, x: ir.Node, w: ir.Node) -> list[ir.Value]:
    """The int32 codes of a Conv's bias, in steps of the input's scale times the weights'.

    Raises:
        NoMatch: it has other steps.
    """
    import numpy as np

    if len(conv.inputs) < 3 or conv.inputs[2] is None:
        return []
    maker = _dequantize(m, conv.inputs[2])
    m.require(m.dtype(maker.inputs[0]).name == "INT32", "its bias is not int32")
    if len(maker.inputs) > 2 and maker.inputs[2] is not None:
        m.require(not m.const(maker.inputs[2]).any(), "its bias has a zero point")
    step = m.const(x.inputs[1]).astype(np.float32) * m.const(w.inputs[1])
    m.require(np.allclose(m.const(maker.inputs[1]), step, rtol=1e-5, atol=0), "its bias has steps of its own")
    codes = maker.inputs[0]
    assert codes is not None
    return [codes]
