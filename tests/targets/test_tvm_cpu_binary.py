"""Packed binary kernels against sums of +-1 in numpy, which they equal to the last bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import ISAS, compiled, convolve, random_window  # noqa: E402

from graphopt.targets.tvm.machine import Isa, missing_flags, of  # noqa: E402

ALL: list[Isa] = [*ISAS, *(["avx512vpopcntdq"] if not missing_flags("avx512vpopcntdq") else [])]


def signs(values: Any, *shape: int) -> np.ndarray:
    return np.where(values.standard_normal(shape) > 0, 1, -1).astype("float32")


def places_of(arrays: Any) -> list[Any]:
    from tvm import te

    return [te.placeholder(array.shape, str(array.dtype), f"p{i}") for i, array in enumerate(arrays)]


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("seed", range(10))
def test_convolution(seed: int, isa: Isa) -> None:
    from tvm import topi

    from graphopt.targets.tvm.cpu.rules import binary

    rng, values = random.Random(seed), np.random.default_rng(seed)
    kernel = (rng.randint(1, 4), rng.randint(1, 4))
    shape = (rng.randint(1, 2), rng.randint(8, 15), rng.randint(8, 15), rng.choice([16, 32, 40, 64, 96, 144, 1056]))
    channels = rng.choice([1, 5, 16, 17, 40, 64, 72])
    window = random_window(rng, kernel, 1)
    x, w = signs(values, *shape), signs(values, channels, shape[3], *kernel)
    bias = values.integers(-50, 50, channels).astype("float32")
    count = binary.words(shape[3])
    assert count is not None
    packed, base = binary.conv_operands(shape, w, window, of(isa, 2))
    arrays = (binary.pack_bits(x, count), packed, base, bias)
    places = places_of(arrays)
    out = topi.nn.relu(topi.add(binary.define_conv(*places[:3], window, channels), places[3]))
    np.testing.assert_array_equal(compiled(places, out, arrays, isa), np.maximum(convolve(x, w, window) + bias, 0))


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("seed", range(8))
def test_product(seed: int, isa: Isa) -> None:
    from tvm import topi

    from graphopt.targets.tvm.cpu.rules import binary

    rng, values = random.Random(seed), np.random.default_rng(seed)
    leading = rng.choice([(), (1,), (2, 3)])
    m, k, n = rng.choice([1, 2, 13, 40]), rng.choice([16, 64, 416, 1024, 4096]), rng.choice([1, 16, 31, 100, 256])
    x, w = signs(values, *leading, m, k), signs(values, k, n)
    count = binary.words(k)
    assert count is not None
    arrays = (binary.pack_bits(x, count), binary.product_operand(x.shape, w, of(isa, 2)))
    places = places_of(arrays)
    out = topi.add(binary.define_product(*places, k, n), topi.full((1,), "float32", 0.5))
    np.testing.assert_array_equal(compiled(places, out, arrays, isa), x @ w + np.float32(0.5))


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("channels", [16, 40, 128, 1056])
def test_packing(channels: int, isa: Isa) -> None:
    from graphopt.targets.tvm.cpu.rules import binary

    x = np.random.default_rng(0).standard_normal((2, 3, channels), "float32")
    count = binary.words(channels)
    assert count is not None
    [place] = places_of([x])
    out = compiled([place], binary.define_pack(place, count), (x,), isa)
    np.testing.assert_array_equal(out, binary.pack_bits(x, count))


def test_channels_that_fill_no_words_are_refused() -> None:
    from graphopt.targets.tvm.cpu.rules import binary

    assert [binary.words(channels) for channels in (3, 15, 16, 40, 41, 128, 1056)] == [None, None, 1, 2, None, 4, 33]
