"""Kernels for other instruction sets under qemu-user: armv7 and riscv64, which TVM has no runtime for, and NEON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.tvm
pytest.importorskip("tvm")

from tvm_edge import emulated  # noqa: E402
from tvm_kernels import convolve  # noqa: E402

from graphopt.targets.tvm.machine import Isa, of  # noqa: E402

ISAS: tuple[Isa, ...] = ("armv7", "riscv64", "neon")


def places_of(*arrays: np.ndarray) -> list[Any]:
    from tvm import te

    return [te.placeholder(array.shape, str(array.dtype), f"p{i}") for i, array in enumerate(arrays)]


def signs(values: Any, *shape: int) -> np.ndarray:
    return np.where(values.standard_normal(shape) > 0, 1, -1).astype("float32")


@pytest.mark.parametrize("isa", ISAS)
def test_a_convolution(isa: Isa, tmp_path: Path) -> None:
    from graphopt.targets.tvm.cpu.rules import conv2d

    window = conv2d.Window((1, 1), (1, 1), (1, 1, 1, 1), 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 9, 10, 5), "float32")
    weights = rng.standard_normal((11, 5, 3, 3), "float32")
    packed = conv2d.packed(x.shape, weights, window, of(isa, 2))
    places = places_of(x, packed)
    got = emulated(isa, places, conv2d.define(places[0], places[1], window, 11), [x, packed], tmp_path)
    np.testing.assert_allclose(got, convolve(x, weights, window), rtol=0, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_an_exponential_and_a_softmax(isa: Isa, tmp_path: Path) -> None:
    from tvm import topi

    x = np.random.default_rng(0).standard_normal((3, 29), "float32")
    [place] = places_of(x)
    got = emulated(isa, [place], topi.nn.softmax(place, -1), [x], tmp_path)
    wide = np.exp(x.astype("float64"))
    np.testing.assert_allclose(got, wide / wide.sum(-1, keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("channels", [32, 144])
def test_a_binary_convolution(channels: int, tmp_path: Path) -> None:
    from graphopt.targets.tvm.cpu.rules import binary, conv2d

    values, machine = np.random.default_rng(1), of("neon", 2)
    window = conv2d.Window((1, 2), (1, 1), (1, 0, 1, 1), 1)
    x, w = signs(values, 1, 7, 9, channels), signs(values, 17, channels, 3, 3)
    packing = binary.packing(channels, machine)
    assert packing is not None
    arrays = (packing.pack(x), *binary.conv_operands(x.shape, w, window, machine))
    places = places_of(*arrays)
    got = emulated("neon", places, binary.define_conv(places[0], places[1], places[2], window, 17), arrays, tmp_path)
    np.testing.assert_array_equal(got, convolve(x, w, window))


def test_a_binary_product_and_its_packing(tmp_path: Path) -> None:
    from graphopt.targets.tvm.cpu.rules import binary

    values, machine = np.random.default_rng(2), of("neon", 2)
    x, w = signs(values, 5, 416), signs(values, 416, 31)
    packing = binary.packing(416, machine)
    assert packing is not None
    [place] = places_of(x)
    packed = emulated("neon", [place], binary.define_pack(place, packing), [x], tmp_path)
    np.testing.assert_array_equal(packed, packing.pack(x))
    arrays = (packed, binary.product_operand(x.shape, w, machine))
    places = places_of(*arrays)
    got = emulated("neon", places, binary.define_product(places[0], places[1], 416, 31), arrays, tmp_path)
    np.testing.assert_array_equal(got, x @ w)


@pytest.mark.parametrize(("m", "zeros"), [(1, True), (5, False), (33, True)])
def test_a_product_with_codes_of_4_bits(m: int, zeros: bool, tmp_path: Path) -> None:
    from graphopt.targets.tvm.cpu.rules import four_bits

    values, (k, n, rows) = np.random.default_rng(m), (144, 31, 16)
    codes = values.integers(0, 16, (k, n), dtype="int8")
    scale = values.uniform(0.01, 0.1, (k // rows, n)).astype("float32")
    zero = (values.integers(0, 16, scale.shape) if zeros else np.full(scale.shape, 8)).astype("float32")
    x = values.standard_normal((m, k), "float32")
    arrays = (x, *four_bits.pack(x.shape, codes, scale, zero, of("neon", 2)))
    places = places_of(*arrays)
    got = emulated("neon", places, four_bits.define(rows, n)(*places), arrays, tmp_path)
    wide, shift = (np.repeat(value, rows, axis=0).astype("float64") for value in (scale, zero))
    expected = x @ ((codes - shift) * wide)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool, tmp_path: Path) -> None:
    from graphopt.targets.tvm.cpu.rules import attention

    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((2, length, 3, 20), "float32") for length in (37, 19, 19))
    mask = np.where(rng.random((1, 1, 37, 19)) < 0.3, -np.inf, 0).astype("float32")
    form = attention.Form((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3), turned=True, guarded=False, scale=0.3)
    arrays = [q, k, v, *([mask] if masked else [])]
    places = places_of(*arrays)
    got = emulated("neon", places, attention.define(form)(*places), arrays, tmp_path)
    scores = np.einsum("blhd,bkhd->bhlk", *(a.astype("float64") for a in (q, k))) * 0.3 + (mask if masked else 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhlk,bkhd->blhd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
