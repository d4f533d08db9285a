"""Models whose inputs and outputs are codes instead of floats, and a look at them as if they were float.

    write_codes(model, {"x": params})             # what a pass leaves in the model's metadata
    runner = float_facing(path, runner)           # takes and gives floats where the model has codes

Real value = (code - zero_point) * scale, per tensor. Not here: the pass that changes the interface (integer-io).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.quantization.affine import QParams, dequantize, qtype, quantize
from graphopt.target import Runner, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt import ir
    from graphopt.target import Arrays, Feeds

KEY = "graphopt.codes"
"""Name of the metadata: {name of an input or output: {type, scale, zero_point}} as JSON."""


def write_codes(model: ir.Model, params: Mapping[str, QParams]) -> None:
    """Tell in the model's metadata what the codes of these inputs and outputs mean."""
    rows = {
        name: {"type": item.type.name, "scale": float(item.scale), "zero_point": int(item.zero_point)}
        for name, item in params.items()
    }
    model.metadata_props[KEY] = json.dumps(rows, sort_keys=True)


def read_codes(model: ir.Model) -> dict[str, QParams]:
    """What the codes of inputs and outputs mean, by name; empty for a float model.

    Raises:
        GraphoptError: the metadata says something else.
    """
    import numpy as np

    text = model.metadata_props.get(KEY)
    if text is None:
        return {}
    try:
        return {
            str(name): QParams(qtype(row["type"]), np.float32(row["scale"]), np.int64(row["zero_point"]))  # type: ignore[arg-type]
            for name, row in json.loads(text).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GraphoptError(f"the model's metadata {KEY!r} cannot be read: {error}") from None


def float_facing(path: Path, runner: Runner) -> Runner:
    """The runner of a model file with floats where the file has codes; the runner itself when it has none."""
    from graphopt.frontends.onnx import load

    found = read_codes(load(path)) if path.suffix == ".onnx" else {}
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
