"""Calls a function for one item after another in another process; a crash ends that process, not the run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def isolated(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result | None]]:
    """Each item with its result; None where the process died, and the next item gets a new one.

    Args:
        function: of a module, so that the other process can import it.
        items: picklable.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context)
    for item in items:
        try:
            yield item, pool.submit(function, item).result()
        except BrokenProcessPool:
            yield item, None
            pool = ProcessPoolExecutor(1, context)
    pool.shutdown()


def spread(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result | None]]:
    """As `isolated`, by so many processes at the same time; the order is not that of the items."""
    with ThreadPoolExecutor(processes) as pool:
        for pairs in pool.map(lambda start: list(isolated(function, items[start::processes])), range(processes)):
            yield from pairs
