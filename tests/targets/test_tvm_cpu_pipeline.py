"""`optimize` from end to end: small Relax functions against TVM's own code, and what the module then looks like."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_kernels import check, constant, module, run  # noqa: E402

from graphopt.targets.tvm.machine import host_isa, of  # noqa: E402


def functions(optimized: Any) -> list[str]:
    from tvm import tirx

    return sorted(name.name_hint for name, f in optimized.functions_items() if isinstance(f, tirx.PrimFunc))


def test_a_small_network_keeps_one_layout() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        op = relax.op
        a = builder.emit(op.nn.conv2d(x, constant(32, 16, 3, 3), strides=(2, 2), padding=(1, 1, 1, 1)))
        a = builder.emit(op.nn.relu(builder.emit(op.add(a, builder.emit(op.reshape(constant(32), (1, 32, 1, 1)))))))
        b = builder.emit(op.nn.conv2d(a, constant(32, 32, 1, 1)))
        b = builder.emit(op.minimum(builder.emit(op.maximum(b, relax.const(0.0))), relax.const(6.0)))
        b = builder.emit(op.nn.conv2d(b, constant(32, 1, 3, 3), padding=(1, 1, 1, 1), groups=32))
        b = builder.emit(op.nn.relu(builder.emit(op.add(a, b))))
        b = builder.emit(op.nn.max_pool2d(b, (3, 3), (2, 2), (1, 1, 1, 1)))
        b = builder.emit(op.concat([b, builder.emit(op.multiply(b, builder.emit(op.sigmoid(b))))], 1))
        b = builder.emit(op.reshape(builder.emit(op.mean(b, [2, 3], keepdims=True)), (1, 64)))
        return op.matmul(b, constant(64, 10))

    names = functions(check(build, (1, 16, 18, 18)))
    assert "fused_conv2d_add_relu" in names
    assert sum("transpose" in name for name in names) <= 2, "layouts change inside of the network, not only at its ends"


def test_clips_of_the_importer_do_not_stop_layouts() -> None:
    from tvm import relax, topi

    def build(builder: Any, x: Any) -> Any:
        op = relax.op
        a = builder.emit(op.nn.conv2d(x, constant(16, 8, 1, 1)))
        a = builder.emit_te(topi.maximum, a, relax.const(0.0))
        a = builder.emit_te(topi.minimum, a, relax.const(6.0))
        return op.nn.conv2d(a, constant(16, 16, 1, 1))

    names = functions(check(build, (1, 8, 9, 9)))
    assert any("maximum" in name and "minimum" in name for name in names if name.startswith("fused_conv2d"))


@pytest.mark.parametrize(
    "kernel, strides, padding, extra",
    [
        ((2, 2), (2, 2), (0, 0, 0, 0), (0, 0)),
        ((3, 4), (2, 2), (1, 1, 1, 1), (1, 0)),
        ((3, 3), (3, 2), (0, 1, 0, 1), (0, 1)),
    ],
)
def test_transposed_convolution(
    kernel: tuple[int, int], strides: tuple[int, int], padding: tuple[int, ...], extra: tuple[int, int]
) -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        weights = constant(8, 5, *kernel)
        return relax.op.nn.conv2d_transpose(x, weights, strides, padding, output_padding=extra)

    names = functions(check(build, (1, 8, 7, 6)))
    assert any("shuffle" in name for name in names)


def test_grouped_transposed_convolution_stays_with_tvm() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv2d(x, constant(8, 4, 1, 1)))
        return relax.op.nn.conv2d_transpose(a, constant(8, 2, 2, 2), (2, 2), groups=2)

    assert not any("shuffle" in name for name in functions(check(build, (1, 4, 5, 5))))


def test_conv1d_and_sums_of_stacks() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv1d(x, constant(24, 6, 5), strides=2, padding=(2, 1)))
        return relax.op.sum(builder.emit(relax.op.stack([a, a], 0)), [0])

    names = functions(check(build, (1, 6, 31)))
    assert "conv2d" in names and not any("stack" in name or "conv1d" in name for name in names)


def test_batch_norm_folds_to_a_multiply_and_an_add() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv2d(x, constant(8, 4, 3, 3)))
        variance = relax.const(np.full(8, 2, "float32"))
        normalized = builder.emit(
            relax.op.nn.batch_norm(a, constant(8), constant(8), constant(8), variance, axis=1, training=False)
        )
        return relax.TupleGetItem(normalized, 0)

    assert len(functions(check(build, (1, 4, 9, 9)))) <= 3


def test_matmuls_of_an_attention_and_a_gelu() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        op = relax.op
        heads = functools.partial(op.permute_dims, axes=[0, 2, 1, 3])

        def project() -> Any:
            projected = builder.emit(op.add(builder.emit(op.matmul(x, constant(32, 32))), constant(32)))
            return builder.emit(heads(builder.emit(op.reshape(projected, (1, 19, 4, 8)))))

        q, k, v = project(), project(), project()
        scores = builder.emit(op.matmul(q, builder.emit(op.permute_dims(k, [0, 1, 3, 2]))))
        mixed = builder.emit(op.matmul(builder.emit(op.nn.softmax(scores, -1)), v))
        joined = builder.emit(op.reshape(builder.emit(heads(mixed)), (1, 19, 32)))
        normal = builder.emit(op.nn.layer_norm(builder.emit(op.add(joined, x)), constant(32), constant(32), [-1]))
        return op.nn.gelu(builder.emit(op.matmul(normal, constant(32, 64))))

    check(build, (1, 19, 32))


@pytest.mark.parametrize("size", [1, 5, 40])
def test_dynamic_rows(size: int) -> None:
    """Products, layer norm and softmax over a symbolic dim are scheduled, and right at several sizes."""
    import tvm
    from tvm import relax, tirx

    from graphopt.targets.tvm.cpu import optimize

    def build(builder: Any, x: Any) -> Any:
        op = relax.op
        a = builder.emit(op.nn.relu(builder.emit(op.add(builder.emit(op.matmul(x, constant(32, 40))), constant(40)))))
        scores = builder.emit(op.matmul(a, builder.emit(op.permute_dims(a, [0, 2, 1]))))
        mixed = builder.emit(op.matmul(builder.emit(op.nn.softmax(scores, -1)), a))
        return op.nn.layer_norm(mixed, constant(40), constant(40), [-1])

    isa = host_isa()
    assert isa is not None
    machine = of(isa, 2)
    x = np.random.default_rng(0).standard_normal((2, size, 32), "float32")
    n = tirx.Var("n", "int64")
    optimized = optimize(module(build, (2, n, 32)), machine)  # type: ignore[arg-type]
    assert "T.parallel" in optimized.script()
    runner = tvm.relax.VirtualMachine(tvm.compile(optimized, machine.target()), tvm.cpu())
    ours = runner["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_allclose(ours, run(module(build, x.shape), x, "llvm"), rtol=0, atol=1e-4)


def test_optimize_imports_tvm_only_when_called() -> None:
    import subprocess
    import sys

    code = "import sys, graphopt.targets.tvm.cpu; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
