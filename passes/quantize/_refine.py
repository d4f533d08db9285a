"""What passes share that refine the codes of quantize-static: the quantized nodes with their float originals.

Not here: what is refined (round_weights.py, correct_bias.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.passes.quantize._kinds import COMPUTE

if TYPE_CHECKING:
    from graphopt import ir
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


def is_quantized(node: ir.Node) -> bool:
    """A node with work that reads codes through Dequantize, constant ones as weights."""
    if node.op_type not in COMPUTE or node.domain != "":
        return False
    makers = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
