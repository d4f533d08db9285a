"""Streaming statistics of float tensors in bounded memory, and the JSON file that keeps them.

    stats = TensorStats(); stats.update(batch); stats.low, stats.high, stats.mean, stats.variance, stats.counts

Not here: how a range is chosen from them (ranges.py), and what is run to gather them (graphopt/calibrating.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir.places import file_place

if TYPE_CHECKING:
    import numpy as np

BINS = 4096
"""Of a histogram, both signs together. Its ends lie at most twice as far out as the values, so 1024 or more of a side
are in use: four for each step of eight bits."""
EXACT, SUBSET = 1 << 18, 1 << 12
"""Elements of a tensor that are all put into the histogram; and after those, elements of a batch."""
MOMENTUM = 0.9
FORMAT = 1

_CHUNK = 1 << 16  # elements that stay in the cache while they are looked at several times
_SMALLEST_EXPONENT = -100  # the bins of what is smaller still would be denormal
_LARGE, _SMALL = 1e15, 1e-15  # squares of larger and of smaller values are summed in float64


def _zeros() -> np.ndarray:
    import numpy as np

    return np.zeros(BINS, np.int64)


def _ends(flat: np.ndarray) -> tuple[float, float]:
    """Smallest and largest element; NaN when there is one."""
    low, high = math.inf, -math.inf
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        low, high = min(float(piece.min()), low), max(float(piece.max()), high)
        if low != low or high != high:
            break
    return low, high


def _stride(size: int) -> int:
    """How far apart the elements are that stand for a tensor: prime to its size, so that no channel is left out."""
    stride = max(1, size // SUBSET)
    while math.gcd(stride, size) > 1:
        stride -= 1
    return stride


@dataclass(eq=False)
class TensorStats:
    """What is known of one tensor's values so far. NaN and infinities are counted and are in nothing else.

    Attributes:
        count: finite elements seen.
        nan, inf: elements that are NaN; that are infinite.
        batches: calls of `update` that brought a finite element.
        low, high: smallest and largest element, exact; inf and -inf before the first.
        mean: of the elements.
        m2: sum of squared distances from the mean.
        exponent: the histogram spans [-R, R) with R = 2**exponent; None while all elements are zero.
        counts: int64[BINS], elements per bin; bin i holds [(i - BINS/2) * w, (i + 1 - BINS/2) * w), w = 2R / BINS.
            Together about `count`, as one element may stand for several.
    """

    count: int = 0
    nan: int = 0
    inf: int = 0
    batches: int = 0
    low: float = math.inf
    high: float = -math.inf
    mean: float = 0.0
    m2: float = 0.0
    exponent: int | None = None
    counts: np.ndarray = field(default_factory=_zeros)
    _low_sum: float = 0.0
    _high_sum: float = 0.0

    @property
    def variance(self) -> float:
        """Population variance; 0 before the first element."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def finite(self) -> bool:
        """Whether neither NaN nor infinities were seen."""
        return not (self.nan or self.inf)

    @property
    def moving_low(self) -> float:
        """Moving average of the batches' minima: sum_i (1 - m) m^(n-i) x_i / (1 - m^n), with momentum m = 0.9.

        The division corrects for the start at zero, as in Adam (Kingma and Ba 2015, section 3); the weights sum to 1.
        """
        return self._low_sum / (1 - MOMENTUM**self.batches) if self.batches else math.inf

    @property
    def moving_high(self) -> float:
        """Moving average of the batches' maxima, as `moving_low`."""
        return self._high_sum / (1 - MOMENTUM**self.batches) if self.batches else -math.inf

    @property
    def width(self) -> float:
        """Of one bin; 0 while all elements are zero."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent + 1) / BINS

    def update(self, array: np.ndarray) -> None:
        """Take in one batch: floats of any shape and width.

        The ends are those of all elements. Moments and histogram are of all elements too, until EXACT of them were
        seen; then of evenly spaced ones, at least SUBSET of a batch, each standing for those around it.

        Raises:
            GraphoptError: the elements are not floats.
        """
        import numpy as np

        array = np.asarray(array)
        if array.dtype.kind != "f":
            if array.dtype.name != "bfloat16" and not array.dtype.name.startswith("float8"):
                raise GraphoptError(f"statistics are of float tensors, not of {array.dtype.name}")
            array = array.astype(np.float32)
        flat = array.ravel(order="K")
        flat = flat if flat.dtype.itemsize >= 4 else flat.astype(np.float32)
        if not flat.size:
            return
        low, high = _ends(flat)
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(flat)
            missing = int(np.isnan(flat).sum())
            self.nan += missing
            self.inf += int(flat.size - finite.sum()) - missing
            flat = flat[finite]
            if not flat.size:
                return
            low, high = _ends(flat)
        stride = _stride(flat.size) if self.count >= EXACT else 1
        self._take(np.ascontiguousarray(flat[self.batches % stride :: stride]), flat.size, low, high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.batches += 1
        self._low_sum = MOMENTUM * self._low_sum + (1 - MOMENTUM) * low
        self._high_sum = MOMENTUM * self._high_sum + (1 - MOMENTUM) * high

    def _take(self, chosen: np.ndarray, count: int, low: float, high: float) -> None:
        """Moments and histogram of the chosen ones of `count` elements between two ends.

        The moments are merged piece by piece (Chan, Golub, LeVeque 1979), so nothing is summed over more than a piece.
        """
        import numpy as np

        largest, weight = max(-low, high), -(-count // chosen.size)
        if largest > 0:
            self._grow(max(math.frexp(largest)[1], _SMALLEST_EXPONENT))
        left = count
        for start in range(0, chosen.size, _CHUNK):
            piece = chosen[start : start + _CHUNK]
            piece = piece if _SMALL <= largest <= _LARGE else piece.astype(np.float64)
            share = left if start + _CHUNK >= chosen.size else piece.size * weight
            left -= share
            mean = float(piece.sum()) / piece.size
            work = piece - piece.dtype.type(mean)
            np.multiply(work, work, out=work)
            self._add_moments(share, mean, float(work.sum()) * share / piece.size)
            if self.exponent is None:
                self.counts[BINS // 2] += weight * piece.size
                continue
            # Multiplying by a power of two is exact unless it underflows, and so are the sums: a bin depends on nothing
            # but the element.
            np.multiply(piece, piece.dtype.type(math.ldexp(BINS / 2, -self.exponent)), out=work)
            np.floor(work, out=work)
            work += BINS // 2
            found = np.bincount(work.astype(np.int32), minlength=BINS)
            self.counts += found if weight == 1 else found * weight

    def _add_moments(self, count: int, mean: float, m2: float) -> None:
        total = self.count + count
        gap = mean - self.mean
        self.m2 = min(self.m2 + m2 + gap * gap * self.count * count / total, math.ldexp(1.0, 1000))
        self.mean += gap * count / total
        self.count = total

    def _grow(self, exponent: int) -> None:
        """Double the histogram's span, merging pairs of bins, until it has this exponent or a larger one."""
        import numpy as np

        if self.exponent is None:  # so far only zeros, whose bin is the same at every width
            self.exponent = exponent
        quarter = BINS // 4
        while self.exponent < exponent:
            if exponent - self.exponent > BINS.bit_length():
                # Further doubling would only move what stands in the two bins around zero.
                self.exponent = exponent - BINS.bit_length()
                below, above = int(self.counts[: BINS // 2].sum()), int(self.counts[BINS // 2 :].sum())
                self.counts[:] = 0
                self.counts[BINS // 2 - 1], self.counts[BINS // 2] = below, above
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(quarter, np.int64), merged, np.zeros(quarter, np.int64)])
            self.exponent += 1

    def merge(self, other: TensorStats) -> None:
        """Take in what another one saw; its batches count as the later ones."""
        if not other.count and other.finite:
            return
        self.nan, self.inf = self.nan + other.nan, self.inf + other.inf
        if not other.count:
            return
        self._add_moments(other.count, other.mean, other.m2)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.batches += other.batches
        decay = MOMENTUM**other.batches
        self._low_sum = decay * self._low_sum + other._low_sum
        self._high_sum = decay * self._high_sum + other._high_sum
        if other.exponent is not None:
            self._grow(other.exponent)
        grown = TensorStats(exponent=other.exponent, counts=other.counts.copy())
        if self.exponent is not None:
            grown._grow(self.exponent)
        self.counts += grown.counts

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; the empty ends of the histogram are left out."""
        header, counts = self.parts()
        return {**header, "counts": counts.tolist()}

    def parts(self) -> tuple[dict[str, Any], np.ndarray]:
        """`to_json` with the counts as an array beside it."""
        there = self.counts.nonzero()[0]
        first, last = (int(there[0]), int(there[-1]) + 1) if there.size else (0, 0)
        header = {
            "count": self.count,
            "nan": self.nan,
            "inf": self.inf,
            "batches": self.batches,
            "low": self.low if self.count else None,
            "high": self.high if self.count else None,
            "mean": self.mean,
            "m2": self.m2,
            "moving": [self._low_sum, self._high_sum],
            "exponent": self.exponent,
            "first": first,
        }
        return header, self.counts[first:last]

    @classmethod
    def from_json(cls, data: Any) -> TensorStats:
        """Read what `to_json` wrote; the counts may be an array.

        Raises:
            GraphoptError: it is something else, or contradicts itself.
        """
        import numpy as np

        try:
            first, counts = int(data["first"]), np.asarray(data["counts"], np.int64)
            stats = cls(
                count=int(data["count"]),
                nan=int(data["nan"]),
                inf=int(data["inf"]),
                batches=int(data["batches"]),
                low=math.inf if data["low"] is None else float(data["low"]),
                high=-math.inf if data["high"] is None else float(data["high"]),
                mean=float(data["mean"]),
                m2=float(data["m2"]),
                exponent=None if data["exponent"] is None else int(data["exponent"]),
                _low_sum=float(data["moving"][0]),
                _high_sum=float(data["moving"][1]),
            )
            stats.counts[first : first + counts.size] = counts
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise GraphoptError(f"no statistics of a tensor ({type(error).__name__}: {error})") from None
        honest = bool(stats.counts.sum()) == bool(stats.count) and counts.min(initial=0) >= 0 and first >= 0
        if not honest or (stats.count and not -math.inf < stats.low <= stats.high < math.inf):
            raise GraphoptError("no statistics of a tensor (its counts or its ends contradict each other)")
        return stats


@dataclass
class Statistics:
    """Statistics of named values, of one or more states of a model, and which data they come from.

    Attributes:
        origin: where the samples came from; "random" when they were made up.
        samples: how many there were.
        data: SHA-256 of the samples, None when it was not taken.
        models: by structural hash of the model that was run: statistics by value name.
    """

    origin: str
    samples: int
    data: str | None = None
    models: dict[str, dict[str, TensorStats]] = field(default_factory=dict)

    def find(self, model: str, names: Sequence[str]) -> Mapping[str, TensorStats] | None:
        """The statistics of these values of the model with this hash; None when one is missing."""
        there = self.models.get(model, {})
        return {name: there[name] for name in names} if all(name in there for name in names) else None

    def add(self, model: str, values: Mapping[str, TensorStats]) -> None:
        """Keep statistics of values of the model with this hash."""
        self.models.setdefault(model, {}).update(values)

    def names(self) -> Iterator[str]:
        for values in self.models.values():
            yield from values

    def save(self, path: Path) -> None:
        """Write the JSON file, atomically.

        Raises:
            GraphoptError: it cannot be written.
        """
        models = [
            {"model": key, "values": {name: stats.to_json() for name, stats in sorted(values.items())}}
            for key, values in self.models.items()
        ]
        data = {"format": FORMAT, "origin": self.origin, "samples": self.samples, "data": self.data, "models": models}
        path = file_place(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise GraphoptError(f"statistics cannot be written to {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read a file that `save` wrote.

        Raises:
            GraphoptError: no such file, or not that.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise GraphoptError(f"statistics {path} cannot be read: {why}") from None
        except json.JSONDecodeError as error:
            raise GraphoptError(f"statistics {path} are not JSON: {error}; make them with --save-calibration") from None
        wanted = {"origin": str, "samples": int, "models": list}
        if not isinstance(data, dict) or any(not isinstance(data.get(key), kind) for key, kind in wanted.items()):
            raise GraphoptError(
                f"{path} holds no calibration statistics: it wants the keys format, {', '.join(wanted)}; "
                "make it with --save-calibration"
            )
        if data.get("format") != FORMAT:
            raise GraphoptError(
                f"statistics {path} have format {data.get('format')!r}, this version reads {FORMAT}; "
                "gather them again with --save-calibration"
            )
        found = cls(data["origin"], data["samples"], data.get("data"))
        for item in data["models"]:
            try:
                values = {name: TensorStats.from_json(stats) for name, stats in item["values"].items()}
                found.add(str(item["model"]), values)
            except (KeyError, TypeError, AttributeError):
                raise GraphoptError(f"statistics {path}: an entry of `models` wants the keys model, values") from None
            except GraphoptError as error:
                raise GraphoptError(f"statistics {path}: {error}; gather them again with --save-calibration") from None
        return found
