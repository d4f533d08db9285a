"""benchmarks/gpu_tiles: the model of time against the measurements beside its page, and the kernels behind them."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

from benchmarks import gpu_kernels, gpu_tiles  # noqa: E402
from graphopt.targets.tvm.gpu import contraction, tensor_cores  # noqa: E402
from graphopt.targets.tvm.gpu.tiling import Problem  # noqa: E402
from graphopt.targets.tvm.machine import gpu  # noqa: E402


def test_the_model_chooses_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_tiles", "--no-write"])
    assert gpu_tiles.main() == 0
    assert "All bars are met." in capsys.readouterr().out


def test_each_measured_choice_is_one_of_today() -> None:
    for name, dtype, kind, parts, _, _ in gpu_tiles.load()["rows"]:
        half = dtype == "float16"
        assert tuple(kind) in gpu_kernels.tiles(half) and parts >= 1 and name in gpu_kernels.PRODUCTS


@pytest.mark.parametrize("half", [False, True])
def test_each_choice_has_a_schedule(half: bool) -> None:
    product = gpu_kernels.PRODUCTS["1x1 384-64, 14x14"]
    plain, machine = gpu_kernels.function(product, half), gpu(gpu_kernels.ARCH)
    rule = tensor_cores if half else contraction
    found = list(gpu_kernels.choices(product.problem, half))
    assert len({parts for _, _, parts in found}) > 2
    for _, tile, parts in found:
        with machine.target():
            assert rule.schedule(plain, machine, (tile, parts)) is not None


def test_sizes_of_a_convolution() -> None:
    product = gpu_kernels.conv(224, 3, 64, 7, 2)
    assert product.out == (1, 112, 112, 64)
    assert product.problem == Problem(1, 112 * 112, 64, 147)
