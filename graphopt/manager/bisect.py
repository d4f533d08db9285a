"""Binary search for the first bad rewrite. What "bad" means is the caller's (graphopt/blame.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """The smallest count of rewrites that is bad, and how many evaluations that took; `first_bad` None: all good."""

    first_bad: int | None
    evaluations: int


def first_bad(total: int, is_bad: Callable[[int], bool]) -> Found:
    """Search 0..total for the smallest bad number, given that bad stays bad.

    Args:
        total: The number of rewrites of the whole run.
        is_bad: Evaluates the model after the first n rewrites.

    Returns:
        `first_bad` = 0 when the untouched model is bad already. At most log2(total) + 2 evaluations.
    """
    evaluations = 1
    if not is_bad(total):
        return Found(None, evaluations)
    if total == 0:
        return Found(0, evaluations)
    evaluations += 1
    if is_bad(0):
        return Found(0, evaluations)
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        evaluations += 1
        if is_bad(middle):
            bad = middle
        else:
            good = middle
    return Found(bad, evaluations)
