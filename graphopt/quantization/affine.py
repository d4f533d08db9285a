"""Affine quantizers: real = scale * (q - zero_point), as QuantizeLinear and DequantizeLinear of ONNX define it.

    params = params_from_range(-1.0, 3.0, UINT8)            # one scale; arrays give one per channel
    q = quantize(x, params); y = dequantize(q, params)      # y = x up to half a step, saturated at the ends

Rounding is half to even, out-of-range values saturate, and zero is always exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class QType:
    """An integer type that values are quantized to: `bits` wide, two's complement when `signed`."""

    name: str
    bits: int
    signed: bool

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def __str__(self) -> str:
        return self.name


INT4, UINT4 = QType("int4", 4, True), QType("uint4", 4, False)
INT8, UINT8 = QType("int8", 8, True), QType("uint8", 8, False)
INT16, UINT16 = QType("int16", 16, True), QType("uint16", 16, False)
INT32 = QType("int32", 32, True)
QTYPES = {item.name: item for item in (INT4, UINT4, INT8, UINT8, INT16, UINT16, INT32)}

SMALLEST_SCALE = 2.0**-120
"""Scales are kept away from float32's denormals, whose reciprocal overflows."""


def qtype(name: str) -> QType:
    """The type of that name.

    Raises:
        GraphoptError: there is none, with the nearest name.
    """
    if name not in QTYPES:
        raise GraphoptError(f"there is no quantized type {name!r}{did_you_mean(name, QTYPES)}")
    return QTYPES[name]


@dataclass(frozen=True, eq=False)
class QParams:
    """How one tensor is quantized.

    Attributes:
        type: the integer type.
        scale: float32, positive; shape () per tensor, (C,) per channel of `axis`, or per group the tensor's shape with
            `axis` divided by `group` (rounded up).
        zero_point: integers of `type`, shaped as `scale`.
        axis: the channel axis, or the axis that groups run along; None per tensor.
        group: elements of `axis` that share a scale; 0 for per channel and per tensor.
    """

    type: QType
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None
    group: int = 0

    def along(self, axis: int | None, group: int = 0) -> QParams:
        """The same scales laid along an axis."""
        return replace(self, axis=axis, group=group)

    def spread(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point in shapes that broadcast against a tensor of `shape`."""
        import numpy as np

        if self.axis is None:
            return self.scale, self.zero_point
        axis = self.axis % len(shape)
        if self.group:
            wide = [np.repeat(item, self.group, axis=axis) for item in (self.scale, self.zero_point)]
            cut = tuple(slice(size) for size in shape)
            return wide[0][cut], wide[1][cut]
        tail = (1,) * (len(shape) - axis - 1)
        return self.scale.reshape(-1, *tail), self.zero_point.reshape(-1, *tail)


def params_from_range(
    low: Any,
    high: Any,
    qtype: QType,
    *,
    symmetric: bool = False,
    power_of_two: bool = False,
    narrow: bool = False,
) -> QParams:
    """The quantizer whose grid spans [low, high], widened to hold zero exactly.

    asymmetric: scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale)
    symmetric:  scale = max(|low|, |high|) / qmax (signed); the zero point is 0, or the middle of an unsigned type

    Args:
        low, high: numbers or float arrays of one shape (one entry per channel or group).
        qtype: the integer type.
        symmetric: put zero in the middle of the type.
        power_of_two: round the scale up to a power of two (fixed point: a shift instead of a product).
        narrow: leave out the lowest code of a signed type, so that the codes are symmetric as well.

    Raises:
        GraphoptError: a bound is NaN or infinite, or low > high.
    """
    import numpy as np

    a = np.minimum(np.asarray(low, np.float64), 0.0)
    b = np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or np.any(np.asarray(low) > np.asarray(high)):
        raise GraphoptError(f"no quantizer spans the range {low} to {high}")
    qmin = qtype.qmin + (1 if narrow and qtype.signed else 0)
    if symmetric:
        middle = 0 if qtype.signed else (qtype.qmax + 1) // 2
        zero = np.full(a.shape, middle, np.int64)
        scale = np.maximum(-a, b) / (qtype.qmax - middle)
    else:
        scale = (b - a) / (qtype.qmax - qmin)
        zero = np.zeros(a.shape, np.int64)
    scale = _tame(scale, power_of_two)
    if not symmetric:
        zero = np.clip(np.rint(qmin - a / scale), qmin, qtype.qmax).astype(np.int64)
    return QParams(qtype, scale.astype(np.float32), zero, None if a.ndim == 0 else 0)


def _tame(scale: np.ndarray, power_of_two: bool) -> np.ndarray:
    """Scales as float32 can hold them; a tensor of zeros gets 1."""
    import numpy as np

    scale = np.where(scale == 0, 1.0, np.maximum(scale, SMALLEST_SCALE))
    return 2.0 ** np.ceil(np.log2(scale)) if power_of_two else scale


def quantize(x: np.ndarray, params: QParams) -> np.ndarray:
    """q = saturate(round_half_even(x / scale) + zero_point), in the smallest numpy type that holds the codes.

    4-bit codes come in int8 or uint8, one per element.
    """
    import numpy as np

    scale, zero = params.spread(x.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.rint(x.astype(np.float32) / scale).astype(np.float64) + zero
    codes = np.clip(np.nan_to_num(codes, nan=0.0), params.type.qmin, params.type.qmax)
    return codes.astype(storage(params.type))


def dequantize(q: np.ndarray, params: QParams) -> np.ndarray:
    """x = (q - zero_point) * scale, float32."""
    import numpy as np

    scale, zero = params.spread(q.shape)
    return ((q.astype(np.int64) - zero).astype(np.float32) * scale).astype(np.float32)


def fake_quantize(x: np.ndarray, params: QParams) -> np.ndarray:
    """dequantize(quantize(x)): what the rest of the graph sees."""
    return dequantize(quantize(x, params), params)


def storage(qtype: QType) -> np.dtype:
    """The numpy type that holds the codes of a quantized type, one per element."""
    import numpy as np

    bits = max(8, qtype.bits)
    return np.dtype(f"{'' if qtype.signed else 'u'}int{bits}")


def channel_ranges(x: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest element: per channel of `axis`, or of the whole tensor (shape ()).

    Raises:
        GraphoptError: the tensor holds NaN or infinities.
    """
    import numpy as np

    if not np.isfinite(x).all():
        raise GraphoptError("holds NaN or infinities")
    over = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    empty = x.size == 0
    low = np.zeros(() if axis is None else x.shape[axis], np.float32) if empty else x.min(axis=over)
    high = low if empty else x.max(axis=over)
    return np.asarray(low), np.asarray(high)


def group_ranges(x: np.ndarray, axis: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest element of each `group` consecutive elements along `axis`; the last group may be short.

    Returns:
        Two arrays of the tensor's shape with `axis` divided by `group` (rounded up).
    """
    import numpy as np

    if not np.isfinite(x).all():
        raise GraphoptError("holds NaN or infinities")
    starts = np.arange(0, x.shape[axis], group)
    return np.minimum.reduceat(x, starts, axis=axis), np.maximum.reduceat(x, starts, axis=axis)


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise: 10 log10(sum x^2 / sum (x - y)^2) in decibels; inf when equal."""
    import numpy as np

    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - other)))
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal else -float("inf")
