"""What passes share that refine the codes of quantize-static: nodes with their float originals, and the exchange.

Not here: what is refined (round_weights.py, correct_bias.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array
from graphopt.ir.rewrite_log import StopRewriting
from graphopt.passes.quantize._kinds import COMPUTE
from graphopt.passes.quantize._weights8 import bias_codes

if TYPE_CHECKING:
    import numpy as np

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


def bias_of(node: ir.Node) -> np.ndarray:
    """The bias that a quantized node adds, float64; zeros (one element) when it has none.

    Raises:
        NoMatch: its codes are not constant.
    """
    import numpy as np

    value = node.inputs[2] if len(node.inputs) > 2 else None
    maker = value.producer() if value is not None else None
    if maker is None:
        return np.zeros(1)
    codes, step = const_array(maker.inputs[0]), const_array(maker.inputs[1])
    if codes is None or step is None:
        raise NoMatch("its bias is not constant")
    exact: np.ndarray = codes * step.astype(np.float64)
    return exact


def with_bias(op: Builder, node: ir.Node, weights: ir.Value | None, bias: np.ndarray) -> ir.Value:
    """The node with these dequantized weights and this bias, in int32 steps of the input's scale times the weights'.

    Raises:
        NoMatch: MatMul has no bias; scales are not constant; or it does not fit 32 bits in such steps.
    """
    import numpy as np

    if node.op_type == "MatMul":
        raise NoMatch("MatMul has no bias input")
    source = node.inputs[0]
    assert source is not None and weights is not None
    scales = [const_array(value.producer().inputs[1]) for value in (source, weights)]  # type: ignore[union-attr]
    if scales[0] is None or scales[1] is None:
        raise NoMatch("its scales are not constant")
    scale = (scales[0] * scales[1]).astype(np.float32)
    scale = np.broadcast_to(scale, bias.shape) if scale.ndim else scale
    if (np.abs(bias) > scale * (2.0**31 - 1)).any():
        raise NoMatch("its bias does not fit 32 bits in steps of its scales")
    stored, step = op.const(bias_codes(bias, scale), f"{node.name}_bias"), op.const(scale, f"{node.name}_bias_scale")
    made = op.DequantizeLinear(stored, step, axis=0) if scale.ndim else op.DequantizeLinear(stored, step)
    result: ir.Value = op.clone(node, [source, weights, made])
    return result
