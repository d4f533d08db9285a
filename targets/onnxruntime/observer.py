"""Several runs of one session abreast, and statistics of what they give, in the order in which they were asked for.

Used inside the worker process: the values are there, and sending them would take longer than looking at them.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.quantization.statistics import TensorStats
from graphopt.targets.onnxruntime.session import Session
from graphopt.targets.onnxruntime.wire import unpack

_M_ARENA_MAX = -8  # malloc.h


class Observer:
    """Statistics by name.

    Args:
        session: with one thread a run where many go abreast: that keeps the cores busier than many threads in one run.
        abreast: runs at a time.
    """

    def __init__(self, session: Session, abreast: int) -> None:
        _one_heap()
        self._pool = ThreadPoolExecutor(abreast)
        self._free = [_Lane(session) for _ in range(abreast)]
        self._waiting: deque[tuple[Sequence[str], Mapping[str, Any], _Lane, Future[dict[str, Any]]]] = deque()
        self._stats: dict[str, TensorStats] = {}

    def observe(self, feeds: Mapping[str, Any], names: Sequence[str]) -> None:
        """Start a run, once there is room for it; an error of an earlier one may be raised here."""
        if not self._free:
            self._take()
        lane = self._free.pop()
        wanted = [name for name in names if name not in feeds]
        self._waiting.append((names, feeds, lane, self._pool.submit(lane.run, feeds, wanted)))

    def finish(self) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
        """Wait for all runs, and end; the statistics as `TensorStats.parts`, headers and counts by name."""
        while self._waiting:
            self._take()
        self._pool.shutdown()
        parts = {name: stats.parts() for name, stats in self._stats.items()}
        return {name: item[0] for name, item in parts.items()}, {name: item[1] for name, item in parts.items()}

    def _take(self) -> None:
        names, feeds, lane, run = self._waiting.popleft()
        results = run.result()
        for name in names:
            value = unpack(results[name] if name in results else feeds[name])
            self._stats.setdefault(name, TensorStats()).update(value)
        self._free.append(lane)


class _Lane:
    """One run at a time. Its results stay until the next one, which is written over them where the shapes are the same:
    memory that is never given back cannot fall to pieces."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._results: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._binding: Any = None

    def run(self, feeds: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        if not wanted:
            return {}
        shapes = _shapes(feeds)
        if self._binding is not None and shapes == self._shapes and self._results.keys() == set(wanted):
            try:
                self._session.run_into(self._binding, feeds)
                return self._results
            except GraphoptError:  # a shape that depends on the data; or an error, which the next lines meet again
                pass
        self._binding, self._results = None, {}
        self._results, self._shapes = self._session.run(feeds, wanted), shapes
        if shapes is not None and all(_is_plain(value) and value.size for value in self._results.values()):
            self._binding = self._session.bind_outputs(self._results)
        return self._results


def _shapes(feeds: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Shapes of feeds that are all plain arrays; else None."""
    plain = all(_is_plain(value) for value in feeds.values())
    return {name: value.shape for name, value in feeds.items()} if plain else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _one_heap() -> None:
    """Have all threads allocate from one heap: with one each, glibc's grow for hundreds of runs."""
    with contextlib.suppress(AttributeError, OSError):  # another C library has no such knob
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
