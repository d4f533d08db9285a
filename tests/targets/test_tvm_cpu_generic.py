"""The generic rule and the polynomials against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import ISAS, compiled  # noqa: E402

from graphopt.targets.tvm.machine import Isa  # noqa: E402

Case = tuple[list[tuple[int, ...]], Callable[..., Any], Callable[..., np.ndarray]]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + bias


def _windows(x: np.ndarray, fill: float) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]


def _cases() -> dict[str, Case]:
    from tvm import topi

    def pool(kind: str) -> Callable[..., Any]:
        return lambda x: topi.nn.pool2d(
            x, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), kind, layout="NHWC", count_include_pad=False
        )

    def average(x: np.ndarray) -> np.ndarray:
        return _windows(x, 0).sum((-1, -2)) / _windows(np.ones_like(x), 0).sum((-1, -2))

    return {
        "add": ([(3, 5, 70), (70,)], topi.add, np.add),
        "large add": ([(8, 64, 48), (8, 64, 48)], topi.add, np.add),
        "scalar broadcast": ([(5, 1), (1, 9)], topi.add, np.add),
        "softmax": ([(3, 4, 50)], lambda x: topi.nn.softmax(x, -1), _softmax),
        "large softmax": ([(12, 64, 64)], lambda x: topi.nn.softmax(x, -1), _softmax),
        "layer norm": (
            [(1, 37, 100), (100,), (100,)],
            lambda x, g, b: topi.nn.layer_norm(x, g, b, [2], 1e-5),
            _layer_norm,
        ),
        "max pool": ([(2, 15, 13, 40)], pool("max"), lambda x: _windows(x, -np.inf).max((-1, -2))),
        "average pool": ([(1, 15, 15, 24)], pool("avg"), average),
        "sum of rows": ([(5, 77)], lambda x: topi.sum(x, [1]), lambda x: x.sum(1)),
        "sum of all": ([(5, 77)], lambda x: topi.sum(x, [0, 1], keepdims=True), lambda x: x.sum(keepdims=True)),
        "maximum of columns": ([(40, 77)], lambda x: topi.max(x, [0]), lambda x: x.max(0)),
        "global average": (
            [(1, 7, 7, 64)],
            lambda x: topi.sum(x, [1, 2], keepdims=True),
            lambda x: x.sum((1, 2))[:, None, None],
        ),
        "transpose": ([(1, 9, 11, 40)], lambda x: topi.transpose(x, (0, 3, 1, 2)), lambda x: x.transpose(0, 3, 1, 2)),
        "concatenate": (
            [(1, 5, 40), (1, 5, 24)],
            lambda x, y: topi.nn.relu(topi.concatenate([x, y], 2)),
            lambda x, y: np.maximum(np.concatenate([x, y], 2), 0),
        ),
        "pad": ([(3, 20)], lambda x: topi.nn.pad(x, (1, 2), (0, 3)), lambda x: np.pad(x, ((1, 0), (2, 3)))),
    }


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", list(_cases()))
def test_generic(name: str, isa: Isa) -> None:
    from tvm import te

    shapes, define, expected = _cases()[name]
    values = np.random.default_rng(0)
    arrays = [values.standard_normal(shape, "float32") for shape in shapes]
    places = [te.placeholder(shape, "float32", f"p{i}") for i, shape in enumerate(shapes)]
    ours = compiled(places, define(*places), arrays, isa)
    np.testing.assert_allclose(ours, expected(*(value.astype("float64") for value in arrays)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "erf"])
def test_polynomials(name: str) -> None:
    """Within a few ulp where the result is normal; NaN stays NaN."""
    import math

    from tvm import te, topi

    functions: dict[str, Callable[[float], float]] = {
        "exp": math.exp,
        "tanh": math.tanh,
        "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
        "erf": math.erf,
    }
    x = np.concatenate([np.linspace(-87, 88.7, 3001), np.linspace(-5, 5, 4001), [0.0]]).astype("float32")
    place = te.placeholder((len(x) + 3,), "float32", "x")
    special = np.array([np.nan, np.inf, -np.inf], "float32")
    ours = compiled([place], getattr(topi, name)(place), [np.concatenate([x, special])], ISAS[0])
    np.testing.assert_allclose(ours[:-3], [functions[name](float(value)) for value in x], rtol=5e-7, atol=1e-37)
    assert np.isnan(ours[-3])
    limits = {"exp": (math.inf, 0.0), "tanh": (1.0, -1.0), "sigmoid": (1.0, 0.0), "erf": (1.0, -1.0)}[name]
    for value, limit in zip(ours[-2:], limits, strict=True):
        assert value == pytest.approx(limit, abs=1e-6)
