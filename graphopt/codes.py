"""A look at models whose inputs and outputs are codes or half precision as if they were float.

    runner = float_facing(path, runner)           # takes and gives floats where the model has codes or halves

Not here: what the codes mean (graphopt/quantization/interface.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from graphopt.quantization.affine import dequantize, quantize
from graphopt.quantization.interface import read_codes
from graphopt.target import Runner, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.quantization.affine import QParams
    from graphopt.target import Arrays, Feeds


_CODES = ("tensor(uint8)", "tensor(int8)")
_HALVES = {"tensor(float16)": "FLOAT16", "tensor(bfloat16)": "BFLOAT16"}


def float_facing(path: Path, runner: Runner, names: Collection[str] | None = None) -> Runner:
    """The runner of a model file with float32 where the file has codes or halves; itself when it has neither.

    Args:
        names: the inputs and outputs that are meant; None: all.
    """
    from graphopt.frontends.onnx import load

    ends = (*runner.inputs, *runner.outputs)
    types = {spec.name: spec.type for spec in ends if names is None or spec.name in names}
    found: dict[str, _Form] = {name: _Half(_HALVES[type_]) for name, type_ in types.items() if type_ in _HALVES}
    codes = [name for name, type_ in types.items() if type_ in _CODES]
    if codes and path.suffix == ".onnx":
        known = read_codes(load(path))
        found.update({name: _Codes(known[name]) for name in codes if name in known})
    return FloatFacing(runner, found) if found else runner


class _Form(Protocol):
    """How the model has a tensor that is float32 outside."""

    def of(self, value: Any) -> Any:
        """What the model takes for a value."""

    def value(self, given: Any) -> Any:
        """The value behind what the model gives."""


@dataclass(frozen=True)
class _Codes:
    params: QParams

    def of(self, value: Any) -> Any:
        return quantize(value, self.params)

    def value(self, given: Any) -> Any:
        return dequantize(given, self.params)


@dataclass(frozen=True)
class _Half:
    dtype: str

    def of(self, value: Any) -> Any:
        import numpy as np

        from graphopt import ir

        with np.errstate(over="ignore"):  # what is too large is infinite then, as in the model
            return np.asarray(value).astype(ir.DataType[self.dtype].numpy())

    def value(self, given: Any) -> Any:
        import numpy as np

        return np.asarray(given).astype(np.float32)


class FloatFacing(Runner):
    """Converts feeds and results; timing is that of the model alone.

    Attributes:
        converted: names of the inputs and outputs that are another type in the model.
    """

    def __init__(self, inner: Runner, forms: Mapping[str, _Form]) -> None:
        self._inner, self._forms = inner, forms
        self.converted = tuple(forms)
        self.inputs = tuple(map(self._spec, inner.inputs))
        self.outputs = tuple(map(self._spec, inner.outputs))

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        results = self._inner.run(self._inside(feeds), outputs)
        return {
            name: self._forms[name].value(value) if name in self._forms else value for name, value in results.items()
        }

    def with_taps(self, values: Sequence[str]) -> Runner:
        return FloatFacing(self._inner.with_taps(values), self._forms)

    def time(self, feeds: Feeds, n: int) -> list[float]:
        return self._inner.time(self._inside(feeds), n)

    def close(self) -> None:
        self._inner.close()

    def _inside(self, feeds: Feeds) -> dict[str, Any]:
        return {name: self._forms[name].of(value) if name in self._forms else value for name, value in feeds.items()}

    def _spec(self, spec: TensorSpec) -> TensorSpec:
        return TensorSpec(spec.name, "tensor(float)", spec.shape) if spec.name in self._forms else spec
