"""A look at models whose inputs and outputs are codes as if they were float.

    runner = float_facing(path, runner)           # takes and gives floats where the model has codes

Not here: what the codes mean (graphopt/quantization/interface.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.quantization.affine import dequantize, quantize
from graphopt.quantization.interface import read_codes
from graphopt.target import Runner, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.quantization.affine import QParams
    from graphopt.target import Arrays, Feeds


_CODES = ("tensor(uint8)", "tensor(int8)")


def float_facing(path: Path, runner: Runner) -> Runner:
    """The runner of a model file with floats where the file has codes; the runner itself when it has none."""
    from graphopt.frontends.onnx import load

    if path.suffix != ".onnx" or not any(spec.type in _CODES for spec in (*runner.inputs, *runner.outputs)):
        return runner
    found = read_codes(load(path))
    return _FloatFacing(runner, found) if found else runner


class _FloatFacing(Runner):
    """Quantizes feeds and dequantizes results; timing is that of the model alone."""

    def __init__(self, inner: Runner, params: Mapping[str, QParams]) -> None:
        self._inner, self._params = inner, params
        self.inputs = tuple(map(self._spec, inner.inputs))
        self.outputs = tuple(map(self._spec, inner.outputs))

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        results = self._inner.run(self._codes(feeds), outputs)
        return {
            name: dequantize(value, self._params[name]) if name in self._params else value
            for name, value in results.items()
        }

    def with_taps(self, values: Sequence[str]) -> Runner:
        return _FloatFacing(self._inner.with_taps(values), self._params)

    def time(self, feeds: Feeds, n: int) -> list[float]:
        return self._inner.time(self._codes(feeds), n)

    def close(self) -> None:
        self._inner.close()

    def _codes(self, feeds: Feeds) -> dict[str, Any]:
        return {
            name: quantize(value, self._params[name]) if name in self._params else value
            for name, value in feeds.items()
        }

    def _spec(self, spec: TensorSpec) -> TensorSpec:
        return TensorSpec(spec.name, "tensor(float)", spec.shape) if spec.name in self._params else spec
