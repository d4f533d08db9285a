"""Guards of rules: what they ask, and letting one of them hold always.

Guards are the questions of Match that stop a rule: require, same_shape, equal, not_quantized, sole_use. Not here: who
drops them (mutants.py) and which may be dropped without harm (equivalents.py).
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from graphopt.ir.builder import NoMatch
from graphopt.manager.match import Match

ASKING = frozenset({"require", "same_shape", "equal", "not_quantized", "sole_use"})


@functools.cache
def questions(path: str) -> dict[int, str]:
    """What the guards of a source file ask, by the line on which they begin."""
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ASKING:
            found.setdefault(node.lineno, ast.unparse(node.args[0] if node.func.attr == "require" else node))
    return found


def _asked() -> str:
    """The guard that is being asked: `module.function: question`; moving lines does not rename it."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.endswith("match.py") and frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    question = questions(code.co_filename).get(frame.f_lineno, f"line {frame.f_lineno}")
    return f"{Path(code.co_filename).stem}.{code.co_qualname.split('.<locals>')[0]}: {question}"


@contextmanager
def watched(seen: set[str], dropped: str = "") -> Iterator[list[int]]:
    """Collect the guards that fail in passes; count how often `dropped` did, which holds always."""
    count = [0]

    def require(self: Match, condition: object, reason: str) -> None:
        if not condition:
            guard = _asked()
            seen.add(guard)
            if guard != dropped:
                raise NoMatch(reason)
            count[0] += 1

    def lenient(original: Callable[..., Any], passing: Any) -> Callable[..., Any]:
        def ask(self: Match, *arguments: Any) -> Any:
            try:
                answer = original(self, *arguments)
            except NoMatch:
                guard = _asked()
                seen.add(guard)
                if guard != dropped:
                    raise
                count[0] += 1
                return passing
            if answer is False:
                guard = _asked()
                seen.add(guard)
                if guard == dropped:
                    count[0] += 1
                    return True
            return answer

        return ask

    with mock.patch.multiple(
        Match,
        require=require,
        same_shape=lenient(Match.same_shape, True),
        equal=lenient(Match.equal, True),
        not_quantized=lenient(Match.not_quantized, None),
        sole_use=lenient(Match.sole_use, None),
    ):
        yield count
