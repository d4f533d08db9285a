"""From rows of a weight to codes, scales and zero points, a piece of rows at a time.

Not here: the quantizers (graphopt/quantization), and how an op stores the result (_weight_forms.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError
from graphopt.ir.builder import NoMatch
from graphopt.quantization.affine import QTYPES, QParams, dequantize, quantize
from graphopt.quantization.weights import lost_weights, weight_params

if TYPE_CHECKING:
    import numpy as np

    from graphopt.passes.quantize._weight_plan import Setting
    from graphopt.passes.quantize._weight_sites import Weight

_PIECE = 4 << 20  # elements

MOST_LOST = {4: 0.4, 8: 0.15}
"""Share of weights that may round to zero, by bits. Of the layers of MiniLM and MobileNetV2 4 bits in groups of 32 lose
0.11 in the median and 0.31 at most, 8 bits 0.01 and 0.09; a head whose rows hold a few huge weights lost 0.2 to 0.7."""


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
        NoMatch: it holds NaN or infinities, its type cannot hold a scale, or most of it would become zero.
    """
    parts: list[tuple[np.ndarray, QParams]] = []
    lost = there = 0
    for _, rows in pieces(weight, alpha):
        params = row_params(rows, weight, setting, signed)
        codes = quantize(rows, params)
        parts.append((codes, params))
        gone, counted = lost_weights(rows, dequantize(codes, params))
        lost, there = lost + gone, there + counted
    refuse_lost(lost, there, MOST_LOST[setting.bits])
    return joined(parts)


def refuse_lost(lost: int, there: int, most: float) -> None:
    """Leave a weight in float of which too little would be left.

    Raises:
        NoMatch: more than a share of `most` of its elements became zero.
    """
    if lost > most * there:
        raise NoMatch(f"{lost / there:.0%} of its weights would round to zero beside a few that are far larger")


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
