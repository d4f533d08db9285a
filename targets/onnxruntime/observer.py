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
        self._session, self._abreast = session, abreast
        self._pool = ThreadPoolExecutor(abreast)
        self._waiting: deque[tuple[Sequence[str], Mapping[str, Any], Future[dict[str, Any]]]] = deque()
        self._stats: dict[str, TensorStats] = {}

    def observe(self, feeds: Mapping[str, Any], names: Sequence[str]) -> None:
        """Start a run, once there is room for it; an error of an earlier one may be raised here."""
        while len(self._waiting) >= self._abreast:
            self._take()
        wanted = [name for name in names if name not in feeds]
        self._waiting.append((names, feeds, self._pool.submit(self._run, feeds, wanted)))

    def finish(self) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
        """Wait for all runs, and end; the statistics as `TensorStats.parts`, headers and counts by name."""
        while self._waiting:
            self._take()
        self._pool.shutdown()
        parts = {name: stats.parts() for name, stats in self._stats.items()}
        return {name: item[0] for name, item in parts.items()}, {name: item[1] for name, item in parts.items()}

    def _run(self, feeds: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        return self._session.run(feeds, wanted) if wanted else {}

    def _take(self) -> None:
        names, feeds, run = self._waiting.popleft()
        results = run.result()
        for name in names:
            value = unpack(results.pop(name) if name in results else feeds[name])
            self._stats.setdefault(name, TensorStats()).update(value)


def _one_heap() -> None:
    """Have all threads allocate from one heap: with one each, glibc's grow for hundreds of runs."""
    with contextlib.suppress(AttributeError, OSError):  # another C library has no such knob
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
