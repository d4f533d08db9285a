"""What passes may ask of calibration data; the driver hands in an implementation (graphopt/calibrating.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.quantization.statistics import TensorStats
    from graphopt.target import Runner


class Accumulator(Protocol):
    """Takes in one value of the model, batch by batch, and keeps something of bounded size."""

    def update(self, array: np.ndarray) -> None: ...


class PairAccumulator(Protocol):
    """Takes in one value as two models have it, batch by batch."""

    def update_pair(self, x: np.ndarray, y: np.ndarray) -> None: ...


class Calibration(Protocol):
    """Unlabelled samples of the model's inputs, and models run on them in a child process.

    Attributes:
        origin: where the samples come from, for manifests and remarks; "random" when they were made up.
    """

    origin: str

    def batches(self, limit: int | None = None) -> Iterator[Mapping[str, Any]]:
        """Feeds by input name, batch by batch, the same ones each time; `limit` bounds the number of samples,
        but never to less than a batch of the size that the model fixes."""
        ...

    def runner(self, model: ir.Model, values: Sequence[str] = ()) -> Runner:
        """Open the model as it is now; the named inner values of its main graph are further outputs."""
        ...

    def fold(self, model: ir.Model, accumulators: Mapping[str, Accumulator], limit: int | None = None) -> None:
        """Show each accumulator its value (by name, main graph) on every batch, within the memory that was promised."""
        ...

    def fold_pairs(self, models: tuple[ir.Model, ir.Model], pairs: Mapping[tuple[str, str], PairAccumulator]) -> None:
        """Show each accumulator two values, one of each model (by name, main graph), on every batch."""
        ...

    def statistics(self, model: ir.Model, values: Sequence[str]) -> Mapping[str, TensorStats]:
        """Statistics of float values of the main graph by name: saved ones where the user gave them, else gathered."""
        ...
