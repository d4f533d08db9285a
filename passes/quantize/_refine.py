"""What passes share that refine the codes of quantize-static: nodes with their float originals, and the exchange.

Not here: what is refined (round_weights.py, correct_bias.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.ir.rewrite_log import StopRewriting
from graphopt.passes.quantize._kinds import COMPUTE

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context


def twins(model: ir.Model, ctx: Context) -> dict[ir.Node, ir.Node]:
    """Quantized nodes with work of the main graph -> the float nodes that they were made of, in the order of the graph.

    Nodes that were quantized before the run have none. Without quantize-static before it, a pass says so and gets none.
    """
    nodes = [node for node in model.graph if is_quantized(node)]
    if not nodes:
        return {}
    if ctx.floats is None:
        ctx.note("compares with float weights: quantize-static has to come before it in the same pipeline")
        return {}
    originals = {node.name: node for node in ctx.floats.graph if not is_quantized(node)}
    return {node: originals[node.name] for node in nodes if node.name in originals}


def exchange(ctx: Context, node: ir.Node, make: Callable[[Builder], tuple[ir.Value, str]]) -> None:
    """Put what `make` returns in the place of a node, in one transaction, and leave a remark with its reason."""
    site, op = ctx.rewriter.site(node), ctx.rewriter.builder(node)
    try:
        value, reason = make(op)
        ctx.rewriter.replace(node, value, op)
    except NoMatch as why:
        op.discard()
        ctx.remarks.missed(ctx.pass_name, site, node.op_type, str(why))
        return
    except StopRewriting:
        op.discard()
        raise
    ctx.remarks.applied(ctx.pass_name, site, node.op_type, reason)


def is_quantized(node: ir.Node) -> bool:
    """A node with work that reads codes through Dequantize, constant ones as weights."""
    if node.op_type not in COMPUTE or node.domain != "":
        return False
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
