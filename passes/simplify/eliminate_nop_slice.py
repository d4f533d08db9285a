"""Slice, Pad and Resize that keep everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EliminateNopSlice(NodePass):
    """Slice(x) -> x, and so for Pad and Resize, where every element keeps its place."""

    name: ClassVar[str] = "eliminate-nop-slice"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Slice", "Pad", "Resize", "Upsample")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x, out = node.inputs[0], node.outputs[0]
        if x is None or not m.same_shape(x, out):
            raise Uninteresting("the shape changes, or is not known to stay")
        if node.op_type == "Slice":
            # With positive steps, as many elements as there are means all of them in their order.
            steps = m.ints(node.inputs[4]) if m.input(4) is not None else (1,)
            m.require(all(step > 0 for step in steps), "a step is negative: the order changes")
        elif node.op_type == "Pad":
            pads = m.attr(node, "pads") if "pads" in node.attributes else m.ints(m.input(1))
            m.require(not any(pads), "it pads one side and cuts the other")
        else:
            _check_scales(m, node)
        return x


def _check_scales(m: Match, node: ir.Node) -> None:
    """The scales decide, not the sizes: 1.1 of 4 is 4 as well, sampled at other points."""
    mode = m.attr(node, "coordinate_transformation_mode", "half_pixel")
    m.require(mode != "tf_crop_and_resize", "it crops to a region")
    m.require(not m.attr(node, "antialias", 0), "it filters")
    if "scales" in node.attributes:
        scales = m.attr(node, "scales")
    else:
        position = 1 if node.op_type == "Upsample" or m.opset() < 11 else 2
        given = m.input(position)
        if given is None or (given.shape is not None and given.shape.dims == (0,)):
            return  # sizes equal to the input's: every scale is 1
        scales = m.const(given).reshape(-1).tolist()
    m.require(all(scale == 1.0 for scale in scales), f"its scales are {scales}")
