"""Softmax, LogSoftmax and Hardmax worked on a matrix made of all dims from `axis` on; since opset 13 on one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch

if TYPE_CHECKING:
    from graphopt.passes.capture._opset_rules import Edit


def softmax(edit: Edit) -> None:
    """axis counts as one axis where the dims behind it are 1; else Flatten in front and Reshape behind."""
    if not edit.crosses(13):
        return
    axis = edit.attr("axis", 1)
    if axis == -1:
        return
    dims = edit.dims(edit.node.inputs[0])
    rank = len(dims)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis < rank:
        raise NoMatch(f"its axis {axis} is out of range")
    if axis == rank - 1:
        edit.later(lambda: edit.set("axis", -1))
    elif all(dim == 1 for dim in dims[axis + 1 :]):
        edit.later(lambda: edit.set("axis", axis))
    else:
        edit.later(lambda: _flattened(edit, axis))


def _flattened(edit: Edit, axis: int) -> None:
    """The node itself becomes the Reshape, so that its outputs stay what they are."""
    node, rewriter = edit.node, edit.ctx.rewriter
    source, op_type, name = node.inputs[0], node.op_type, node.name
    builder = rewriter.builder(node)
    static = edit.ctx.shapes.static(source)
    shape = builder.Shape(source) if static is None or 0 in static else builder.const(list(static), "shape")
    flat = builder.node(op_type, builder.Flatten(source, axis=axis), axis=-1)
    rewriter.insert_before(node, builder.nodes)
    edit.drop("axis")
    edit.rename("Reshape")
    edit.connect([flat, shape])
    inner = flat.producer()
    node.name, inner.name = inner.name, name
