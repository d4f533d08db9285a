"""Operators without a rule of their own: what `optimize` makes of each is what TVM's unscheduled code computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import check, constant, optimized  # noqa: E402

Case = Callable[[Any, Any], Any]


def _image(builder: Any, x: Any) -> Any:
    """The 7 x 9 input as an image that a convolution made, so that layouts are involved."""
    from tvm import relax

    return builder.emit(relax.op.nn.conv2d(builder.emit(relax.op.reshape(x, (1, 1, 7, 9))), constant(4, 1, 1, 1)))


def _through(dtype: str, middle: Case) -> Case:
    """A case in another dtype, between float32."""
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        inside = builder.emit(middle(builder, builder.emit(relax.op.astype(x, dtype))))
        return relax.op.astype(inside, "float32")

    return build


def _cases() -> dict[str, Case]:
    from tvm import relax

    op = relax.op

    def indices(*shape: int) -> Any:
        return relax.const(np.arange(np.prod(shape)).reshape(shape) % 2, "int64")

    return {
        "cumsum": lambda b, x: op.cumsum(x, 1),
        "sort": lambda b, x: op.sort(x, -1),
        "argmax": lambda b, x: op.argmax(x, -1),
        "topk": lambda b, x: b.emit(op.topk(x, 3))[0],
        "take": lambda b, x: op.take(x, relax.const(np.array([1, 0, 2]), "int64"), 1),
        "strided_slice": lambda b, x: op.strided_slice(x, [1], [1], [5], [2]),
        "log_softmax": lambda b, x: op.nn.log_softmax(x, -1),
        "tile": lambda b, x: op.tile(x, (2, 3)),
        "flip": lambda b, x: op.flip(x, 1),
        "variance": lambda b, x: op.variance(x, [0]),
        "std": lambda b, x: op.std(x, [1]),
        "where": lambda b, x: op.where(b.emit(op.greater(x, relax.const(0.0))), x, relax.const(1.0)),
        "gather_elements": lambda b, x: op.gather_elements(x, indices(7, 9), 1),
        "scatter_elements": lambda b, x: op.scatter_elements(x, indices(7, 9), x, 0, "add"),
        "scatter_nd": lambda b, x: op.scatter_nd(x, indices(2, 1), constant(2, 9), "update"),
        "power": lambda b, x: op.power(b.emit(op.abs(x)), relax.const(3.0)),
        "sum of all": lambda b, x: op.sum(x),
        "log of a sum": lambda b, x: op.log(b.emit(op.sum(b.emit(op.exp(x)), [0]))),
        "int64 sum": _through("int64", lambda b, x: op.sum(x, [1])),
        "group_norm": lambda b, x: op.nn.group_norm(_image(b, x), constant(4), constant(4), 2, 1, [2, 3]),
        "instance_norm": lambda b, x: op.nn.instance_norm(_image(b, x), constant(4), constant(4), 1, [2, 3]),
        "rms_norm": lambda b, x: op.nn.rms_norm(x, constant(9), [-1]),
        "resize2d": lambda b, x: op.image.resize2d(_image(b, x), (14, 18), layout="NCHW", method="linear"),
        "pad": lambda b, x: op.nn.pad(_image(b, x), (0, 0, 0, 0, 1, 1, 1, 1)),
        "prelu": lambda b, x: op.nn.prelu(_image(b, x), constant(4), 1),
        "leakyrelu": lambda b, x: op.nn.leakyrelu(_image(b, x), 0.1),
        "adaptive_avg_pool2d": lambda b, x: op.nn.adaptive_avg_pool2d(_image(b, x), (1, 1)),
        "conv3d": lambda b, x: op.nn.conv3d(b.emit(op.reshape(x, (1, 1, 7, 3, 3))), constant(4, 1, 2, 2, 2)),
        "vector x matrix": lambda b, x: op.matmul(b.emit(op.reshape(x, (63,))), constant(63, 5)),
        "matrix x vector": lambda b, x: op.matmul(x, constant(9)),
        "matrix x batch": lambda b, x: op.matmul(x, constant(3, 9, 5)),
    }


@pytest.mark.parametrize("name", list(_cases()))
def test_operator(name: str) -> None:
    check(_cases()[name], (7, 9))


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


# Operators that add, in float16, and what they are in double precision. TVM's own code adds in float16.
SUMS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[np.ndarray], np.ndarray]]] = {
    "softmax": (lambda op, x: op.nn.softmax(x, -1), _softmax),
    "log_softmax": (lambda op, x: op.nn.log_softmax(x, -1), lambda x: np.log(_softmax(x))),
    "sum": (lambda op, x: op.sum(x, [1]), lambda x: x.sum(1)),
    "mean": (lambda op, x: op.mean(x, [0]), lambda x: x.mean(0)),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_halves_are_rounded_once(name: str) -> None:
    run_op, exact = SUMS[name]
    shape = (7, 203)

    def case(builder: Any, x: Any) -> Any:
        from tvm import relax

        return run_op(relax.op, x)

    x = np.random.default_rng(0).standard_normal(shape, "float32")
    halves = x.astype("float16").astype("float64")
    _, out = optimized(_through("float16", case), x)
    # Half a unit in the last place, and a little for sums in float32.
    np.testing.assert_allclose(out, exact(halves), rtol=2.0**-11 * 1.01, atol=2.0**-24)
