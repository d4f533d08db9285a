"""Slices of a model for calibration: what its values weigh, and which of them fit into the memory that is promised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphopt.inputsizes import is_unnamed, size_of

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir


def sizes_in(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What the symbolic dims of the inputs are in these feeds."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        shape = getattr(feeds.get(value.name or ""), "shape", ())
        for dim, size in zip(value.shape or (), shape, strict=False):
            if not isinstance(dim, int) and dim.value and not is_unnamed(dim):
                found[dim.value] = size
    return found


def bytes_of(feeds: Mapping[str, np.ndarray]) -> int:
    """Bytes of a batch."""
    return sum(getattr(value, "nbytes", 0) for value in feeds.values())


def value_bytes(value: ir.Value, bindings: Mapping[str, int]) -> int | None:
    """Bytes of a value under bindings; None when that is not known beforehand."""
    if value.shape is None or value.dtype is None:
        return None
    count = 1
    for dim in value.shape:
        size = size_of(dim, bindings)
        if size is None:
            return None
        count *= size
    return count * max(1, value.dtype.bitwidth // 8)


def pack(sizes: Mapping[str, float], budget: int) -> list[list[str]]:
    """Names in groups whose sizes stay within the budget; a larger one is alone."""
    parts: list[list[str]] = []
    room = 0.0
    for name, size in sizes.items():
        if not parts or size > room:
            parts.append([])
            room = budget
        parts[-1].append(name)
        room -= size
    return parts
