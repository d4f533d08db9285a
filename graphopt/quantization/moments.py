"""Second moments of what a weight is multiplied with: H = sum of x x^T, gathered batch by batch.

    moments = Moments(k)                        # for MatMul: the last axis is summed over
    moments.update(activations)                 # any number of times
    moments.fit[0], moments.check[0]            # (K, K): four of five samples, and the fifth, to check with
    paired = PairedMoments(k)                   # of two models at once: update_pair(x, y)

Bounded by K, whatever the number of samples. Not here: what is done with them (rounding.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HELD_OUT = 5
"""One sample in so many is kept for checking."""

MAX_PATCHES = 4096
"""Positions of one batch that a convolution's moments are taken from, evenly spread."""

_LEAST, _MOST = 1e-30, 1e30
"""Mean squares, summed over samples, between which float32 has all its digits."""


class Moments:
    """An accumulator of x x^T, in two parts by sample (first axis).

    Args:
        width: K, the elements of x.
        groups: matrices that are kept apart, as the groups of a convolution.
        rows: from an activation to x's, (groups, R, K); by default all axes but the last run over x's.
        transposed: the activation is a matrix (K, samples).

    Attributes:
        fit, check: float64 (groups, K, K).
        finite: False once a NaN or infinity was seen; such batches do not count.
    """

    def __init__(
        self,
        width: int,
        groups: int = 1,
        rows: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        transposed: bool = False,
    ) -> None:
        import numpy as np

        self.width = width
        self.fit = np.zeros((groups, width, width))
        self.check = np.zeros((groups, width, width))
        self.finite = True
        self.samples = 0
        self._transposed = transposed
        self._rows = rows or (lambda array: array.reshape(1, -1, width))

    def update(self, array: np.ndarray) -> None:
        """Take in one batch."""
        import numpy as np

        if not np.isfinite(array).all():
            self.finite = False
            return
        if self._transposed:
            array = array.T
        held = (np.arange(self.samples, self.samples + len(array)) % HELD_OUT) == HELD_OUT - 1
        self.samples += len(array)
        for total, part in ((self.fit, array[~held]), (self.check, array[held])):
            if len(part):
                rows = self._rows(np.asarray(part, np.float32))
                with np.errstate(over="ignore", invalid="ignore"):  # why_useless tells
                    total += rows.transpose(0, 2, 1) @ rows

    def held_out(self) -> np.ndarray:
        """What to check with: the held-out samples, or all of them when there are too few to hold any out."""
        return self.check if self.check.any() else self.fit


@dataclass
class PairSums:
    """Sums over rows x of the float model and y of the quantized one, float64, per group.

    Attributes:
        xx, xy, yy: of x x^T, x y^T and y y^T, (groups, K, K).
        x, y: of x and y, (groups, K).
        count: rows.
    """

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    x: np.ndarray
    y: np.ndarray
    count: int = 0

    @classmethod
    def zero(cls, groups: int, width: int, *, same: bool = False) -> PairSums:
        """Empty sums; where x and y are the `same`, one array stands for all three."""
        import numpy as np

        yy, y = np.zeros((groups, width, width)), np.zeros((groups, width))
        if same:
            return cls(yy, yy, yy, y, y)
        return cls(np.zeros_like(yy), np.zeros_like(yy), yy, np.zeros_like(y), y)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in rows (groups, R, K)."""
        import numpy as np

        self.yy += _products(y, y)
        self.y += y.sum(axis=1, dtype=np.float64)
        if self.xx is not self.yy:
            self.xx += _products(x, x)
            self.xy += _products(x, y)
            self.x += x.sum(axis=1, dtype=np.float64)
        self.count += x.shape[1]


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum over rows of x y^T, float64 (groups, K, K).

    Float32 multiplies only what is left without the means: beside a large mean it would lose what varies, and taking
    the means out again would leave its rounding errors.
    """
    import numpy as np

    (a, mean_x), (b, mean_y) = _split(x), _split(y)
    # x y^T = a b^T + x m_y^T + m_x b^T, summed
    left = np.stack([x.sum(axis=1, dtype=np.float64), mean_x], axis=2)
    right = np.stack([mean_y, b.sum(axis=1, dtype=np.float64)], axis=1)
    total: np.ndarray = left @ right
    with np.errstate(over="ignore", invalid="ignore"):  # why_useless tells
        total += a.transpose(0, 2, 1) @ b
    return total


