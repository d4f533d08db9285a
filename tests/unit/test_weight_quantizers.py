"""Quantizers of weight rows, and how codes lie in bytes."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.quantization.affine import INT4, INT8, UINT4, UINT8, QType, fake_quantize
from graphopt.quantization.packing import pack, pack_blocks
from graphopt.quantization.weights import weight_params

ROWS = np.random.default_rng(0).standard_t(4, (8, 100)).astype(np.float32)


def error(rows: np.ndarray, qtype: QType, weight: np.ndarray | None = None, **options: object) -> np.ndarray:
    """Squared error of each row."""
    gaps = np.square(fake_quantize(rows, weight_params(rows, qtype, 32, **options)) - rows)  # type: ignore[arg-type]
    return np.asarray((gaps if weight is None else gaps * weight).sum(axis=1))


def test_one_scale_per_row_and_group() -> None:
    params = weight_params(ROWS, UINT4, 32)
    assert params.scale.shape == params.zero_point.shape == (8, 4)
    assert weight_params(ROWS, UINT4, 0).scale.shape == (8, 1)
    assert np.all(np.abs(fake_quantize(ROWS, weight_params(ROWS, UINT8, 32, clip="none")) - ROWS) < 0.05)


@pytest.mark.parametrize("qtype", [INT4, UINT4, INT8, UINT8], ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_searched_clip_is_never_worse(qtype: QType, symmetric: bool) -> None:
    none = error(ROWS, qtype, symmetric=symmetric, clip="none")
    searched = error(ROWS, qtype, symmetric=symmetric, clip="mse")
    assert np.all(searched <= none * (1 + 1e-5))
    if qtype.bits == 4:
        assert searched.sum() < 0.95 * none.sum()


def test_columns_that_count_more_are_rounded_better() -> None:
    weight = np.ones(100, np.float32)
    weight[::7] = 100
    plain, weighted = (error(ROWS, UINT4, weight, importance=item) for item in (None, weight))
    assert np.all(weighted <= plain * (1 + 1e-5)) and weighted.sum() < 0.9 * plain.sum()


def test_scales_are_those_that_half_precision_holds() -> None:
    params = weight_params(ROWS, UINT8, 32, dtype="float16")
    assert np.array_equal(params.scale, params.scale.astype(np.float16).astype(np.float32))
    assert np.all(weight_params(ROWS * 1e-9, UINT8, 32, dtype="float16").scale >= 2.0**-14)
    with pytest.raises(GraphoptError, match="beyond float16"):
        weight_params(ROWS * 1e9, UINT8, 32, dtype="float16")


def test_codes_lie_low_bits_first() -> None:
    codes = np.array([[1, 2, 3], [15, 0, 7]])
    assert pack(codes, 4).tolist() == [[0x21, 0x03], [0x0F, 0x07]]
    assert pack(codes, 4, fill=8).tolist() == [[0x21, 0x83], [0x0F, 0x87]]
    assert pack(np.array([[3, 2, 1, 0, 1]]), 2).tolist() == [[0b00011011, 1]]
    assert pack(codes, 8).tolist() == codes.tolist()


def test_blocks_are_filled_with_the_code_of_zero() -> None:
    packed = pack_blocks(np.full((2, 20), 5), 4, 16)
    assert packed.shape == (2, 2, 8)
    assert packed[0, 1].tolist() == [0x55, 0x55, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88]
