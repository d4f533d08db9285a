"""The nodes of a dynamically quantized product: integers in, integers multiplied, floats out.

Not here: which sites (quantize_dynamic.py) and how weights are rounded (_weights8.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir.builder import NoMatch
from graphopt.passes.quantize._weight_codes import MOST_LOST, refuse_lost
from graphopt.passes.quantize._weight_sites import Weight
from graphopt.passes.quantize._weights8 import Ranges, choose_params, codes_of
from graphopt.quantization.affine import INT8
from graphopt.quantization.weights import lost_weights

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder

INTEGER = {"MatMul": "MatMulInteger", "Gemm": "MatMulInteger", "Conv": "ConvInteger"}
"""What multiplies the integers of an op."""


def quantized_input(op: Builder, value: ir.Value) -> tuple[ir.Value, ...]:
    """Codes, scale and zero point of an activation, taken from its own range on each run."""
    made: tuple[ir.Value, ...] = op.DynamicQuantizeLinear(value, _outputs=3)
    return made


def integer_weight(weight: Weight, ranges: Ranges, safe: bool) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes as the integer op takes them, (K, N) or as a Conv's, and the float32 scale to multiply its output by.

    Raises:
        NoMatch: the weight holds NaN or infinities, or most of it would become zero.
    """
    import numpy as np

    node, array = weight.node, weight.tensor.numpy()
    axis = 1 if weight.across else 0
    try:
        params = choose_params(node, array, INT8, axis, ranges, safe)
    except GraphoptError as error:
        raise NoMatch(f"its weight {weight.value.name!r} {error}") from None
    codes, scale = codes_of(node, array, params, safe), params.scale
    refuse_lost(*lost_weights(array, codes), MOST_LOST[INT8.bits])
    if node.op_type == "Conv":
        return codes, scale.reshape(-1, *(1,) * (array.ndim - 2))
    alpha = node.attributes.get("alpha")
    if alpha is not None:
        scale = (scale * np.float32(alpha.as_float())).astype(np.float32)
    return (codes if weight.across else codes.T), scale


def emit(op: Builder, weight: Weight, activation: tuple[ir.Value, ...], constants: tuple[ir.Value, ...]) -> ir.Value:
    """What takes the place of the node's output. The order of the products is the one that ONNX Runtime fuses."""
    from graphopt import ir

    node = weight.node
    codes, scale, zero = activation
    kept: dict[str, Any] = dict(node.attributes) if node.op_type == "Conv" else {}
    sums = op.node(INTEGER[node.op_type], codes, constants[0], zero, **kept)
    floats = op.Cast(sums, to=ir.DataType.FLOAT.value)
    out: ir.Value = op.Mul(floats, op.Mul(scale, constants[1]))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return out
    added: ir.Value = op.Add(out, _bias(op, weight, bias))
    return added


def _bias(op: Builder, weight: Weight, bias: ir.Value) -> ir.Value:
    """beta * C of a Gemm; the bias of a Conv, laid along its channels."""
    import numpy as np

    if weight.node.op_type == "Conv":
        shape: ir.Value = op.Reshape(bias, np.array([-1, *(1,) * (len(weight.shape) - 2)], np.int64))
        return shape
    beta = weight.node.attributes.get("beta")
    if beta is None or beta.as_float() == 1:
        return bias
    scaled: ir.Value = op.Mul(bias, np.asarray(beta.as_float(), np.float32))
    return scaled