def _split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows without their mean, float32; and that mean as float32 holds it, in float64 (groups, K)."""
    import numpy as np

    mean = x.mean(axis=1, dtype=np.float64).astype(np.float32)
    return x - mean[:, None], mean.astype(np.float64)


class PairedMoments:
    """What Moments gathers of the quantized model's activation, beside the same activation of the float model.

    Args:
        width, groups, rows, transposed: as for Moments.
        same: the activation of the quantized model stands for that of the float model.

    Attributes:
        fit, check: sums over four of five samples, and over the fifth, to check with.
        finite: False once a NaN or infinity was seen; such batches do not count.
    """

    def __init__(
        self,
        width: int,
        groups: int = 1,
        rows: Callable[[np.ndarray], np.ndarray] | None = None,
        *,
        transposed: bool = False,
        same: bool = False,
    ) -> None:
        self.fit, self.check = (PairSums.zero(groups, width, same=same) for _ in range(2))
        self.finite = True
        self.samples = 0
        self._transposed = transposed
        self._rows = rows or (lambda array: array.reshape(1, -1, width))

    def update_pair(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in one batch: of the float model, and of the quantized one."""
        import numpy as np

        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            self.finite = False
            return
        if self._transposed:
            x, y = x.T, y.T
        held = (np.arange(self.samples, self.samples + len(x)) % HELD_OUT) == HELD_OUT - 1
        self.samples += len(x)
        for sums, chosen in ((self.fit, ~held), (self.check, held)):
            if chosen.any():
                rows = self._rows(np.asarray(y[chosen], np.float32))
                sums.add(rows if x is y else self._rows(np.asarray(x[chosen], np.float32)), rows)

    def held_out(self) -> PairSums:
        """What to check with: the held-out samples, or all of them when there are too few to hold any out."""
        return self.check if self.check.count else self.fit


def why_useless(moments: np.ndarray) -> str | None:
    """Why sums of x x^T (groups, K, K) show nothing of how to round; None when they do."""
    import numpy as np

    sizes = np.einsum("gkk->g", moments) / moments.shape[-1]
    sizes = sizes[sizes != 0]
    if not sizes.size:
        return "its inputs are zero on all samples"
    if not ((sizes > _LEAST) & (sizes < _MOST)).all():
        return "its inputs on the samples are too large or too small for sums of squares in float32"
    return None


def bytes_of(width: int, groups: int = 1) -> int:
    """What a Moments of that size takes."""
    return 2 * groups * width * width * 8


@dataclass(frozen=True)
class Windows:
    """How a convolution reads its input.

    Attributes:
        kernel, strides, dilations: per spatial axis.
        pads: zeros before, then after, per spatial axis; "same-upper" or "same-lower" as auto_pad has them.
        groups: of channels.
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[int] | str
    groups: int = 1

    def patches(self, x: np.ndarray) -> np.ndarray:
        """Activations (B, C, *spatial) as what each output position reads: (groups, R, C / groups * kernel).

        At most MAX_PATCHES positions, evenly spread over batch and space.
        """
        import numpy as np

        rank = len(self.kernel)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        before, after = self._margins(x.shape[2:], spans)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
        steps = tuple(slice(None, None, s) for s in self.strides)
        inner = tuple(slice(None, None, d) for d in self.dilations)
        view = view[(slice(None), slice(None), *steps, *inner)]  # (B, C, *out, *kernel)
        view = np.moveaxis(view, 1, 1 + rank)  # (B, *out, C, *kernel)
        positions = view.shape[: 1 + rank]
        count = int(np.prod(positions))
        chosen = np.arange(0, count, max(1, -(-count // MAX_PATCHES)))
        picked = view[np.unravel_index(chosen, positions)]  # (R, C, *kernel)
        split = picked.reshape(len(chosen), self.groups, -1)
        return np.ascontiguousarray(split.transpose(1, 0, 2))

    def _margins(self, sizes: Sequence[int], spans: Sequence[int]) -> tuple[list[int], list[int]]:
        rank = len(self.kernel)
        if not isinstance(self.pads, str):
            return list(self.pads[:rank]), list(self.pads[rank:])
        totals = [
            max(0, (-(-size // stride) - 1) * stride + span - size)
            for size, stride, span in zip(sizes, self.strides, spans, strict=True)
        ]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return (small, large) if self.pads == "same-upper" else (large, small)
