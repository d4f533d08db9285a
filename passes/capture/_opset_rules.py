"""How a node of an older opset is written in a newer one, op by op.

A rule looks first and raises NoMatch where it cannot tell; what it changes is deferred (`edit.later`), so that either
all nodes of a model are converted or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context


class Edit:
    """One node on its way from opset `have` to opset `to`."""

    def __init__(self, ctx: Context, node: ir.Node, have: int, to: int) -> None:
        self.ctx = ctx
        self.node = node
        self.have = have
        self.to = to
        self.actions: list[Callable[[], None]] = []

    def crosses(self, version: int) -> bool:
        """Whether the change of that opset lies on the way."""
        return self.have < version <= self.to

    # -- looking -------------------------------------------------------------------------------------------------

    def attr(self, name: str, default: Any = None) -> Any:
        attr = self.node.attributes.get(name)
        if attr is None:
            return default
        if attr.is_ref():
            raise NoMatch(f"attribute {name!r} is a parameter of the function around it")
        return attr.value

    def has(self, name: str) -> bool:
        return name in self.node.attributes

    def inputs(self) -> list[ir.Value | None]:
        return list(self.node.inputs)

    def dims(self, value: ir.Value | None) -> Sequence[int | ir.SymbolicDim]:
        dims = self.ctx.shapes.dims(value)
        if dims is None:
            raise NoMatch("the rank of its input is unknown")
        return dims

    def dtype(self, value: ir.Value | None) -> ir.DataType:
        found = value.dtype if value is not None else None
        if found is None and value is not None:
            found = self.ctx.shapes.dtype(value)
        if found is None:
            raise NoMatch("the type of its input is unknown")
        return found

    def unused_outputs_after(self, count: int) -> None:
        """Raise NoMatch when an output beyond the first `count` is used."""
        if any(out.uses() or out.is_graph_output() for out in self.node.outputs[count:]):
            raise NoMatch(f"its output {count} and later ones mean something else in newer opsets")

    # -- changing, when the whole model can be converted --------------------------------------------------------

    def later(self, action: Callable[[], None]) -> None:
        self.actions.append(action)

    def drop(self, *names: str) -> None:
        """Remove attributes."""
        for name in names:
            self.node.attributes.pop(name, None)

    def set(self, name: str, value: int | str) -> None:
        from graphopt import ir

        self.node.attributes[name] = ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrString(name, value)

    def connect(self, inputs: Sequence[ir.Value | None]) -> None:
        """Replace all inputs; trailing absent ones are left out."""
        kept = list(inputs)
        while kept and kept[-1] is None:
            kept.pop()
        for index in range(len(self.node.inputs)):
            self.node.replace_input_with(index, None)
        self.node.resize_inputs(len(kept))
        for index, value in enumerate(kept):
            self.node.replace_input_with(index, value)

    def rename(self, op_type: str) -> None:
        index = self.ctx.rewriter.index
        index.remove(self.node)
        self.node.op_type = op_type
        index.add(self.node)

    def const(self, array: Any, hint: str) -> ir.Value:
        """A constant where the node can read it (a Constant node within functions)."""
        builder = self.ctx.rewriter.builder(self.node)
        value = builder.const(array, f"{self.node.name}_{hint}")
        if builder.nodes:
            self.ctx.rewriter.insert_before(self.node, builder.nodes)
        return value

    def ints(self, values: Sequence[int], hint: str) -> ir.Value:
        import numpy as np

        return self.const(np.array(values, dtype=np.int64), hint)


def _attribute_to_input(version: int, name: str, *, required: bool = False) -> Callable[[Edit], None]:
    """A list of integers that was an attribute becomes an int64 input; an absent or empty one only where required."""

    def rule(edit: Edit) -> None:
        if not edit.crosses(version):
            return
        values = edit.attr(name)

        def apply() -> None:
            edit.drop(name)
            if values or required:
                edit.connect([edit.node.inputs[0], edit.ints(values or (), name)])

        edit.later(apply)

    return rule


def _batch_normalization(edit: Edit) -> None:
    if edit.crosses(9):
        if not edit.attr("spatial", 1):
            raise NoMatch("spatial=0 has no counterpart in newer opsets")
        edit.later(lambda: edit.drop("spatial"))
    if edit.crosses(14):
        edit.unused_outputs_after(1)
        edit.later(lambda: edit.node.resize_outputs(1))


def _clip(edit: Edit) -> None:
    if not edit.crosses(11):
        return
    import numpy as np

    bounds = [edit.attr("min"), edit.attr("max")]
    if bounds == [None, None]:
        return
    dtype = edit.dtype(edit.node.inputs[0]).numpy()

    def apply() -> None:
        edit.drop("min", "max")
        low, high = (
            None if bound is None else edit.const(np.array(bound, dtype=np.float32).astype(dtype), name)
            for name, bound in zip(("min", "max"), bounds, strict=True)
        )
        edit.connect([edit.node.inputs[0], low, high])

    edit.later(apply)


def _dft(edit: Edit) -> None:
    if not edit.crosses(20):
        return
    import numpy as np

    axis = edit.attr("axis", 1)

    def apply() -> None:
        edit.drop("axis")
        inputs = [*edit.inputs(), None][:2]
        edit.connect([*inputs, edit.const(np.array(axis, dtype=np.int64), "axis")])

    edit.later(apply)


def _dropout(edit: Edit) -> None:
    if edit.crosses(10) or edit.crosses(12):
        edit.unused_outputs_after(1)
    if not edit.crosses(12):
        return
    import numpy as np

    ratio = edit.attr("ratio")

    def apply() -> None:
        edit.drop("ratio")
        if ratio is not None:
            edit.connect([edit.node.inputs[0], edit.const(np.array(ratio, dtype=np.float32), "ratio")])

    edit.later(apply)


def _grid_sample(edit: Edit) -> None:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = edit.attr("mode", "bilinear")
    if edit.crosses(20) and edit.has("mode") and mode in names:
        edit.later(lambda: edit.set("mode", names[mode]))


def _group_normalization(edit: Edit) -> None:
    """Scale and bias were per group before opset 21, per channel since."""
    if not edit.crosses(21):
        return
    import numpy as np

    channels, groups = edit.dims(edit.node.inputs[0])[1], edit.attr("num_groups")
    if not isinstance(channels, int):
        raise NoMatch("the number of channels is not static")
    size = channels // groups

    def spread(value: ir.Value | None, hint: str) -> ir.Value:
        array = const_array(value, edit.ctx.max_bytes)
        if array is not None:
            return edit.const(np.repeat(array, size), hint)
        builder = edit.ctx.rewriter.builder(edit.node)
        column = builder.Reshape(value, builder.const([groups, 1]))
        made: ir.Value = builder.Reshape(
            builder.Expand(column, builder.const([groups, size])), builder.const([channels])
        )
        edit.ctx.rewriter.insert_before(edit.node, builder.nodes)
        return made

    def apply() -> None:
        x, scale, bias = edit.node.inputs
        edit.connect([x, spread(scale, "scale"), spread(bias, "bias")])

    edit.later(apply)


def _pad(edit: Edit) -> None:
    if not edit.crosses(11):
        return
    import numpy as np

    pads, value = edit.attr("pads"), edit.attr("value", 0.0)
    constant = edit.attr("mode", "constant") == "constant"
    dtype = edit.dtype(edit.node.inputs[0]).numpy() if constant and value else None

    def apply() -> None:
        edit.drop("pads", "value")
        fill = None if dtype is None else edit.const(np.array(value, dtype=np.float32).astype(dtype), "value")
        edit.connect([edit.node.inputs[0], edit.ints(pads, "pads"), fill])

    edit.later(apply)


def _roi_align(edit: Edit) -> None:
    if edit.crosses(16):
        edit.later(lambda: edit.set("coordinate_transformation_mode", "output_half_pixel"))


def _scan(edit: Edit) -> None:
    if edit.crosses(9):
        raise NoMatch("Scan of opset 8 works on batches, which newer ones do not")


def _scatter(edit: Edit) -> None:
    if edit.crosses(11):
        edit.later(lambda: edit.rename("ScatterElements"))


def _slice(edit: Edit) -> None:
    if not edit.crosses(10):
        return
    parts = [edit.attr(name) for name in ("starts", "ends", "axes")]

    def apply() -> None:
        edit.drop("starts", "ends", "axes")
        names = ("starts", "ends", "axes")
        given = [None if part is None else edit.ints(part, name) for name, part in zip(names, parts, strict=True)]
        edit.connect([edit.node.inputs[0], *given])

    edit.later(apply)


def _split(edit: Edit) -> None:
    _attribute_to_input(13, "split")(edit)
    given = (edit.have < 13 and edit.attr("split")) or (len(edit.node.inputs) > 1 and edit.node.inputs[1] is not None)
    if edit.crosses(18) and not given:
        edit.later(lambda: edit.set("num_outputs", len(edit.node.outputs)))


def _top_k(edit: Edit) -> None:
    if not edit.crosses(10):
        return
    k = edit.attr("k")

    def apply() -> None:
        edit.drop("k")
        edit.connect([edit.node.inputs[0], edit.ints([k], "k")])

    edit.later(apply)


Rule = tuple[frozenset[int], Callable[[Edit], None]]


def rules() -> dict[str, Rule]:
    """Per op, the versions that its rule deals with, and the rule."""
    from graphopt.passes.capture._opset_resize import resize, upsample
    from graphopt.passes.capture._opset_softmax import softmax

    def at(*versions: int, rule: Callable[[Edit], None]) -> Rule:
        return frozenset(versions), rule

    reductions = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    return {
        **{f"Reduce{name}": at(18, rule=_attribute_to_input(18, "axes")) for name in reductions},
        **{op: at(13, rule=softmax) for op in ("Softmax", "LogSoftmax", "Hardmax")},
        **{op: at(13, rule=_attribute_to_input(13, "axes")) for op in ("ReduceSum", "Squeeze")},
        "Unsqueeze": at(13, rule=_attribute_to_input(13, "axes", required=True)),
        "BatchNormalization": at(9, 14, rule=_batch_normalization),
        "Clip": at(11, rule=_clip),
        "DFT": at(20, rule=_dft),
        "Dropout": at(10, 12, rule=_dropout),
        "GridSample": at(20, rule=_grid_sample),
        "GroupNormalization": at(21, rule=_group_normalization),
        "Pad": at(11, rule=_pad),
        "Resize": at(11, 13, rule=resize),
        "RoiAlign": at(16, rule=_roi_align),
        "Scan": at(9, rule=_scan),
        "Scatter": at(11, rule=_scatter),
        "Slice": at(10, rule=_slice),
        "Split": at(13, 18, rule=_split),
        "TopK": at(10, rule=_top_k),
        "Upsample": at(9, 10, rule=upsample),
    }
