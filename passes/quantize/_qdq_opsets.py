"""What QuantizeLinear and DequantizeLinear hold in an opset: scales per tensor or channel, and types of codes.

Not here: what a target has kernels for.
"""

from __future__ import annotations

from graphopt.errors import GraphoptError

PER_TENSOR, PER_CHANNEL, OTHER_WIDTHS = 10, 13, 21
"""The opsets that brought one scale per tensor, one per channel, and codes that are not of 8 bits."""


def since(type_name: str) -> int:
    """The first opset whose nodes hold codes of this type."""
    return PER_TENSOR if type_name in ("uint8", "int8", "int32") else OTHER_WIDTHS


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
    if opset < since(type_name):
        need = since(type_name)
        raise GraphoptError(
            f"{asked} needs opset {need}, the model has {opset}; raise it with convert-opset{{to={need}}}"
        )
