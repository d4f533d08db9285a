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
    packing = binary.packing(shape[3], of(isa, 2))
    assert packing is not None
    packed, base = binary.conv_operands(shape, w, window, of(isa, 2))
    arrays = (packing.pack(x), packed, base, bias)
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
    packing = binary.packing(k, of(isa, 2))
    assert packing is not None
    arrays = (packing.pack(x), binary.product_operand(x.shape, w, of(isa, 2)))
    places = places_of(arrays)
    out = topi.add(binary.define_product(*places, k, n), topi.full((1,), "float32", 0.5))
    np.testing.assert_array_equal(compiled(places, out, arrays, isa), x @ w + np.float32(0.5))


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize("channels", [16, 40, 64, 128, 1056])
def test_packing(channels: int, isa: Isa) -> None:
    from graphopt.targets.tvm.cpu.rules import binary

    x = np.random.default_rng(0).standard_normal((2, 3, channels), "float32")
    packing = binary.packing(channels, of(isa, 2))
    assert packing is not None
    [place] = places_of([x])
    out = compiled([place], binary.define_pack(place, packing), (x,), isa)
    np.testing.assert_array_equal(out, packing.pack(x))


def test_channels_that_fill_no_words_are_refused() -> None:
    from graphopt.targets.tvm.cpu.rules.binary import Packing, packing

    machine = of("avx512", 1)
    assert [packing(channels, machine) for channels in (3, 15, 41)] == [None] * 3
    assert packing(16, machine) == Packing(1, 16, 16) and packing(40, machine) == Packing(2, 20, 5)
    assert packing(128, machine) == Packing(4, 32, 4) and packing(1056, machine) == Packing(33, 32, 1)
