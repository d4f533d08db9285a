"""How codes of 2, 4 and 8 bits lie in the tensors of an op: low bits first, several codes to a byte.

Not here: which codes (affine.py, rounding.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def pack(codes: np.ndarray, bits: int, fill: int = 0) -> np.ndarray:
    """Pack the last axis: (..., K) codes of 0 .. 2^bits - 1 to (..., ceil(K * bits / 8)) bytes; `fill` pads it."""
    import numpy as np

    per = 8 // bits
    short = -codes.shape[-1] % per
    if short:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)], constant_values=fill)
    bytes_ = codes.astype(np.uint8).reshape(*codes.shape[:-1], -1, per)
    packed = bytes_[..., 0].copy()
    for place in range(1, per):
        packed |= bytes_[..., place] << (bits * place)
    return packed


def pack_blocks(codes: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Codes (N, K) as MatMulNBits stores them: (N, ceil(K / block), block * bits / 8) bytes.

    The last block is filled with the code that stands for zero where no zero point is given.
    """
    import numpy as np

    short = -codes.shape[1] % block
    if short:
        codes = np.pad(codes, ((0, 0), (0, short)), constant_values=1 << (bits - 1))
    return pack(codes.reshape(len(codes), -1, block), bits)
