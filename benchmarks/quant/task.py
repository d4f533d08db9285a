"""One evaluation task: a float32 model, calibration samples of the train split, and held-out samples to score on.

Not here: which tasks there are (tasks.py) and how their files are made (fashion.py, text.py, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.models.cache import place

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, Any]
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""run(feeds) -> outputs by name; any runtime, any model with the task's interface."""

Judge = Callable[[Mapping[str, Any], Arrays], Any]
"""judge(outputs, rows of test.npz) -> float array, one value in [0, 1] per sample."""

LABEL = "label"


@dataclass(frozen=True)
class Spec:
    """How a task is made and scored.

    Attributes:
        build: build(folder) writes model.onnx, calibration.npz and test.npz (first axis: samples) into an empty folder.
        judges: metrics by name; the first is the one that counts.
        prepare: rows of test.npz -> feeds; None when they are the feeds themselves (but for `label`).
        batch: samples per run while scoring.
        version: part of the cache key; raise it when anything about the files changes.
    """

    name: str
    summary: str
    build: Callable[[Path], None]
    judges: Mapping[str, Judge]
    prepare: Callable[[Arrays], Arrays] | None = None
    batch: int = 50
    version: int = 1


@dataclass(frozen=True)
class Task:
    """A task whose files are there."""

    spec: Spec
    folder: Path

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def metric(self) -> str:
        """Name of the metric that counts."""
        return next(iter(self.spec.judges))

    @property
    def model(self) -> Path:
        """The float32 ONNX file."""
        return self.folder / "model.onnx"

    @property
    def calibration(self) -> Path:
        """All calibration samples: an .npz whose keys are the input names, first axis samples."""
        return self.folder / "calibration.npz"

    @property
    def samples(self) -> int:
        """How many held-out samples there are."""
        return len(next(iter(self._test.values())))

    @cached_property
    def _test(self) -> Arrays:
        return read(self.folder / "test.npz")

    def calibration_of(self, count: int) -> Path:
        """The first `count` calibration samples (they are in random order) as a file of their own.

        Raises:
            ValueError: there are not as many.
        """
        arrays = read(self.calibration)
        there = len(next(iter(arrays.values())))
        if not 0 < count <= there:
            raise ValueError(f"{count} calibration samples are asked for, {self.name} has {there}")
        if count == there:
            return self.calibration
        few = {name: array[:count] for name, array in arrays.items()}
        return place(self.folder / f"calibration-{count}.npz", lambda made: write(made, few))

    def feeds(self, start: int = 0, stop: int = 1) -> Arrays:
        """The held-out samples [start, stop) as feeds."""
        rows = self.rows(start, stop)
        if self.spec.prepare is not None:
            return self.spec.prepare(rows)
        return {name: array for name, array in rows.items() if name != LABEL}

    def rows(self, start: int, stop: int) -> Arrays:
        return {name: array[start:stop] for name, array in self._test.items()}

    def score(self, run: Run, samples: int | None = None) -> np.ndarray:
        """Correctness of each of the first `samples` held-out samples (None: all) in the metric that counts."""
        return self.scores(run, samples)[self.metric]

    def scores(self, run: Run, samples: int | None = None) -> dict[str, np.ndarray]:
        """Per-sample values of every metric, float64 [samples]."""
        import numpy as np

        total = min(self.samples, samples or self.samples)
        parts: dict[str, list[Any]] = {name: [] for name in self.spec.judges}
        for start in range(0, total, self.spec.batch):
            stop = min(start + self.spec.batch, total)
            outputs, rows = run(self.feeds(start, stop)), self.rows(start, stop)
            for name, judge in self.spec.judges.items():
                parts[name].append(np.asarray(judge(outputs, rows), dtype=np.float64))
        return {name: np.concatenate(values) for name, values in parts.items()}


def top1(outputs: Mapping[str, Any], rows: Arrays) -> Any:
    """1 where the largest logit of the only output is the label's."""
    (logits,) = outputs.values()
    return logits.argmax(axis=-1) == rows[LABEL]


def read(path: Path) -> Arrays:
    """The arrays of an .npz file."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to exactly `path`, uncompressed."""
    import numpy as np

    with path.open("wb") as stream:
        np.savez(stream, **arrays)
