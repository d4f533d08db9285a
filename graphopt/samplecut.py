"""Cuts pieces of samples into feeds of a model: which axis counts samples, how many go together, what does not fit.

    for feeds, count in Cutter(inputs, batch=8, limit=100).cut(pieces): ...

Not here: where pieces come from (samplefiles.py) and what is kept between passes over them (samples.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.feedfiles import check_feeds
from graphopt.samplefiles import Column

if TYPE_CHECKING:
    import numpy as np

    from graphopt.target import TensorSpec

    Columns = Mapping[str, Column]
    Feeds = dict[str, np.ndarray]


class Cutter:
    """One pass over the pieces.

    Args:
        inputs: of the model.
        batch: samples at a time where the model leaves it open.
        limit: samples at most, in whole batches of the size that the model fixes, and one such batch at least.
        note: told what was done with data of an unusual form.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], batch: int, limit: int | None, note: Callable[[str], None]
    ) -> None:
        self.specs = {spec.name: spec for spec in inputs}
        self.fixed = self._fixed()
        self.size = self.fixed or batch
        self.limit = limit
        self.note = note
        self.given = 0
        """Samples given out so far."""
        self.dropped = 0
        """Samples that were too few to make a batch of the model's fixed size."""
        self._origin = ""
        self._held: dict[str, list[np.ndarray]] = {}
        self._beside: Feeds = {}
        self._count = 0

    def cut(self, pieces: Iterable[tuple[str, Columns]]) -> Iterator[tuple[Feeds, int]]:
        """Feeds, and how many samples each is.

        An array of the input's rank is cut along its first axis; of one rank more, each entry is a whole feed; what has
        no batch axis, or one entry only, is given to every feed; of one rank less it is one sample.

        Raises:
            GraphoptError: names, types or shapes do not fit, or floats are not finite.
        """
        for name, columns in pieces:
            self._origin = f"calibration data {name}"
            self._check_names(columns)
            stacked = {key: item for key, item in columns.items() if len(item.shape) == self._rank(key) + 1}
            yield from self._stacked(stacked, columns) if stacked else self._rows(columns)
            if self._left(1 if stacked else self.fixed or 1) <= 0:
                break
        yield from self._flush()

    def _fixed(self) -> int | None:
        """The batch size that the interface fixes, if it does."""
        first = {spec.shape[0] for spec in self.specs.values() if spec.shape and self._has_batch(spec)}
        size = first.pop() if len(first) == 1 else None
        return size if isinstance(size, int) else None

    def _has_batch(self, spec: TensorSpec) -> bool:
        """Whether the first axis counts samples: that of a matrix or more does, and so does a symbol that one has."""
        if not spec.shape or len(spec.shape) > 1:
            return bool(spec.shape)
        symbols = {other.shape[0] for other in self.specs.values() if other.shape and len(other.shape) > 1}
        first = spec.shape[0]
        return isinstance(first, str) and (first in symbols or "batch" in first.lower())

    def _rank(self, name: str) -> int:
        shape = self.specs[name].shape
        return -2 if shape is None else len(shape)

    def _left(self, whole: int) -> float:
        """Samples that are still wanted, of which so many go together."""
        if self.limit is None:
            return float("inf")
        wanted = self.limit - self.given
        if not self.given:
            wanted = max(wanted, whole)
        return wanted // whole * whole - self._count

    def _check_names(self, columns: Columns) -> None:
        for name in columns:
            if name not in self.specs:
                raise GraphoptError(f"{self._origin}: the model has no input {name!r}{did_you_mean(name, self.specs)}")
        for name, spec in self.specs.items():
            if name not in columns and not spec.type.startswith("optional"):
                has = ", ".join(columns) or "nothing"
                raise GraphoptError(f"{self._origin}: there are no samples of input {name!r}; it has {has}")

    def _stacked(self, stacked: Columns, columns: Columns) -> Iterator[tuple[Feeds, int]]:
        """Each entry is a whole feed."""
        yield from self._flush()
        beside = {name: item.whole() for name, item in columns.items() if name not in stacked}
        for index in range(_length(stacked, self._origin)):
            if self._left(1) <= 0:
                return
            self.given += 1
            feeds = {name: item.rows(index, index + 1)[0] for name, item in stacked.items()}
            yield self._checked({**feeds, **beside}, feeds, f" of sample {index}"), 1

    def _rows(self, columns: Columns) -> Iterator[tuple[Feeds, int]]:
        """Each entry is a sample; they are joined with what is left of the piece before."""
        rows, beside = self._split(columns)
        if not rows:  # nothing says where one sample ends: it is one feed
            yield from self._flush()
            self.given += 1
            yield self._checked(beside, beside, ""), 1
            return
        if not self._is_alike(rows, beside):
            yield from self._flush()
        at, length, whole = 0, _length(rows, self._origin), self.fixed or 1
        while at < length and self._left(whole) > 0:
            take = int(min(length - at, self._left(whole), self.size - self._count))
            for name, item in rows.items():
                part = item.rows(at, at + take)
                self._refuse_non_finite(name, part, at)
                self._held.setdefault(name, []).append(part)
            self._beside, self._count, at = beside, self._count + take, at + take
            if self._count == self.size:
                yield from self._flush()

    def _split(self, columns: Columns) -> tuple[dict[str, Column], Feeds]:
        """What is cut along its first axis, and what is given to every feed."""
        rows: dict[str, Column] = {}
        beside: Feeds = {}
        for name, column in columns.items():
            missing = self._rank(name) - len(column.shape) if self._has_batch(self.specs[name]) else None
            if missing == 0:
                rows[name] = column
            elif missing == 1:
                rows[name] = Column(column.whole()[None])
            else:
                beside[name] = column.whole()
        longest = max((item.shape[0] for item in rows.values()), default=0)
        for name, column in list(rows.items()):
            declared = (self.specs[name].shape or (None,))[0]
            if column.shape[0] != longest and column.shape[0] in (1, declared):
                self.note(f"input {name!r} has {column.shape[0]} entries, which are given to every batch")
                beside[name] = rows.pop(name).whole()
        return rows, beside

    def _is_alike(self, rows: Columns, beside: Feeds) -> bool:
        """Whether rows can be joined to those that are held."""
        import numpy as np

        return (
            self._held.keys() == rows.keys()
            and self._beside.keys() == beside.keys()
            and all(self._held[name][0].shape[1:] == item.shape[1:] for name, item in rows.items())
            and all(np.array_equal(self._beside[name], value) for name, value in beside.items())
        )

    def _flush(self) -> Iterator[tuple[Feeds, int]]:
        """Give out what is held; too few for a fixed batch are dropped."""
        import numpy as np

        held, count = self._held, self._count
        self._held, self._count = {}, 0
        if not count:
            return
        joined = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in held.items()}
        if self.fixed is not None and count < self.fixed:
            self.dropped += count
            return
        self.given += count
        yield self._checked({**joined, **self._beside}, self._beside, ""), count

    def _checked(self, feeds: Feeds, unseen: Feeds, where: str) -> Feeds:
        check_feeds(feeds, list(self.specs.values()), self._origin)
        for name, value in unseen.items():
            self._refuse_non_finite(name, value, where)
        return feeds

    def _refuse_non_finite(self, name: str, value: np.ndarray, where: int | str) -> None:
        """Raise for NaN and infinities; `where` is said as it is, or is the number of the first entry's sample."""
        import numpy as np

        if value.dtype.kind != "f" or np.isfinite(value).all():
            return
        if isinstance(where, int):
            bad = next(index for index, item in enumerate(value) if not np.isfinite(item).all())
            where = f" of sample {where + bad}"
        raise GraphoptError(f"{self._origin}: input {name!r}{where} holds NaN or infinities; leave such samples out")


def _length(columns: Columns, origin: str) -> int:
    sizes = {name: item.shape[0] for name, item in columns.items()}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{size} of {name!r}" for name, size in sizes.items())
        raise GraphoptError(f"{origin}: each sample needs one entry of every input, and there are {text}")
    return next(iter(sizes.values()))
