"""Chains of ops that compute sizes: each becomes one Shape where it gives a run of some tensor's dims.

Sizes are compared as symbols, so dynamic models gain without becoming static. Sizes that are numbers are folded by
fold-constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from graphopt.analysis import dims as arithmetic
from graphopt.ir.constants import const_array
from graphopt.manager.base import Pass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

_CHAIN = frozenset({"Cast", "Concat", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze"})
_MAX_STEPS = 32


class SimplifyShapeOps(Pass):
    """Concat(Unsqueeze(Gather(Shape(x), 0)), ...) -> Shape<0, 2>(x); sizes computed twice -> once.

    A Shape of an inner value is taken from a model input instead where one has the same dims.
    """

    name: ClassVar[str] = "simplify-shape-ops"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("fold-constants",)

    def run(self, model: ir.Model, ctx: Context) -> None:
        for scope in ctx.rewriter.scopes():
            imports = scope.function.opset_imports if scope.function is not None else model.opset_imports
            inputs = [] if scope.function is not None else [v for v in model.graph.inputs if _is_tensor(v)]
            sliced = imports.get("", 1) >= 15  # Shape has start and end since then
            seen: dict[tuple[object, ...], ir.Value] = {}
            for node in scope.graph:
                if node.domain == "" and len(node.outputs) == 1 and _is_size(node.outputs[0]):
                    if sliced and node.op_type in _CHAIN:
                        node = _as_shape(self, ctx, node, inputs) or node
                    _share(self, ctx, node, seen)


def _is_tensor(value: ir.Value) -> bool:
    from graphopt import ir

    return isinstance(value.type, ir.TensorType)


def _is_size(value: ir.Value) -> bool:
    """Whether it may be sizes: int64 of rank 0 or 1, as far as is known."""
    return value.dtype is not None and value.dtype.name == "INT64" and (value.shape is None or len(value.shape) <= 1)


def _as_shape(item: SimplifyShapeOps, ctx: Context, node: ir.Node, inputs: Sequence[ir.Value]) -> ir.Node | None:
    """Replace the node by a Shape; return it, None where there is no reason to."""
    found = _picked(ctx, node) or _run_of_dims(ctx, node, inputs)
    if found is None:
        return None
    source, start, end = found
    site, op = ctx.rewriter.site(node), node.op_type
    builder = ctx.rewriter.builder(node)
    value = builder.Shape(source, start=start or None, end=end)
    made = value.producer()
    ctx.rewriter.replace(node, value, builder)
    ctx.remarks.applied(item.name, site, op, f"it gives dims of {source.name!r}")
    return made


def _picked(ctx: Context, node: ir.Node) -> tuple[ir.Value, int, int | None] | None:
    """Gather(Shape(x), [i]) of any rank: dim i of x."""
    if node.op_type != "Gather":
        return None
    shape = node.inputs[0].producer() if node.inputs[0] is not None else None
    if shape is None or shape.op_type != "Shape" or shape.domain != "" or shape.attributes or shape.inputs[0] is None:
        return None
    index = const_array(node.inputs[1])
    if index is None or index.shape != (1,):
        return None
    place = int(index[0])
    return shape.inputs[0], place, None if place == -1 else place + 1


def _run_of_dims(ctx: Context, node: ir.Node, inputs: Sequence[ir.Value]) -> tuple[ir.Value, int, int | None] | None:
    """A tensor some dims of which, side by side, are what the node gives."""
    output = node.outputs[0]
    values = ctx.shapes.values(output)
    if not values or output.shape is None or len(output.shape) != 1 or all(isinstance(item, int) for item in values):
        return None
    is_shape = node.op_type == "Shape"
    known = (
        [value for value in inputs if value is not node.inputs[0]]
        if not (is_shape and node.inputs[0] in inputs)
        else []
    )
    for source in (*known, *(() if is_shape else _sources(node))):
        place = _find(ctx, values, source)
        if place is not None:
            rank = len(ctx.shapes.dims(source) or ())
            return source, place, None if place + len(values) == rank else place + len(values)
    return None


def _find(ctx: Context, values: Sequence[int | ir.SymbolicDim], source: ir.Value) -> int | None:
    dims = ctx.shapes.dims(source)
    if dims is None or source.dtype is None:
        return None
    for start in range(len(dims) - len(values) + 1):
        if all(arithmetic.equal(a, b) for a, b in zip(values, dims[start : start + len(values)], strict=True)):
            return start
    return None


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """The tensors whose shapes the chain above `node` reads."""
    stack, steps, found = [node], 0, set()
    while stack and steps < _MAX_STEPS:
        steps += 1
        for value in stack.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is None or producer.domain != "" or producer.op_type not in _CHAIN:
                continue
            if producer.op_type != "Shape":
                stack.append(producer)
            elif producer.inputs[0] is not None and producer.inputs[0] not in found:
                found.add(producer.inputs[0])
                yield producer.inputs[0]


def _share(item: SimplifyShapeOps, ctx: Context, node: ir.Node, seen: dict[tuple[object, ...], ir.Value]) -> None:
    """Let users take the same sizes from an earlier node of the graph."""
    output = node.outputs[0]
    values = ctx.shapes.values(output)
    if not values or output.shape is None or all(isinstance(value, int) for value in values):
        return
    key = (len(output.shape), *map(str, values))
    first = seen.get(key)
    producer = first.producer() if first is not None else None
    if first is None or producer is None or producer.graph is None:  # unknown, or dead by now
        seen[key] = output
        return
    if first is output or not output.uses() or output.is_graph_output():
        return
    ctx.rewriter.merge(output, first, node)
    ctx.remarks.applied(item.name, ctx.rewriter.site(node), node.op_type, f"{first.name!r} holds the same sizes")
    ctx.rewriter.erase(node)
