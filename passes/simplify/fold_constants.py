"""Constant folding: shape arithmetic and data movement by numpy, the rest of all constant regions in one runtime batch.

What a fold would cost in bytes is computed before anything is evaluated (`_region.py`). Never folded: random ops,
custom domains, function bodies, quantize/dequantize groups, control flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.errors import GraphoptError
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor, held_bytes
from graphopt.ir.optable import QUANTIZED_OPS, RANDOM_OPS
from graphopt.manager.base import Pass
from graphopt.passes.simplify._numpy_call import NotExact
from graphopt.passes.simplify._numpy_ops import evaluate
from graphopt.passes.simplify._region import Region, is_foldable_type

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context

FREE_GROWTH = 64 << 10
"""A model may always grow by this many bytes: small models have hardly any weights to take a share of."""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """f(constants) -> constant, and Constant nodes -> initializers, within a bound on the growth of the model.

    Options:
        max_bytes: no tensor larger than this is read or made.
        max_growth: the weights may grow by at most this factor (and always by 64 KiB); none: the run's own limit.
    """

    name: ClassVar[str] = "fold-constants"
    level: ClassVar[int | None] = 1
    max_bytes: int = 64 << 20
    max_growth: float | None = None

    def check(self) -> None:
        if self.max_bytes < 0:
            raise GraphoptError(f"pass 'fold-constants': max-bytes={self.max_bytes} must be 0 or more")
        if self.max_growth is not None and not self.max_growth >= 1:
            raise GraphoptError(f"pass 'fold-constants': max-growth={self.max_growth} must be 1 or more")

    def run(self, model: ir.Model, ctx: Context) -> None:
        region = Region(self._candidates(ctx), min(self.max_bytes, ctx.max_bytes))
        if not region.nodes:
            return
        growth = ctx.max_growth if self.max_growth is None else self.max_growth
        original = ctx.original_bytes
        allowed = max(int(original * growth), original + FREE_GROWTH) - _held(ctx)
        results: dict[ir.Value, Any] = {}
        while True:
            refused = region.shrink(allowed)
            left = _evaluate(region, ctx, results)
            if not left:
                break
            region.remove(left)
        for node, reason in refused:
            ctx.remarks.missed(self.name, ctx.rewriter.site(node), node.op_type, reason)
        if _commit(self, region, ctx, results):
            # Shapes that depend on what is known now can be told more exactly.
            ctx.keep_only([])

    def _candidates(self, ctx: Context) -> dict[ir.Node, tuple[int, ...] | None]:
        """Foldable nodes, operands first, each with the elements of its output where shape analysis knows them."""
        found: dict[ir.Node, tuple[int, ...] | None] = {}
        made: set[ir.Value] = set()
        for scope in ctx.rewriter.scopes():
            if scope.function is not None:
                continue
            for node in scope.graph:
                if node.domain != "" or (node.op_type != "Constant" and not _may_fold(node, made)):
                    known = _known(node, ctx)
                    if known is None:
                        continue
                elif node.op_type == "Constant":
                    known = None
                    if node.outputs[0].is_graph_output() or const_tensor(node.outputs[0]) is None:
                        continue
                else:
                    known = _known(node, ctx)
                if node.op_type != "Constant" and not _has_place(node, ctx):
                    continue
                found[node] = known
                made.update(node.outputs)
        return found


def _held(ctx: Context) -> int:
    """Bytes of all constants now."""
    rewriter = ctx.rewriter
    return held_bytes((scope.graph for scope in rewriter.scopes()), rewriter.index.of("", "Constant"))


def _may_fold(node: ir.Node, made: set[ir.Value]) -> bool:
    """Cheap checks first: this is asked of every node of the model."""
    inputs = node.inputs
    if not inputs:
        return False
    for value in inputs:
        if value is not None and value not in made and const_tensor(value) is None:
            return False
    if node.op_type in RANDOM_OPS or node.op_type in QUANTIZED_OPS:
        return False
    if node.op_type == "Dropout" and len(inputs) > 2:
        return False
    return not any(attr.is_ref() or attr.type.name in ("GRAPH", "GRAPHS") for attr in node.attributes.values())


def _known(node: ir.Node, ctx: Context) -> tuple[int, ...] | None:
    """The elements of the one output when shape analysis knows all of them."""
    output = node.outputs[0] if len(node.outputs) == 1 else None
    if output is None or output.dtype is None or not (output.dtype.is_integer() or output.dtype.name == "BOOL"):
        return None
    if node.domain != "" or node.op_type in QUANTIZED_OPS or node.op_type == "Constant":
        return None
    return ctx.shapes.ints(output)


def _has_place(node: ir.Node, ctx: Context) -> bool:
    """Whether an initializer may stand for each output: a plain tensor of known size, no part of a quantized group."""
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return False  # what an output needs that is constant
    for output in node.outputs:
        if not is_foldable_type(output) or output.shape is None or ctx.shapes.static(output) is None:
            return False
        if any(use.node.op_type in QUANTIZED_OPS for use in output.uses()):
            return False
    return True


def _evaluate(region: Region, ctx: Context, results: dict[ir.Value, Any]) -> list[ir.Node]:
    """Fill `results` for every value that is needed; return the nodes that could not be computed."""
    from graphopt import ir

    waiting: list[ir.Node] = []
    for node in region.needed():
        if node.outputs[0] in results:
            continue
        try:
            for output, array in zip(node.outputs, _by_numpy(region, ctx, node, results), strict=True):
                results[output] = array
        except NotExact:
            waiting.append(node)
    halves = [node for node in waiting if any(out.dtype == ir.DataType.FLOAT16 for out in node.outputs)]
    if halves:
        # A runtime without the kernel computes in single precision and may skip the rounding in between.
        ctx.note("half-precision arithmetic is rounded as the runtime sees fit, so it is not folded", halves[0])
        return halves
    if not waiting:
        return []
    if ctx.evaluate is None:
        ctx.note(f"{len(waiting)} constant nodes need a runtime to be folded, and none is at hand", waiting[0])
        return waiting
    from graphopt.passes.simplify._batch import run_batch

    try:
        results.update(run_batch(waiting, results, ctx.evaluate, region, ctx.model))
    except GraphoptError as error:
        ctx.note(f"{len(waiting)} constant nodes could not be evaluated: {error}", waiting[0])
        return waiting
    return []


def _by_numpy(region: Region, ctx: Context, node: ir.Node, results: dict[ir.Value, Any]) -> list[np.ndarray]:
    import numpy as np

    from graphopt import ir

    if node.op_type == "Constant":
        tensor = const_tensor(node.outputs[0])
        assert tensor is not None
        return [tensor]  # type: ignore[list-item]
    output = node.outputs[0]
    known = region.nodes[node]
    if known is not None:
        assert output.dtype is not None
        return [np.array(known, dtype=output.dtype.numpy()).reshape(ctx.shapes.static(output) or ())]
    operands = [None if value is None else _operand(value, results) for value in node.inputs]
    attributes = {
        name: attr.value.numpy() if attr.type == ir.AttributeType.TENSOR else attr.value
        for name, attr in node.attributes.items()
    }
    arrays = evaluate(node.op_type, operands, attributes, len(node.outputs), ctx.rewriter.opset("", node))
    for value, array in zip(node.outputs, arrays, strict=True):
        if array.shape != ctx.shapes.static(value) or value.dtype is None or array.dtype != value.dtype.numpy():
            raise NotExact("not what shape inference says")
    return arrays


def _operand(value: ir.Value, results: dict[ir.Value, Any]) -> np.ndarray:
    found: Any = results.get(value)
    if found is None:
        found = const_tensor(value)
    if found is None:
        raise NotExact("an operand waits for the runtime")
    return found.numpy() if hasattr(found, "numpy") else found


def _commit(item: FoldConstants, region: Region, ctx: Context, results: dict[ir.Value, Any]) -> bool:
    """Replace from the last node to the first, so that a node's folded users are gone when its turn comes.

    Returns:
        Whether an integer tensor became known that shape analysis did not know.
    """
    rewriter = ctx.rewriter
    learned = False
    for node in reversed(list(region.nodes)):
        if node in region.kept or node.graph is None:
            continue
        site, op = rewriter.site(node), node.op_type
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            rewriter.erase(node)  # it was not evaluated, and what it reads may have no other user
            ctx.remarks.applied(item.name, site, op, "nothing uses it")
            continue
        builder = rewriter.builder(node)
        new: list[ir.Value | None] = []
        for out in node.outputs:
            wanted = out.uses() or out.is_graph_output()
            new.append(builder.const(results[out], str(out.name)) if wanted else None)
            learned = learned or bool(wanted and _is_news(out, results[out], ctx))
        try:
            rewriter.replace(node, new, builder)
        except NoMatch as why:  # what the runtime made is not what shape analysis says
            builder.discard()
            ctx.remarks.missed(item.name, site, op, str(why))
            continue
        for out, value in zip(node.outputs, new, strict=True):
            if value is not None and not out.is_graph_output() and node.graph is None and out.name:
                # The initializer is what the node's output was: it goes by the same name.
                name, out.name = out.name, None
                if not name.endswith("_old"):
                    value.name = name
        ctx.remarks.applied(item.name, site, op, "its inputs are constant")
    return learned


def _is_news(value: ir.Value, content: Any, ctx: Context) -> bool:
    from graphopt.analysis.shapes import MAX_VALUES

    if value.dtype is None or not value.dtype.is_integer() or len(content.shape) > 1:
        return False
    return math.prod(content.shape) <= MAX_VALUES and ctx.shapes.ints(value) is None
