"""LSTM with int8 weights: com.microsoft::DynamicQuantizeLSTM, where the target has it.

    lstm = find_lstm(node, ctx)                # raises NoMatch(reason)
    values = emit_lstm(op, lstm, "max", safe=False)

Not here: other ops (_dynamic_forms.py), and which sites (quantize_dynamic.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor, nbytes
from graphopt.quantization.affine import INT8, QParams, channel_ranges, params_from_range, quantize
from graphopt.quantization.saturation import make_safe, safe_scales

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context

OP = "DynamicQuantizeLSTM"
_WEIGHTS = (1, 2)  # slots of W and R
_INPUTS = 8  # of an LSTM
_KEPT = frozenset({"activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size"})


def find_lstm(node: ir.Node, ctx: Context) -> None:
    """Whether an LSTM's weights can be quantized.

    Raises:
        NoMatch: why not.
    """
    if ctx.rewriter.in_function(node):
        raise NoMatch("the body of a function stays as it is; inline-functions opens it")
    reason = ctx.supports(OP, "com.microsoft", "FLOAT")
    if reason is not None:
        raise NoMatch(reason)
    for slot in _WEIGHTS:
        value = node.inputs[slot]
        tensor = const_tensor(value)
        if value is None or tensor is None:
            raise NoMatch("its weights are not constant")
        if tensor.dtype.name != "FLOAT":
            raise NoMatch(f"its weights are {tensor.dtype.name.lower()}, not float")
        if len(value.uses()) > 1 or value.is_graph_output():
            raise NoMatch("its weights are also read by others, so a quantized copy would only add to them")
        if nbytes(tensor) > ctx.max_bytes:
            raise NoMatch(f"its weights have {nbytes(tensor)} bytes, over the limit of {ctx.max_bytes}")
    layout, forget = node.attributes.get("layout"), node.attributes.get("input_forget")
    if layout is not None and layout.as_int():
        raise NoMatch(f"{OP} takes sequences first, not batches")
    if forget is not None and forget.as_int():
        raise NoMatch(f"{OP} does not couple the input and forget gates")


def emit_lstm(op: Builder, node: ir.Node, safe: bool) -> list[ir.Value | None]:
    """The outputs of the node that takes an LSTM's place; symmetric weights, a scale per gate element."""
    inputs: list[Any] = [*node.inputs, *(None,) * (_INPUTS - len(node.inputs))]
    scales: list[Any] = []
    for slot in _WEIGHTS:
        tensor = const_tensor(node.inputs[slot])
        assert tensor is not None
        try:
            codes, scale = _quantized(tensor.numpy(), safe)
        except GraphoptError as error:
            raise NoMatch(f"its weight {_name(node, slot)!r} {error}") from None
        inputs[slot] = op.const(codes, f"{_name(node, slot)}_codes")
        scales += [
            op.const(scale, f"{_name(node, slot)}_scale"),
            op.const((scale * 0).astype(codes.dtype), f"{_name(node, slot)}_zero"),
        ]
    kept: dict[str, Any] = {name: attr for name, attr in node.attributes.items() if name in _KEPT}
    made = op.node(OP, *inputs, *scales, _domain="com.microsoft", _outputs=len(node.outputs), **kept)
    outputs = [made] if len(node.outputs) == 1 else list(made)
    return [
        new if old.uses() or old.is_graph_output() else None for old, new in zip(node.outputs, outputs, strict=True)
    ]


def _name(node: ir.Node, slot: int) -> str:
    value = node.inputs[slot]
    return str(value.name) if value is not None else ""


def _quantized(weights: np.ndarray, safe: bool) -> tuple[np.ndarray, np.ndarray]:
    """W or R (directions, 4 H, K) as codes (directions, K, 4 H) and float32 scales (directions, 4 H)."""
    import numpy as np

    codes, scales = [], []
    for rows in weights:
        columns = np.ascontiguousarray(rows.T)
        params = params_from_range(*channel_ranges(columns, 1), INT8, symmetric=True, narrow=True)
        scale = safe_scales(columns, params.scale) if safe else params.scale
        made = np.maximum(quantize(columns, QParams(INT8, scale, params.zero_point, 1)), -INT8.qmax)
        codes.append(make_safe(made) if safe else made)
        scales.append(scale)
    return np.stack(codes).astype(np.int8), np.stack(scales).astype(np.float32)
