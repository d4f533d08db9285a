"""Loops that run never or once: their initial values, or their body, stand in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_scalar
from graphopt.manager.base import Pass
from graphopt.passes.simplify._splice import Names

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context


class InlineLoop(Pass):
    """Loop(0, ...) -> its initial values, Loop(1, ...) -> its body once."""

    name: ClassVar[str] = "inline-loop"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("fold-constants",)
    keeps: ClassVar[tuple[str, ...]] = ()

    def run(self, model: ir.Model, ctx: Context) -> None:
        for node in ctx.rewriter.index.of("", "Loop"):
            if node.graph is None:
                continue
            trips = _trips(node, ctx)
            if trips is None:
                continue
            site, builder = ctx.rewriter.site(node), ctx.rewriter.builder(node)
            if trips and ctx.rewriter.in_function(node):
                ctx.remarks.missed(
                    self.name, site, "Loop", "it stands in a function, whose body cannot hold its constants"
                )
                continue
            try:
                if trips == 0:
                    ctx.rewriter.replace(node, _initial(node, ctx, builder), builder)
                else:
                    _once(node, ctx, builder)
            except NoMatch as reason:
                builder.discard()
                ctx.remarks.missed(self.name, site, "Loop", str(reason))
            except BaseException:
                builder.discard()
                raise
            else:
                ctx.remarks.applied(self.name, site, "Loop", f"it runs {'once' if trips else 'never'}")


def _trips(node: ir.Node, ctx: Context) -> int | None:
    """0 or 1 when the loop runs that often, else None."""
    body = node.attributes["body"].as_graph()
    limit, begin = _number(node.inputs[0], ctx), _number(node.inputs[1] if len(node.inputs) > 1 else None, ctx)
    goes_on = _number(body.outputs[0], ctx)
    begins = node.inputs[1] is None or begin == 1 if len(node.inputs) > 1 else True
    if (limit is not None and limit <= 0) or begin == 0:
        return 0
    if begins and (limit == 1 or (goes_on == 0 and (node.inputs[0] is None or (limit or 0) >= 1))):
        return 1
    return None


def _number(value: ir.Value | None, ctx: Context) -> int | None:
    if value is None:
        return None
    element = const_scalar(value)
    if element is not None:
        return int(element)
    known = ctx.shapes.ints(value)
    return known[0] if known is not None and len(known) == 1 else None


def _initial(node: ir.Node, ctx: Context, builder: Builder) -> list[ir.Value | None]:
    """The carried values as they come in, and nothing collected."""
    import numpy as np

    body = node.attributes["body"].as_graph()
    carried = list(node.inputs[2:])
    values: list[ir.Value | None] = list(carried)
    for out, item in zip(node.outputs[len(carried) :], body.outputs[1 + len(carried) :], strict=True):
        if not out.uses() and not out.is_graph_output():
            values.append(None)
            continue
        dims = ctx.shapes.static(item)
        if dims is None or item.dtype is None:
            raise NoMatch(f"the shape of what {out.name!r} collects is not known")
        values.append(builder.const(np.zeros((0, *dims), dtype=item.dtype.numpy()), str(out.name)))
    return values


def _once(node: ir.Node, ctx: Context, builder: Builder) -> None:
    import numpy as np

    body = node.attributes["body"].as_graph()
    carried = list(node.inputs[2:])
    iteration = builder.const(np.array(0, dtype=np.int64), "iteration")
    condition = builder.const(np.array(True), "condition")
    given: dict[ir.Value, ir.Value] = {}
    for inside, outside in zip(body.inputs, [iteration, condition, *carried], strict=True):
        assert outside is not None
        given[inside] = outside
    outputs = list(body.outputs)[1:]
    if len(outputs) > len(carried) and ctx.rewriter.opset("", node) < 13:
        raise NoMatch("what it collects gains an axis, which is written for opset 13 and later")
    made: list[ir.Value] = []
    for position, value in enumerate(outputs):
        source = given.get(value, value)
        if position >= len(carried):
            # What is collected gains an axis for the one iteration.
            source = builder.Unsqueeze(source, builder.const([0], "axis"))
        made.append(source)
    Names(ctx).make_unique(body)
    ctx.rewriter.splice(node, body, made, builder.nodes, given)
    for value in (iteration, condition):
        if not value.uses() and value.graph is not None and value.name is not None:
            value.graph.initializers.pop(value.name, None)
