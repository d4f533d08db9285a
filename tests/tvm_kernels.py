"""Schedules, builds and runs tensor expressions and Relax functions for the tests of targets/tvm/cpu."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from graphopt.targets.tvm.machine import Isa, host_isa, missing_flags, of

Build = Callable[[Any, Any], Any]

_ALL: tuple[Isa, ...] = ("avx512", "avx2", "neon")
# Instruction sets whose code runs here.
ISAS: list[Isa] = [isa for isa in _ALL if not missing_flags(isa)]


def compiled(places: Sequence[Any], out: Any, arrays: Sequence[np.ndarray], isa: Isa, threads: int = 2) -> np.ndarray:
    """Schedule, build and run a TE expression, on all threads however small it is."""
    import tvm
    from tvm import te

    from graphopt.targets.tvm.cpu import dispatch

    machine = of(isa, threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_WORTH_THREADS", 0)
        function = dispatch.schedule_function(te.create_prim_func([*places, out]), machine)
    unset = np.nan if str(out.dtype).startswith("float") else 77
    result = tvm.runtime.tensor(np.full([int(dim) for dim in out.shape], unset, str(out.dtype)))
    tvm.tirx.build(function, target=machine.target())["main"](*map(tvm.runtime.tensor, arrays), result)
    return result.numpy()


def constant(*shape: int) -> Any:
    from tvm import relax

    return relax.const(np.random.default_rng(sum(shape)).standard_normal(shape, "float32") / 4)


def module(build: Build, shape: Sequence[int]) -> Any:
    """A Relax module whose `main` is what `build(builder, x)` returns."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(build(builder, x))
        builder.emit_func_output(out)
    return builder.get()


def run(built: Any, x: np.ndarray, target: Any) -> np.ndarray:
    import tvm

    machine = tvm.relax.VirtualMachine(tvm.compile(built, target), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


def optimized(build: Build, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """The optimized module for this CPU, and what it computes of `x`."""
    from graphopt.targets.tvm.cpu import optimize

    isa = host_isa()
    assert isa is not None
    machine = of(isa, 2)
    out = optimize(module(build, x.shape), machine)
    return out, run(out, x, machine.target())


def check(build: Build, shape: Sequence[int]) -> Any:
    """Compare with TVM's unscheduled code; return the optimized module."""
    x = np.random.default_rng(0).standard_normal(tuple(shape), "float32")
    expected = run(module(build, shape), x, "llvm")
    out, actual = optimized(build, x)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-5 * scale)
    return out


def convolve(x: np.ndarray, w: np.ndarray, window: Any) -> np.ndarray:
    """NHWC input, OIHW weights, in double precision."""
    top, left, bottom, right = window.padding
    x = np.pad(x.astype("float64"), ((0, 0), (top, bottom), (left, right), (0, 0)))
    channels, inputs, kh, kw = w.shape
    rows = (x.shape[1] - (kh - 1) * window.dilations[0] - 1) // window.strides[0] + 1
    cols = (x.shape[2] - (kw - 1) * window.dilations[1] - 1) // window.strides[1] + 1
    out = np.zeros((x.shape[0], rows, cols, channels))
    per_group = channels // window.groups
    for r in range(kh):
        for s in range(kw):
            top, left = r * window.dilations[0], s * window.dilations[1]
            part = x[:, top : top + rows * window.strides[0] : window.strides[0]]
            part = part[:, :rows, left : left + cols * window.strides[1] : window.strides[1]][:, :, :cols]
            for g in range(window.groups):
                channel = slice(g * per_group, (g + 1) * per_group)
                out[..., channel] += part[..., g * inputs : (g + 1) * inputs] @ w[channel, :, r, s].T
    return out


def random_window(rng: random.Random, kernel: tuple[int, int], groups: int) -> Any:
    from graphopt.targets.tvm.cpu.rules.conv2d import Window

    def pair(low: int, high: int) -> tuple[int, int]:
        return rng.randint(low, high), rng.randint(low, high)

    padding = (rng.randrange(kernel[0]), rng.randrange(kernel[1]), rng.randrange(kernel[0]), rng.randrange(kernel[1]))
    return Window(pair(1, 3), pair(1, 2), padding, groups)
