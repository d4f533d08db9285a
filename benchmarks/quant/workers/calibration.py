"""What the peers' workers share: their arguments and the calibration samples one by one.

Runs in the peers' environments, without graphopt. A worker is started as
`python WORKER.py FLOAT.onnx CALIBRATION.npz OUT.onnx [OPTION=VALUE ...]`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """Paths of the float model, the calibration file and the result; options as given."""

    model: str
    calibration: str
    output: str
    options: dict[str, str]


def job() -> Job:
    model, calibration, output, *rest = sys.argv[1:]
    return Job(model, calibration, output, dict(option.split("=", 1) for option in rest))


class Samples:
    """Feeds of one sample each, in order, as often as asked; also the data reader that quantizers ask for."""

    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        self.rewind()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({name: array[i : i + 1] for name, array in self.arrays.items()} for i in range(len(self)))

    def rewind(self) -> None:
        self._rest = iter(self)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rest, None)


def looks_like_transformer(model: Any) -> bool:
    """Whether a graph has both layer norms and softmax, for tools that want to be told."""
    ops = {node.op_type for node in model.graph.node}
    return {"LayerNormalization", "Softmax"} <= ops
