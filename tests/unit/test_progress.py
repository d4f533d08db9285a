"""The progress bar: what it says, and that it is silent where nobody looks."""

from __future__ import annotations

import io

from graphopt.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line() -> None:
    bar = Progress("calibrating", 200, shown=True, stream=Terminal())
    bar.step(50)
    assert bar.line(10) == f"calibrating  [{'#' * 6}{' ' * 18}] 50/200, 30 s left"
    assert bar.line(100).endswith("50/200, 5 min 00 s left")
    unknown = Progress("calibrating", None, shown=True, stream=Terminal())
    unknown.step(3)
    assert unknown.line(1) == "calibrating  3"


def test_it_is_removed_at_the_end() -> None:
    stream = Terminal()
    with Progress("calibrating", 2, shown=True, stream=stream) as bar:
        bar.step(1)
    shown = stream.getvalue().split("\r")
    assert "1/2" in shown[1] and shown[2] == " " * len(shown[1]) and shown[3] == ""


def test_nothing_is_printed_to_files_or_when_quiet() -> None:
    for stream, shown in ((io.StringIO(), True), (Terminal(), False)):
        with Progress("calibrating", 2, shown=shown, stream=stream) as bar:
            bar.step(1)
        assert stream.getvalue() == ""
