"""Transposed convolution as a convolution of all its phases at once, followed by a shuffle of pixels.

Output position t = oy + padding, with q = t // stride and phase r = t % stride, sees input q - j through the kernel's
element r + stride * j. For each phase that is a convolution of stride 1 with ceil(kernel / stride) elements, so one
convolution with stride * stride times the channels computes all of them, and the output picks its phase. Nothing is
multiplied by inserted zeros. The convolution is conv2d.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te

from graphopt.targets.tvm.cpu.loops import Expr
from graphopt.targets.tvm.cpu.rules.conv2d import Window


def phases(weights: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """IOHW weights of a transposed convolution as OIHW weights of the convolution of all phases."""
    inputs, outputs, kh, kw = weights.shape
    sh, sw = strides
    rows, cols = math.ceil(kh / sh), math.ceil(kw / sw)
    padded = np.zeros((inputs, outputs, rows * sh, cols * sw), weights.dtype)
    padded[:, :, :kh, :kw] = weights
    split = padded.reshape(inputs, outputs, rows, sh, cols, sw)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4).reshape(sh * sw * outputs, inputs, rows, cols))


def window(
    size: Sequence[int], outputs: Sequence[int], kernel: Sequence[int], strides: Sequence[int], before: Sequence[int]
) -> Window:
    """The convolution's window: `size` input rows and columns, `outputs` of the transposed convolution."""
    reach = [math.ceil(k / s) - 1 for k, s in zip(kernel, strides, strict=True)]
    needed = [(out - 1 + p) // s + 1 for out, p, s in zip(outputs, before, strides, strict=True)]
    after = [max(0, n - i) for n, i in zip(needed, size, strict=True)]
    return Window((1, 1), (1, 1), (reach[0], reach[1], after[0], after[1]), 1)


def shuffle(x: Any, outputs: Sequence[int], channels: int, strides: Sequence[int], before: Sequence[int]) -> Any:
    """NHWC output of so many rows, columns and channels, picked from all phases."""

    def at(n: Expr, row: Expr, col: Expr, channel: Expr) -> Expr:
        y, z = row + before[0], col + before[1]
        phase = (y % strides[0]) * strides[1] + z % strides[1]
        return x[n, y // strides[0], z // strides[1], phase * channels + channel]

    return te.compute((x.shape[0], *outputs, channels), at, "shuffle")
