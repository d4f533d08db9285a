"""A progress bar with time left, on stderr, where somebody is there to see it."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 24
_EVERY_SECONDS = 0.1


class Progress:
    """Counts up to a total; a line that is written over and removed at the end.

    Args:
        title: what is going on.
        total: how many there are; None when nobody knows, then there is neither bar nor time left.
        shown: whether to print at all; it is printed to terminals only.
        stream: where to; None for stderr.
    """

    def __init__(self, title: str, total: int | None, *, shown: bool, stream: TextIO | None = None) -> None:
        self.title, self.total, self.done = title, total, 0
        self._stream = stream or sys.stderr
        self._shown = shown and self._stream.isatty()
        self._start = time.monotonic()
        self._last = 0.0
        self._length = 0

    def step(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        if self._shown and now - self._last >= _EVERY_SECONDS:
            self._last = now
            self._write(self.line(now - self._start))

    def line(self, seconds: float) -> str:
        """The text after that time."""
        if self.total is None or not self.done:
            return f"{self.title}  {self.done}"
        share = min(1.0, self.done / self.total)
        bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH)
        left = seconds / share - seconds
        return f"{self.title}  [{bar}] {self.done}/{self.total}, {_duration(left)} left"

    def close(self) -> None:
        """Remove the line."""
        if self._length:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()
            self._length = 0

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text.ljust(self._length)}")
        self._stream.flush()
        self._length = len(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"
