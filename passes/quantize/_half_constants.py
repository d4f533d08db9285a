"""Constants in half precision: what of them the narrow type cannot hold, and their conversion.

Tensors are read in pieces; large ones are converted when they are written, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir

LARGEST = {"FLOAT16": 65504.0, "BFLOAT16": (2 - 2.0**-7) * 2.0**127}
"""The largest finite number of a type."""

SMALLEST = {"FLOAT16": 2.0**-14, "BFLOAT16": 2.0**-126}
"""The smallest normal number of a type."""

_PIECE = 1 << 20  # elements
_LAZY = 4 << 20  # elements


def largest_magnitude(tensor: ir.TensorProtocol) -> float:
    """The largest finite magnitude of a float32 tensor, 0.0 when it has none; read in pieces of 4 MiB."""
    import numpy as np

    flat = tensor.numpy().reshape(-1)
    largest = 0.0
    for start in range(0, flat.size, _PIECE):
        piece = np.abs(flat[start : start + _PIECE])
        largest = max(largest, float(np.max(piece, where=np.isfinite(piece), initial=0.0)))
    return largest


def narrowed(tensor: ir.TensorProtocol, dtype: ir.DataType, limit: float | None = None) -> ir.TensorProtocol:
    """The tensor in another float type, rounded to nearest even; finite elements beyond `limit` become +-limit.

    Tensors over 16 MiB are converted anew on each reading and take no memory in between.
    """
    from graphopt import ir

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(_converted(tensor.numpy(), dtype.numpy(), limit), dtype=dtype)

    if tensor.size <= _LAZY:
        return convert()
    return ir.LazyTensor(convert, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()))


def _converted(array: np.ndarray, dtype: np.dtype, limit: float | None) -> np.ndarray:
    import numpy as np

    if limit is not None:
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(array.astype(dtype)).reshape(array.shape)
