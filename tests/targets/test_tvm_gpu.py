"""Rules for GPUs: each takes what it is for, and computes in emulation what code for CPUs does, in any thread order."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from tvm_gpu import check  # noqa: E402
from tvm_kernels import constant, module, run  # noqa: E402

from graphopt.targets.tvm.gpu import contraction, tensor_cores  # noqa: E402
from graphopt.targets.tvm.gpu import emulation as gpu_emulation  # noqa: E402
from graphopt.targets.tvm.gpu.driver import first_gpu  # noqa: E402
from graphopt.targets.tvm.gpu.tiling import TILES, Problem, best, multiprocessors  # noqa: E402

without_gpu = pytest.mark.skipif(
    not isinstance(first_gpu(), str), reason="emulation stands in for a GPU, and one is here"
)


@without_gpu
@pytest.mark.parametrize(
    ("shape", "weights", "options"),
    [
        ((1, 16, 12, 11), (24, 16, 3, 3), {"padding": (1, 1, 1, 1)}),
        ((2, 5, 9, 9), (7, 5, 3, 2), {"strides": (2, 1), "dilation": (1, 2)}),
        ((1, 32, 8, 8), (64, 32, 1, 1), {}),
        ((1, 3, 21, 21), (16, 3, 7, 7), {"strides": (2, 2), "padding": (3, 3, 3, 3)}),
    ],
)
def test_convolutions_are_tiled_products(
    shape: tuple[int, ...], weights: tuple[int, ...], options: dict[str, Any]
) -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv2d(x, constant(*weights), **options))
        bias = builder.emit(relax.op.reshape(constant(weights[0]), (1, weights[0], 1, 1)))
        return relax.op.nn.relu(builder.emit(relax.op.add(a, bias)))

    rules = check(build, shape)
    assert rules["contraction"] == 1 and "fallback" not in rules


@without_gpu
@pytest.mark.parametrize("groups, inner", [(32, 1), (4, 8)])
def test_grouped_convolutions_have_a_thread_for_each_output(groups: int, inner: int) -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv2d(x, constant(32, inner, 3, 3), padding=(1, 1, 1, 1), groups=groups))
        return relax.op.clip(a, 0.0, 6.0)

    rules = check(build, (1, 32, 12, 12))
    assert "fallback" not in rules and "contraction" not in rules


@without_gpu
def test_pools_and_means_and_elementwise_functions() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        op = relax.op
        a = builder.emit(op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1)))
        a = builder.emit(op.nn.avg_pool2d(a, (2, 2), (1, 1)))
        a = builder.emit(op.concat([a, builder.emit(op.multiply(a, builder.emit(op.sigmoid(a))))], 1))
        a = builder.emit(op.add(a, builder.emit(op.mean(a, [2, 3], keepdims=True))))
        return op.permute_dims(builder.emit(op.strided_slice(a, [1], [0], [5])), [0, 2, 3, 1])

    rules = check(build, (1, 4, 35, 35))
    assert "fallback" not in rules and rules["spatial"] >= 3


@without_gpu
def test_large_windows_use_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    sources: list[str] = []
    original = gpu_emulation.launchers
    monkeypatch.setattr(gpu_emulation, "launchers", lambda text: sources.append(text) or original(text))

    def build(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv2d(x, constant(32, 1, 3, 3), padding=(1, 1, 1, 1), groups=32))
        a = builder.emit(relax.op.nn.relu(a))
        return relax.op.nn.max_pool2d(a, (3, 3), (1, 1), (1, 1, 1, 1))

    rules = check(build, (1, 32, 46, 46))
    assert "fallback" not in rules and rules["spatial"] >= 2
    assert sources[0].count("float4") > 12


@without_gpu
def test_large_elementwise_functions_use_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    sources: list[str] = []
    original = gpu_emulation.launchers
    monkeypatch.setattr(gpu_emulation, "launchers", lambda text: sources.append(text) or original(text))

    def build(builder: Any, x: Any) -> Any:
        return relax.op.multiply(builder.emit(relax.op.exp(x)), constant(64))

    assert check(build, (32, 32, 64)) == {"spatial": 1}
    assert "float4" in sources[0]


@without_gpu
@pytest.mark.parametrize("depth", [96, 2048])
def test_a_product_chooses_by_bools(depth: int) -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        rows = builder.emit(relax.op.strided_slice(x, [1], [0], [96]))
        flags = builder.emit(relax.op.permute_dims(builder.emit(relax.op.greater(rows, relax.const(0.0))), [1, 0]))
        product = builder.emit(relax.op.matmul(x, constant(depth, 96)))
        return relax.op.where(flags, product, relax.const(7.0))

    assert check(build, (96, depth))["contraction"] == 1


@without_gpu
def test_attention_is_products_and_reductions() -> None:
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

    rules = check(build, (1, 19, 32))
    assert "fallback" not in rules and rules["contraction"] >= 4


@without_gpu
def test_a_sum_of_everything_is_stored_by_one_thread() -> None:
    from tvm import relax

    check(lambda builder, x: relax.op.prod(x, keepdims=True), (3, 2, 2))


@without_gpu
def test_a_product_of_one_row() -> None:
    from tvm import relax

    rules = check(lambda builder, x: relax.op.matmul(x, constant(300, 70)), (1, 300))
    assert "contraction" not in rules and "fallback" not in rules


@without_gpu
@pytest.mark.parametrize("rows, cols, transposed", [(50, 40, False), (130, 200, False), (33, 64, True)])
def test_halves_are_multiplied_on_tensor_cores(rows: int, cols: int, transposed: bool) -> None:
    from tvm import relax

    # Small whole numbers: halves hold their products and sums exactly.
    rng = np.random.default_rng(1)
    x = rng.integers(-4, 5, (rows, 72)).astype("float32")
    weights = rng.integers(-4, 5, (cols, 72) if transposed else (72, cols)).astype("float16")

    def build(builder: Any, x: Any) -> Any:
        halves = builder.emit(relax.op.astype(x, "float16"))
        # Not a constant, whose transpose would be folded.
        nothing = builder.emit(relax.op.multiply(builder.emit(relax.op.min(halves)), relax.const(np.float16(0))))
        w = builder.emit(relax.op.add(relax.const(weights), nothing))
        w = builder.emit(relax.op.permute_dims(w)) if transposed else w
        return relax.op.matmul(halves, w, out_dtype="float32")

    wide = weights.astype("float32").T if transposed else weights.astype("float32")
    assert check(build, x.shape, x, x @ wide)["tensor cores"] == 1


@without_gpu
def test_convolutions_of_halves_use_tensor_cores() -> None:
    from tvm import relax

    rng = np.random.default_rng(1)
    x = rng.integers(-4, 5, (1, 32, 9, 9)).astype("float32")
    weights = rng.integers(-4, 5, (24, 32, 3, 3)).astype("float16")

    def build(builder: Any, x: Any) -> Any:
        halves = builder.emit(relax.op.astype(x, "float16"))
        return single(builder, builder.emit(relax.op.astype(halves, "float32")))  # as lowering makes it

    def single(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv2d(x, relax.const(weights.astype("float32")), padding=(1, 1, 1, 1)))
        return relax.op.nn.relu(a)

    assert check(build, x.shape, x, run(module(single, x.shape), x, "llvm"))["tensor cores"] == 1


@without_gpu
def test_a_nan_goes_through_maxima() -> None:
    from tvm import relax

    values = np.array([[-1.0, np.nan, 2.0, np.inf]], "float32")
    rules = check(lambda builder, x: relax.op.maximum(relax.const(0.0), x), values.shape, values)
    assert rules == {"spatial": 1}


@without_gpu
def test_sorts_and_running_sums() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        order = builder.emit(relax.op.astype(builder.emit(relax.op.argsort(x, axis=1)), "float32"))
        a = builder.emit(relax.op.add(builder.emit(relax.op.cumsum(x, axis=1)), order))
        return relax.op.add(a, builder.emit(relax.op.cumsum(x, axis=0, exclusive=True)))

    assert "fallback" in check(build, (3, 40))


@without_gpu
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_tile_computes_the_product(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    left = list(TILES)
    monkeypatch.setattr(contraction, "best", lambda *_: (left.pop(), parts))

    def build(builder: Any, x: Any) -> Any:
        products = [relax.op.matmul(x, constant(150, 60 + index)) for index in range(len(TILES))]
        return relax.op.concat([builder.emit(item) for item in products], axis=1)

    rules = check(build, (70, 150))
    assert rules["contraction"] == len(TILES) and not left


@without_gpu
@pytest.mark.parametrize("parts", [1, 2])
def test_every_tile_of_tensor_cores_computes_the_product(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    left = list(tensor_cores.CHOICES)
    monkeypatch.setattr(tensor_cores, "best", lambda *_: (left.pop(), parts))
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (70, 150)).astype("float32")
    weights = [rng.integers(-3, 4, (150, 60 + index)).astype("float16") for index in range(len(left))]
    expected = np.concatenate([x @ weight.astype("float32") for weight in weights], axis=1)

    def build(builder: Any, x: Any) -> Any:
        halves = builder.emit(relax.op.astype(x, "float16"))
        products = [relax.op.matmul(halves, relax.const(weight), out_dtype="float32") for weight in weights]
        return relax.op.concat([builder.emit(item) for item in products], axis=1)

    assert check(build, x.shape, x, expected)["tensor cores"] == len(weights) and not left


@without_gpu
def test_sums_cut_into_parts_keep_their_epilogue() -> None:
    from tvm import relax

    def build(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.nn.conv2d(x, constant(24, 96, 3, 3), padding=(1, 1, 1, 1)))
        bias = builder.emit(relax.op.reshape(constant(24), (1, 24, 1, 1)))
        return relax.op.nn.relu(builder.emit(relax.op.add(a, bias)))

    assert best(Problem(1, 49, 24, 864), TILES, "sm_90")[1] > 1
    assert check(build, (1, 96, 7, 7))["contraction"] == 1


def test_tiles_fit_the_problem() -> None:
    (large, whole), (small, parts) = (
        best(problem, TILES, "sm_90") for problem in (Problem(1, 4096, 4096, 1024), Problem(1, 49, 512, 4608))
    )
    assert large.rows >= 64 and whole == 1
    blocks = -(-49 // small.rows) * (512 // small.cols)
    assert parts > 1 and blocks * parts >= multiprocessors("sm_90")
    assert best(Problem(1, 49, 512, 32), TILES, "sm_90")[1] == 1, "two steps at least in each part"
    for tile in TILES:
        assert 32 <= tile.threads <= 1024 and tile.shared_bytes(4) <= 48 << 10
