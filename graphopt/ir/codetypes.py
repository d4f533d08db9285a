"""Since which opset QuantizeLinear makes and DequantizeLinear reads codes of a type.

Not here: which of them a runtime has kernels for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt import ir

SINCE = {
    **dict.fromkeys(("UINT8", "INT8", "INT32"), 10),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 19),
    **dict.fromkeys(("UINT16", "INT16", "UINT4", "INT4"), 21),
    "FLOAT4E2M1": 23,
    **dict.fromkeys(("UINT2", "INT2"), 25),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 28),
}
"""First opset by the name of the element type; only DequantizeLinear has int32."""


def why_invalid(node: ir.Node, opset: int) -> str | None:
    """What is wrong with the codes that a node of the standard domain makes or reads; None when nothing is."""
    if node.op_type == "QuantizeLinear":
        values = [*node.inputs[2:3], *node.outputs[:1]]
    elif node.op_type == "DequantizeLinear":
        values = [*node.inputs[:1], *node.inputs[2:3]]
    else:
        return None
    for value in values:
        if value is None or value.dtype is None or value.dtype.name == "UNDEFINED":
            continue
        name = value.dtype.name
        if name not in SINCE or (name == "INT32" and node.op_type == "QuantizeLinear"):
            return f"{value.name!r} is {name}, which it never has as codes"
        if opset < SINCE[name]:
            return f"{value.name!r} is {name}, which it has from opset {SINCE[name]} on; the model has {opset}"
    return None
