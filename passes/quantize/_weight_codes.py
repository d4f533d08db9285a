"""From rows of a weight to codes, scales and zero points, a piece of rows at a time.

Not here: the quantizers (graphopt/quantization), and how an op stores the result (_weight_forms.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError
from graphopt.ir.builder import NoMatch
from graphopt.quantization.affine import QTYPES, QParams, quantize
from graphopt.quantization.weights import weight_params

if TYPE_CHECKING:
    import numpy as np

    from graphopt.passes.quantize._weight_plan import Setting
    from graphopt.passes.quantize._weight_sites import Weight

_PIECE = 4 << 20  # elements


@dataclass(frozen=True, eq=False)
class Quantized:
    """A weight as integers.

    Attributes:
        codes: (N, K), one per element.
        scale, zero: float32 and integers (N, groups).
        group: columns that share a scale, K at most.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    group: int


def quantize_weight(weight: Weight, setting: Setting, signed: bool, alpha: float = 1.0) -> Quantized:
    """Round to the nearest code, `alpha` times the weight.

    Raises:
        NoMatch: it holds NaN or infinities, or its type cannot hold a scale.
    """
    parts: list[tuple[np.ndarray, QParams]] = []
    for _, rows in pieces(weight, alpha):
        params = row_params(rows, weight, setting, signed)
        parts.append((quantize(rows, params), params))
    return joined(parts)


def pieces(weight: Weight, alpha: float) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of `alpha` times a weight, some at a time, each with the index of its first."""
    import numpy as np

    step = max(1, _PIECE // weight.width)
    for start in range(0, weight.count, step):
        rows = weight.rows(start, min(start + step, weight.count))
        yield start, rows if alpha == 1 else rows * np.float32(alpha)


def row_params(
    rows: np.ndarray, weight: Weight, setting: Setting, signed: bool, importance: np.ndarray | None = None
) -> QParams:
    """The quantizer of some rows of a weight.

    Raises:
        NoMatch: they hold NaN or infinities, or the weight's type cannot hold a scale.
    """
    try:
        return weight_params(
            rows,
            QTYPES[f"{'' if signed else 'u'}int{setting.bits}"],
            min(setting.group, weight.width) or weight.width,
            symmetric=setting.symmetric,
            clip="mse" if setting.clip == "mse" else "none",
            importance=importance,
            dtype=weight.tensor.dtype.numpy(),
        )
    except GraphoptError as error:
        raise NoMatch(f"its weight {weight.value.name!r} {error}") from None


def joined(parts: list[tuple[np.ndarray, QParams]]) -> Quantized:
    """Pieces of rows put together."""
    import numpy as np

    codes = [codes for codes, _ in parts]
    return Quantized(
        np.concatenate(codes) if len(codes) > 1 else codes[0],
        np.concatenate([params.scale for _, params in parts]),
        np.concatenate([params.zero_point for _, params in parts]),
        parts[0][1].group,
    )
