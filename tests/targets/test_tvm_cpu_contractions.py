"""The contraction rules against numpy: seeded random shapes with odd sizes, strides, dilations, groups and tails."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import ISAS, compiled, convolve, random_window  # noqa: E402

from graphopt.targets.tvm.machine import Isa, host_isa, of  # noqa: E402

SEEDS = range(12)
RELATIVE = 2e-5


def check(ours: np.ndarray, expected: np.ndarray) -> None:
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=RELATIVE * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_conv2d(seed: int, isa: Isa) -> None:
    from tvm import te, topi

    from graphopt.targets.tvm.cpu.rules import conv2d

    rng, values = random.Random(seed), np.random.default_rng(seed)
    groups = rng.choice([1, 1, 2, 3])
    kernel = (rng.randint(1, 4), rng.randint(1, 4))
    shape = (rng.randint(1, 2), rng.randint(8, 19), rng.randint(8, 19), groups * rng.choice([1, 3, 5, 8, 16, 33]))
    channels = groups * rng.choice([1, 5, 16, 17, 24, 40, 64, 72])
    window = random_window(rng, kernel, groups)
    x = values.standard_normal(shape, "float32")
    w = values.standard_normal((channels, shape[3] // groups, *kernel), "float32")
    bias = values.standard_normal(channels, "float32")
    packed = conv2d.packed(shape, w, window, of(isa, 2))
    places = [te.placeholder(value.shape, "float32", f"p{i}") for i, value in enumerate((x, packed, bias))]
    anchor = conv2d.define(places[0], places[1], window, channels)
    residual = values.standard_normal([int(dim) for dim in anchor.shape], "float32")
    places.append(te.placeholder(residual.shape, "float32", "p3"))
    out = topi.nn.relu(topi.add(topi.add(anchor, places[2]), places[3]))
    expected = np.maximum(convolve(x, w, window) + bias + residual, 0)
    check(compiled(places, out, (x, packed, bias, residual), isa), expected)


@pytest.mark.parametrize("size, threads", [(4, False), (32, True)])
def test_small_functions_keep_to_one_thread(size: int, threads: bool) -> None:
    from tvm import te

    from graphopt.targets.tvm.cpu.dispatch import schedule_function
    from graphopt.targets.tvm.cpu.rules import conv2d

    isa = host_isa()
    assert isa is not None
    machine, window = of(isa, 2), conv2d.Window((1, 1), (1, 1), (1, 1, 1, 1), 1)
    shape, w = (1, size, size, 32), np.random.default_rng(0).standard_normal((32, 32, 3, 3), "float32")
    packed = conv2d.packed(shape, w, window, machine)
    places = [te.placeholder(shape, name="x"), te.placeholder(packed.shape, name="w")]
    scheduled = schedule_function(te.create_prim_func([*places, conv2d.define(*places, window, 32)]), machine)
    assert ("T.parallel" in scheduled.script()) == threads


@pytest.mark.parametrize("shape, channels", [((1, 7, 7, 1024), 40), ((1, 9, 5, 512), 96), ((2, 1, 1, 24), 1000)])
def test_pointwise_conv2d_of_aliasing_and_of_tiny_images(shape: tuple[int, ...], channels: int) -> None:
    from tvm import te

    from graphopt.targets.tvm.cpu.rules import conv2d

    isa = host_isa()
    assert isa is not None
    values = np.random.default_rng(0)
    window = conv2d.Window((1, 1), (1, 1), (0, 0, 0, 0), 1)
    x = values.standard_normal(shape, "float32")
    w = values.standard_normal((channels, shape[3], 1, 1), "float32")
    packed = conv2d.packed(shape, w, window, of(isa, 2))
    places = [te.placeholder(x.shape, "float32", "x"), te.placeholder(packed.shape, "float32", "w")]
    out = conv2d.define(*places, window, channels)
    check(compiled(places, out, (x, packed), isa), convolve(x, w, window))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_depthwise(seed: int, isa: Isa) -> None:
    from tvm import te, topi

    from graphopt.targets.tvm.cpu.rules import depthwise

    rng, values = random.Random(seed), np.random.default_rng(seed)
    kernel = (rng.randint(1, 5), rng.randint(1, 5))
    shape = (rng.randint(1, 2), rng.randint(10, 23), rng.randint(10, 23), rng.choice([3, 8, 16, 24, 33, 96]))
    window = random_window(rng, kernel, 1)
    x = values.standard_normal(shape, "float32")
    w = values.standard_normal((shape[3], 1, *kernel), "float32")
    packed = depthwise.pack(w)
    places = [te.placeholder(x.shape, "float32", "x"), te.placeholder(packed.shape, "float32", "w")]
    out = topi.nn.relu(depthwise.define(*places, window))
    by_groups = type(window)(window.strides, window.dilations, window.padding, shape[3])
    check(compiled(places, out, (x, packed), isa), np.maximum(convolve(x, w, by_groups), 0))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_matmul_with_packed_weights(seed: int, isa: Isa) -> None:
    from tvm import te, topi

    from graphopt.targets.tvm.cpu.rules import matmul

    rng, values = random.Random(seed), np.random.default_rng(seed)
    leading = rng.choice([(), (1,), (3,), (2, 3)])
    m, k, n = rng.choice([1, 2, 13, 40]), rng.choice([1, 7, 64, 1024]), rng.choice([1, 16, 31, 100, 256])
    x = values.standard_normal((*leading, m, k), "float32")
    w = values.standard_normal((k, n), "float32")
    bias = values.standard_normal(n, "float32")
    packed = matmul.packed(x.shape, w, of(isa, 2))
    places = [te.placeholder(value.shape, "float32", f"p{i}") for i, value in enumerate((x, packed, bias))]
    out = topi.add(matmul.define_packed(places[0], places[1], n), places[2])
    check(compiled(places, out, (x, packed, bias), isa), x.astype("float64") @ w + bias)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_batched_matmul_of_two_values(seed: int, isa: Isa) -> None:
    from tvm import te

    from graphopt.targets.tvm.cpu.rules import matmul

    rng, values = random.Random(seed), np.random.default_rng(seed)
    leading = rng.choice([(), (1,), (3,), (2, 3)])
    m, k, n = rng.choice([1, 5, 33]), rng.choice([1, 9, 32]), rng.choice([1, 3, 16, 29, 77])
    x = values.standard_normal((*leading, m, k), "float32")
    y = values.standard_normal((*leading, k, n), "float32")
    places = [te.placeholder(x.shape, "float32", "x"), te.placeholder(y.shape, "float32", "y")]
    check(compiled(places, matmul.define(*places), (x, y), isa), x.astype("float64") @ y)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(6))
def test_winograd(seed: int, isa: Isa, m: int) -> None:
    from tvm import te, topi

    from graphopt.targets.tvm.cpu.rules import conv2d, winograd

    rng, values = random.Random(seed), np.random.default_rng(seed)
    shape = (rng.randint(1, 2), rng.randint(3, 17), rng.randint(3, 17), rng.choice([3, 16, 33]))
    channels = rng.choice([5, 16, 40])
    window = conv2d.Window((1, 1), (1, 1), (rng.randrange(3), rng.randrange(3), rng.randrange(3), rng.randrange(3)), 1)
    x = values.standard_normal(shape, "float32")
    w = values.standard_normal((channels, shape[3], 3, 3), "float32")
    bias = values.standard_normal(channels, "float32")
    machine = of(isa, 2)
    plan = winograd.make_plan(m, conv2d.geometry(shape, w.shape, window), machine)
    packed = winograd.pack(w, plan, machine)
    places = [te.placeholder(value.shape, "float32", f"p{i}") for i, value in enumerate((x, packed, bias))]
    out = topi.nn.relu(topi.add(winograd.define(places[0], places[1], window, channels, m), places[2]))
    check(compiled(places, out, (x, packed, bias), isa), np.maximum(convolve(x, w, window) + bias, 0))


def test_winograd_is_refused_for_other_convolutions() -> None:
    from graphopt.targets.tvm.cpu.rules import conv2d, winograd

    machine = of("avx512", 1)
    plain = conv2d.Window((1, 1), (1, 1), (1, 1, 1, 1), 1)
    assert winograd.better_plan((1, 56, 56, 64), (64, 64, 3, 3), plain, machine) is not None
    for weights, window in (
        ((64, 64, 5, 5), plain),
        ((64, 64, 3, 3), conv2d.Window((2, 2), (1, 1), (1, 1, 1, 1), 1)),
        ((64, 64, 3, 3), conv2d.Window((1, 1), (2, 2), (1, 1, 1, 1), 1)),
        ((64, 32, 3, 3), conv2d.Window((1, 1), (1, 1), (1, 1, 1, 1), 2)),
    ):
        assert winograd.better_plan((1, 56, 56, 64), weights, window, machine) is None


def test_an_epilogue_of_another_shape_gets_a_nest_of_its_own() -> None:
    from tvm import te, topi

    from graphopt.targets.tvm.cpu.rules import matmul

    values = np.random.default_rng(0)
    x, w = values.standard_normal((1, 4, 20), "float32"), values.standard_normal((20, 30), "float32")
    other = values.standard_normal((3, 4, 30), "float32")
    packed = matmul.packed(x.shape, w, of(ISAS[0], 2))
    places = [te.placeholder(value.shape, "float32", f"p{i}") for i, value in enumerate((x, packed, other))]
    out = topi.add(matmul.define_packed(places[0], places[1], 30), places[2])
    check(compiled(places, out, (x, packed, other), ISAS[0]), x.astype("float64") @ w + other)
