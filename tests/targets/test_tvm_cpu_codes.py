"""Sums of 8-bit codes against numpy, bit for bit: seeded random shapes with odd sizes, padding, groups and tails."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import compiled, convolve, random_window  # noqa: E402

from graphopt.targets.tvm.machine import Isa, Machine, missing_flags, of  # noqa: E402

ISAS: list[Isa] = [isa for isa in ("avx512vnni", "avx512", "avx2", "neon") if not missing_flags(isa)]
CODES = {"uint8": (0, 256), "int8": (-128, 128)}


def random_codes(values: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Codes over the whole range, a fifth of them the extremes."""
    low, high = CODES[dtype]
    codes = values.integers(low, high, shape)
    extreme = values.choice([low, high - 1], shape)
    return np.where(values.random(shape) < 0.2, extreme, codes).astype(dtype)


def whole_words(x: np.ndarray, groups: int, machine: Machine) -> np.ndarray:
    """x with any codes behind the channels of each group, up to whole words."""
    from graphopt.targets.tvm.cpu.dots import of_codes

    inputs = x.shape[-1] // groups
    parts = x.reshape(*x.shape[:-1], groups, inputs)
    more = [(0, 0)] * (parts.ndim - 1) + [(0, -inputs % of_codes(machine).taps)]
    return np.pad(parts, more, constant_values=99).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(10))
def test_conv2d(seed: int, isa: Isa) -> None:
    from tvm import te

    from graphopt.targets.tvm.cpu.rules import codes

    rng, values = random.Random(seed), np.random.default_rng(seed)
    dtype, groups = ("uint8", "int8")[seed % 2], rng.choice([1, 1, 2, 3])
    kernel = rng.choice([(1, 1), (3, 3), (rng.randint(1, 4), rng.randint(1, 4))])
    inputs, channels = rng.choice([1, 3, 5, 8, 16, 33, 64]), groups * rng.choice([1, 5, 16, 17, 24, 40, 64, 72])
    shape = (rng.randint(1, 2), rng.randint(8, 19), rng.randint(8, 19), groups * inputs)
    window = random_window(rng, kernel, groups)
    zero = int(values.integers(*CODES[dtype]))
    x, w = random_codes(values, shape, dtype), random_codes(values, (channels, inputs, *kernel), "int8")
    bias = values.integers(-1000, 1000, channels)
    machine = of(isa, 2)
    packed = codes.pack_conv(shape, dtype, w, zero, bias, window, machine)
    arrays = (whole_words(x, groups, machine), packed.weights, packed.start)
    places = [te.placeholder(value.shape, str(value.dtype), f"p{i}") for i, value in enumerate(arrays)]
    out = codes.define_conv(places[0], places[1], places[2], window, channels, zero, inputs)
    expected = convolve(x.astype("int64") - zero, w, window) + bias
    np.testing.assert_array_equal(compiled(places, out, arrays, isa), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(6))
def test_matmul(seed: int, isa: Isa) -> None:
    from tvm import te

    from graphopt.targets.tvm.cpu.rules import codes

    rng, values = random.Random(seed), np.random.default_rng(seed)
    dtype, leading = ("uint8", "int8")[seed % 2], rng.choice([(), (1,), (2, 3)])
    m, k, n = rng.choice([1, 2, 13, 40]), rng.choice([1, 7, 64, 1024]), rng.choice([1, 16, 31, 100, 256])
    zero = int(values.integers(*CODES[dtype]))
    x, w = random_codes(values, (*leading, m, k), dtype), random_codes(values, (k, n), "int8")
    bias = values.integers(-1000, 1000, n)
    machine = of(isa, 2)
    packed = codes.pack_matmul(x.shape, dtype, w, zero, bias, machine)
    arrays = (whole_words(x, 1, machine), packed.weights, packed.start)
    places = [te.placeholder(value.shape, str(value.dtype), f"p{i}") for i, value in enumerate(arrays)]
    out = codes.define_matmul(places[0], places[1], places[2], n, k)
    expected = (x.astype("int64") - zero) @ w.astype("int64") + bias
    np.testing.assert_array_equal(compiled(places, out, arrays, isa), expected)
