"""Reading a plan that somebody may have edited: every mistake is one line that says where it stands.

    top = Entry(f"the plan of {name!r}", decisions)
    for site, entry in top.entries("nodes"):  # an Entry at "the plan of ...: nodes: 'conv1'"
        op = entry.get("op", "an op type", is_text)

Not here: what the entries of a pass mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graphopt.errors import GraphoptError, did_you_mean


class Entry:
    """A part of a plan, and where it stands.

    Raises:
        GraphoptError: it is no object.
    """

    def __init__(self, where: str, data: Any) -> None:
        self.where = where
        if not isinstance(data, Mapping):
            raise GraphoptError(f"{where}: is {_short(data)}; an object is wanted")
        self.data: Mapping[str, Any] = data

    def get(self, key: str, wanted: str, fits: Callable[[Any], bool]) -> Any:
        """The value of a key.

        Raises:
            GraphoptError: it is not there, or does not fit; `wanted` says what would.
        """
        if key not in self.data:
            raise GraphoptError(f"{self.where}: has no {key}; {wanted} is wanted{did_you_mean(key, self.data)}")
        value = self.data[key]
        if not fits(value):
            raise self.wrong(key, wanted)
        return value

    def entry(self, key: str) -> Entry:
        """The object behind a key."""
        return Entry(f"{self.where}: {key}", self.get(key, "an object", lambda value: isinstance(value, Mapping)))

    def entries(self, key: str) -> Iterator[tuple[str, Entry]]:
        """The objects in the object behind a key, by name."""
        inner = self.entry(key)
        for name, value in inner.data.items():
            yield name, Entry(f"{inner.where}: {name!r}", value)

    def only(self, *keys: str) -> None:
        """Refuse other keys.

        Raises:
            GraphoptError: names one.
        """
        for key in self.data:
            if key not in keys:
                raise GraphoptError(f"{self.where}: there is no {key!r}; known: {', '.join(keys)}")

    def wrong(self, key: str, wanted: str) -> GraphoptError:
        """The error for a value that does not fit."""
        return GraphoptError(f"{self.where}: {key} is {_short(self.data[key])}; {wanted} is wanted")


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_scale(value: Any) -> bool:
    """A number that float32 can divide by."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and _LEAST <= value <= _MOST


_LEAST, _MOST = 2.0**-126, 3.4028234663852886e38
"""The normal numbers of float32."""


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys"
    return repr(value)[:80]
