"""What QuantizeLinear and DequantizeLinear hold in an opset: scales per tensor or channel, and types of codes.

Not here: what a target has kernels for.
"""

from __future__ import annotations

from graphopt.errors import GraphoptError
from graphopt.ir.codetypes import SINCE

PER_TENSOR, PER_CHANNEL = 10, 13
"""The opsets that brought one scale per tensor, and one per channel."""


def why_no_scales(opset: int, per_channel: bool) -> str | None:
    """Why an opset has no nodes for these scales; None when it has."""
    if opset < PER_TENSOR:
        return f"opset {opset} has no QuantizeLinear; raise it with convert-opset"
    if per_channel and opset < PER_CHANNEL:
        return f"opset {opset} has no scale per channel; raise it with convert-opset, or give per_channel=false"
    return None


def check_type(asked: str, type_name: str, opset: int) -> None:
    """Refuse a type that the opset lacks.

    Raises:
        GraphoptError: names the opset that has it.
    """
    need = SINCE[type_name.upper()]
    if opset < need:
        raise GraphoptError(
            f"{asked} needs opset {need}, the model has {opset}; raise it with convert-opset{{to={need}}}"
        )
