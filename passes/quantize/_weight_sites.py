"""Constant weights of MatMul, Gemm, Gather and Conv as rows that are quantized one by one, and why a node has none.

    weight = find_weight(node, ctx)          # raises NoMatch(reason)
    rows = weight.rows(start, stop)          # float32 (rows, K), one per output, row of a table or output channel

Not here: how they are quantized (_weight_forms.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor
from graphopt.ir.optable import QUANTIZED_OPS
from graphopt.manager.worklist import Uninteresting

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context

OPS = ("MatMul", "Gemm", "Gather", "Conv")

DONE = frozenset(
    {
        *("MatMulNBits", "GatherBlockQuantized", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"),
        *("MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv", "QGemm", "QAttention", "DynamicQuantizeLSTM"),
    }
)
"""Ops whose weights are quantized already."""

SLOT = {"MatMul": 1, "Gemm": 1, "Gather": 0, "Conv": 1}
_RANKS = {"MatMul": "2", "Gemm": "2", "Gather": "2", "Conv": "3 to 5"}
ALREADY = "its weight is quantized already"


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant weight at one node.

    Attributes:
        node, value: where it is used, and what holds it.
        slot: of the node's inputs.
        tensor: the constant.
        across: the rows are the columns of the tensor (its axis 0 is summed over).
        count, width: rows, and elements of each.
    """

    node: ir.Node
    value: ir.Value
    slot: int
    tensor: ir.TensorProtocol
    across: bool
    count: int
    width: int

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop, float32 (stop - start, width); only they are read of a memory-mapped tensor."""
        import numpy as np

        array = self.tensor.numpy()
        if self.across:
            part = array[:, start:stop].T
        else:
            part = array[start:stop].reshape(-1, self.width)
        return np.ascontiguousarray(part, dtype=np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self.tensor.shape.numpy())


def find_weight(node: ir.Node, ctx: Context) -> Weight:
    """The weight of a node of OPS.

    Raises:
        NoMatch: it has none that can be quantized (Uninteresting: it is about something else, such as a shape).
    """
    if ctx.rewriter.in_function(node):
        raise NoMatch("the body of a function stays as it is; inline-functions opens it")
    slot = SLOT[node.op_type]
    value = node.inputs[slot] if len(node.inputs) > slot else None
    tensor = const_tensor(value)
    if node.op_type == "Gather" and any(use.node.op_type == "DequantizeLinear" for use in node.outputs[0].uses()):
        raise NoMatch(ALREADY)
    if node.op_type == "Gather" and (value is None or value.dtype is None or not value.dtype.is_floating_point()):
        raise Uninteresting("it gathers no weights")
    if value is None or tensor is None:
        raise NoMatch(_no_constant(node, value))
    if tensor.dtype.name not in ("FLOAT", "FLOAT16", "BFLOAT16"):
        raise NoMatch(f"its weight is {tensor.dtype.name.lower()}, not a float of 32 or 16 bits")
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    rank = len(shape)
    if rank != 2 if node.op_type != "Conv" else not 3 <= rank <= 5:
        raise NoMatch(f"its weight has rank {rank}, not {_RANKS[node.op_type]}")
    if not math.prod(shape):
        raise NoMatch("its weight is empty")
    if _beside_quantize(node):
        raise NoMatch("it belongs to a quantize/dequantize group")
    across = node.op_type == "MatMul"
    if node.op_type == "Gemm":
        across = not _int(node, "transB", 0)
    if node.op_type == "Gather" and _int(node, "axis", 0) not in (0, -rank):
        raise NoMatch("it gathers along another axis than the first")
    count, width = (shape[1], shape[0]) if across else (shape[0], math.prod(shape[1:]))
    return Weight(node, value, slot, tensor, across, count, width)


def _no_constant(node: ir.Node, value: ir.Value | None) -> str:
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type in QUANTIZED_OPS:
        return ALREADY
    if node.op_type == "MatMul" and const_tensor(node.inputs[0]) is not None:
        return "its constant is the left operand"
    return "its weight is not constant"


def _int(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


def _beside_quantize(node: ir.Node) -> bool:
    """Whether activations around the node are quantized."""
    sources = (value.producer() for value in node.inputs if value is not None)
    users = (use.node for out in node.outputs for use in out.uses())
    return any(other is not None and other.op_type in QUANTIZED_OPS for other in (*sources, *users))
