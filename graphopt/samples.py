"""Unlabelled samples of a model's inputs, cut into batches that the model takes; the same ones each time.

    samples = open_samples("calib.npz", inputs_of(model))
    for feeds in samples.batches(limit=512): ...

Not here: reading archives, folders and functions (samplefiles.py), how they are cut (samplecut.py), and running the
model (calibrating.py).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.frontends.onnx import file_hash
from graphopt.inputsizes import required_inputs
from graphopt.samplecut import Cutter
from graphopt.samplefiles import function_named, iterable_again, pieces_of_objects, pieces_of_path
from graphopt.steady import Steady
from graphopt.target import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.samplefiles import Column

    Pieces = Callable[[], Iterator[tuple[str, dict[str, Column]]]]

BATCH = 8
"""Samples at a time where the model leaves it open: enough to keep its kernels busy, few enough for the caches."""
RANDOM = "random"


def inputs_of(model: ir.Model) -> list[TensorSpec]:
    """The inputs that must be fed, as a runner would describe them."""
    from graphopt import ir

    found = []
    for value in required_inputs(model):
        kind = value.type
        text = f"tensor({kind.dtype.name.lower()})" if isinstance(kind, ir.TensorType) else "optional or sequence"
        shape = None
        if value.shape is not None:
            shape = tuple(dim if isinstance(dim, int) and dim >= 0 else _symbol(dim) for dim in value.shape)
        found.append(TensorSpec(value.name or "", text, shape))
    return found


def _symbol(dim: Any) -> str | None:
    return None if isinstance(dim, int) else dim.value


@dataclass
class Samples:
    """What `batches` gives, and what is told of it.

    Attributes:
        origin: name of the file, folder or function, "random", or "python".
        inputs: of the model.
        batch: samples at a time, unless the model says how many.
        notes: what the user should know of the data; complete after the first pass.
        seen: samples of the longest pass that came to its end.
        files: where the samples are read from; None when they come from code.
        channels: axis of the channels of inputs, where it is known.
        steady: what does not vary, as the longest pass saw it.
    """

    origin: str
    inputs: Sequence[TensorSpec]
    pieces: Pieces
    batch: int = BATCH
    files: Path | None = None
    notes: list[str] = field(default_factory=list)
    seen: int = 0
    channels: Mapping[str, int] = field(default_factory=dict)
    steady: Steady | None = None
    _first: int | None = None
    _digest: str | None = None
    _hashed: float = -1

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def batches(self, limit: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Feeds by input name; as `counted`."""
        return (feeds for feeds, _ in self.counted(limit))

    def counted(self, limit: int | None = None) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """Feeds by input name, and how many samples each is; at most `limit` together, see `Cutter`.

        Raises:
            GraphoptError: they do not fit the model, hold NaN or infinities, are none, or differ from the first pass.
        """
        reach = math.inf if limit is None else limit
        digest = hashlib.sha256() if self.files is None and reach > self._hashed else None
        cutter, steady = Cutter(self.inputs, self.batch, limit, self.note), Steady(self.channels)
        for feeds, count in cutter.cut(self.pieces()):
            steady.update(feeds)
            if cutter.given == count:
                self._compare(feeds)
            if digest is not None:
                for name in sorted(feeds):
                    digest.update(name.encode() + _bytes(feeds[name]))
            yield feeds, count
        if not cutter.given:
            few = f"there are {cutter.dropped} samples and the model takes {cutter.fixed} at a time"
            why = few if cutter.dropped else "there are no samples in it"
            raise GraphoptError(f"calibration data {self.origin}: {why}")
        if cutter.dropped:
            self.note(f"{cutter.dropped} samples are left out: the model takes {cutter.fixed} at a time")
        if cutter.given >= self.seen:
            self.seen, self.steady = cutter.given, steady
        if digest is not None:
            self._hashed, self._digest = reach, digest.hexdigest()

    def peek(self) -> dict[str, np.ndarray]:
        """The first sample, or as few as the model takes.

        Raises:
            GraphoptError: as `counted`.
        """
        cutter = Cutter(self.inputs, 1, None, self.note)
        for feeds, _ in cutter.cut(self.pieces()):
            return feeds
        return next(iter(self.batches()))  # says why there is none

    def remarks(self, limit: int | None) -> list[str]:
        """What the user, who asked for `limit` samples, should know of the data; complete after the first pass."""
        found, fixed = list(self.notes), Cutter(self.inputs, 1, None, self.note).fixed
        if self.seen and limit is not None and fixed is not None and limit % fixed:
            found.insert(0, f"samples asked for: {limit}; used: {self.seen}, as the model takes {fixed} at a time")
        if self.steady is not None and self.origin != RANDOM:
            found += self.steady.notes()
        return found

    def expected(self) -> int | None:
        """How many samples a pass will give at most, where that can be told beforehand."""
        if self.seen or self.files is None or self.files.is_dir():
            return self.seen or None
        shapes = [item.shape for _, columns in self.pieces() for item in columns.values()]
        return max((shape[0] for shape in shapes if shape), default=None)

    def digest(self) -> str | None:
        """SHA-256 of the files, or of the samples of the first pass; None before that pass."""
        if self._digest is None and self.files is not None:
            self._digest = _hash_path(self.files)
        return self._digest

    def _compare(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Refuse data that begins otherwise than in the pass before; however many make a batch."""
        code = 0
        for name in sorted(feeds):
            code = zlib.crc32(_bytes(feeds[name][:1] if feeds[name].ndim else feeds[name]), code)
        if self._first is not None and self._first != code:
            raise GraphoptError(
                f"calibration data {self.origin}: the first samples differ from those of the pass before; it must give "
                "the same ones each time (no shuffling, a fixed seed)"
            )
        self._first = code


def open_samples(data: Any, inputs: Sequence[TensorSpec], batch: int = BATCH) -> Samples:
    """Samples from a path, a function's name, or an object of Python. What is in files is read when it is asked for.

    Args:
        data: path of an .npz (keys: input names), .npy or folder; `package.module:function` or `file.py:function`,
            whose result is a feed or an iterable of feeds; or such a function or iterable itself (a DataLoader).
        inputs: of the model, see `inputs_of`.
        batch: samples at a time where the model leaves it open.

    Raises:
        GraphoptError: there is no such path or function, or the object cannot be iterated again and again.
    """
    if isinstance(data, str | Path):
        text, path = str(data), Path(data)
        if not path.exists() and ":" in text:
            return _from_code(text, function_named(text), inputs, batch)
        return Samples(path.name or text, inputs, pieces_of_path(path, inputs), batch, path)
    if isinstance(data, Mapping):
        return _from_code("python", lambda: data, inputs, batch)
    return _from_code("python", iterable_again(data), inputs, batch)


def random_samples(model: ir.Model, bindings: Mapping[str, int] | None = None, batch: int = BATCH) -> Samples:
    """Made-up inputs without end, legal for the model (feeds.make_feeds); the model is copied, it may change later.

    Args:
        model: what they are for.
        bindings: sizes of its symbolic dims.
        batch: samples at a time where the model leaves it open.
    """
    from graphopt.feeds import make_feeds, variant_count

    copy = model.clone()
    variants = min(2, variant_count(copy))  # the third masks whole rows

    def feeds() -> Iterator[Mapping[str, Any]]:
        return (make_feeds(copy, seed, bindings, seed % variants) for seed in itertools.count())

    return _from_code(RANDOM, feeds, inputs_of(copy), batch)


def _from_code(origin: str, make: Callable[[], Any], inputs: Sequence[TensorSpec], batch: int) -> Samples:
    samples = Samples(origin, inputs, lambda: iter(()), batch)
    samples.pieces = lambda: pieces_of_objects(origin, make, inputs, samples.note)
    return samples


def _bytes(value: np.ndarray) -> bytes:
    if value.dtype.kind in "OUST":
        return "\0".join(map(str, value.ravel())).encode()
    return value.tobytes()


def _hash_path(path: Path) -> str:
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for item in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{item.relative_to(path).as_posix()} {file_hash(item)}\n".encode())
    return digest.hexdigest()
