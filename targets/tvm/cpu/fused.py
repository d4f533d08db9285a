"""A fused function taken apart: the anchor block, and the elementwise chain behind it as one expression.

Relax hands over one function per group: an anchor (a contraction, a pooling) and elementwise blocks. The elementwise
blocks are inlined into one, whose expression a rule then evaluates where the anchor's result still is in registers.
Not here: what an anchor computes (the rules), and functions without an anchor (rules/generic.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import tirx
from tvm_ffi import structural_map

from graphopt.targets.tvm.cpu.inlining import ANCHOR, NotTaken, inline
from graphopt.targets.tvm.cpu.loops import Buffer, Expr, Stmt, as_index, load, loads, static, store, vectorized


@dataclass(frozen=True)
class Fused:
    """An anchor and its epilogue.

    Attributes:
        attributes: the anchor's annotations.
        reads: the buffers that the anchor reads, in order of the parameters.
        result: the buffer that the anchor writes.
        output: the buffer that the function writes.
        axes: the epilogue's index variables, one per axis of `output`; empty without an epilogue.
        value: the epilogue's expression in terms of `axes` and loads of `result`; None without an epilogue.
        steps: rounds of the anchor's loops (multiply-adds of a contraction); None when an extent is dynamic.
    """

    attributes: Mapping[str, Any]
    reads: Sequence[Buffer]
    result: Buffer
    output: Buffer
    axes: Sequence[Any]
    value: Expr | None
    steps: int | None

    def finish(self, indices: Sequence[Expr], lanes: int, accumulator: Buffer) -> Stmt:
        """Apply the epilogue to `lanes` results that begin at `indices`, and store them."""

        def at(lane: Expr) -> Stmt:
            here = [*indices[:-1], indices[-1] + lane]
            result = load(accumulator, lane)
            return store(self.output, result if self.value is None else self._evaluate(here, result), *here)

        return vectorized(lanes, at)

    def _evaluate(self, indices: Sequence[Expr], result: Expr) -> Expr:
        mapping = {axis: as_index(index, axis) for axis, index in zip(self.axes, indices, strict=True)}

        def loads(node: Any) -> Any:
            return result if node.source.same_as(self.result) else node

        return structural_map(self.value, [(tvm.ir.Var, lambda var: mapping.get(var, var)), (tvm.ir.TensorLoad, loads)])


def take_apart(function: Any) -> Fused:
    """The anchor and epilogue of a fused function.

    Raises:
        NotTaken: there is no anchor, or what surrounds it is not an elementwise epilogue.
    """
    _, blocks = inline(function, lambda block, users: True)
    anchors = [block for block in blocks if ANCHOR in block.annotations]
    if len(anchors) != 1:
        raise NotTaken(f"{len(anchors)} anchors")
    others = [block for block in blocks if ANCHOR not in block.annotations]
    alone = anchor_alone(anchors[0], function)
    result = alone.result
    if not others:
        return alone
    if len(others) > 1:
        raise NotTaken(f"{len(others)} blocks behind the anchor")
    body = others[0].body
    axes = [axis.var for axis in others[0].iter_vars]
    _check_elementwise(body, axes, result)
    return replace(alone, output=body.buffer, axes=axes, value=body.value)


def anchor_alone(anchor: Any, function: Any) -> Fused:
    """An anchor block without an epilogue.

    Raises:
        NotTaken: it reads a value computed in the same function.
    """
    result = anchor.writes[0].source
    read = [region.source for region in anchor.reads if not region.source.same_as(result)]
    reads = [param for param in function.params if any(param.same_as(source) for source in read)]
    if len(reads) < len(read):
        raise NotTaken("the anchor reads a value computed in the same function")
    extents = [static(axis.dom.extent) for axis in anchor.iter_vars]
    steps = math.prod(extents) if all(isinstance(extent, int) for extent in extents) else None
    return Fused(anchor.annotations, reads, result, result, (), None, steps)


def _check_elementwise(body: Any, axes: Sequence[Any], result: Buffer) -> None:
    if not isinstance(body, tirx.BufferStore) or not _same(body.indices, axes):
        raise NotTaken("the epilogue moves elements")
    if any(node.source.same_as(result) and not _same(node.indices, axes) for node in loads(body.value)):
        raise NotTaken("the epilogue reads the anchor's result at other positions")


def _same(indices: Sequence[Any], axes: Sequence[Any]) -> bool:
    return len(indices) == len(axes) and all(index.same_as(axis) for index, axis in zip(indices, axes, strict=True))
