"""Runs conformance cases in a process of its own, so that a crash of the runtime costs one case.

A request is a JSON line {"case": index, "form": name, "level": 3}. Answers are JSON lines: {"phase": ...} before each
dangerous step, then one outcome. Not here: starting workers and counting outcomes (benchmarks/conformance.py).
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conformance_cases import Case, Form, NotApplicable, collect
from graphopt import backend
from graphopt.errors import GraphoptError, PassError, VerificationError
from graphopt.manager.registry import make_target

_MOST_REWRITES = 4096
# Two units in the last place, as in onnx's own suite.
_BFLOAT16_RTOL = 2**-6
_TEXT_LIMIT = 3000


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the runtime prints must not stand between answers

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    cases = collect()
    say({"cases": [case.name for case in cases]})
    for line in sys.stdin:
        request = json.loads(line)
        case = cases[request["case"]]
        say(measure(case, request["form"], request["level"], lambda phase: say({"phase": phase})))


def measure(case: Case, name: str, level: int, phase: Callable[[str], None]) -> dict[str, Any]:
    """One case in one form, in the runtime alone and through graphopt."""
    try:
        form = case.form(name)
    except NotApplicable as error:
        return {"status": "not-applicable", "reason": str(error)}
    phase("runtime")
    failure = _attempt(lambda: _runtime(form), case, form)
    if failure:
        return {"status": "runtime-fails", "reason": failure[1]}
    phase("graphopt")
    failure = _attempt(lambda: _through(form, level=level), case, form)
    if failure is None:
        return {"status": "passed", "reason": ""}
    kind, reason = failure
    phase("blame")
    blamed = _blame(case, form, level)
    blamed["pass"] = blamed["pass"] or _named(reason)
    return {"status": "failed", "kind": kind, "reason": reason, "text": _text(form), **blamed}


def _attempt(run: Callable[[], list[tuple[Any, ...]]], case: Case, form: Form) -> tuple[str, str] | None:
    """None when every run gives the expected outputs; else the kind of failure and what happened."""
    try:
        results = run()
    except PassError as error:
        return "pass error", _line(error)
    except VerificationError as error:
        return "broken rule", _line(error)
    except GraphoptError as error:
        return ("runtime" if "ONNX Runtime" in str(error) else "refused"), _line(error)
    except Exception as error:  # anything else that comes out of graphopt is a bug, and is counted, not raised
        return "bug", f"{type(error).__name__}: {_line(error)}"
    for got in results:
        wrong = judge(case, got, form.stacked)
        if wrong:
            return "numbers", wrong
    return None


def _runtime(form: Form) -> list[tuple[Any, ...]]:
    """The form's outputs in ONNX Runtime alone, with its own optimizations."""
    from graphopt.targets.onnxruntime.runner import open_runner
    from graphopt.targets.onnxruntime.settings import SessionSettings

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(form.model.SerializeToString())
        with open_runner(path, SessionSettings(threads=1), isolate=False) as runner:
            names = [spec.name for spec in runner.inputs]
            return [tuple(runner.run(dict(zip(names, inputs, strict=True))).values()) for inputs in form.runs]


def _through(form: Form, **options: Any) -> list[tuple[Any, ...]]:
    prepared = backend.prepare(form.model, **options)
    try:
        return [prepared.run(list(inputs)) for inputs in form.runs]
    finally:
        prepared.close()


def judge(case: Case, got: tuple[Any, ...], stacked: int) -> str | None:
    """None when the outputs agree by the rules of onnx's own suite; else what differs, in one line."""
    expected: tuple[Any, ...] = case.outputs
    try:
        if stacked:
            expected = tuple([output] * stacked for output in expected)
            got = tuple(_slices(output, stacked) for output in got)
        _same(list(expected), list(got), case)
    except (AssertionError, TypeError) as error:
        return f"wrong outputs: {_line(error)}"
    return None


def _slices(output: Any, stacked: int) -> list[Any]:
    if len(output) != stacked:
        raise AssertionError(f"{len(output)} iterations instead of {stacked}")
    return [np.asarray(item) for item in output]


def _same(expected: Any, got: Any, case: Case) -> None:
    """Raise AssertionError unless both are equal: types and shapes exactly, numbers within the case's tolerance."""
    if isinstance(expected, list | tuple):
        assert isinstance(got, list | tuple), f"{type(got).__name__} instead of a sequence"
        assert len(got) == len(expected), f"{len(got)} values instead of {len(expected)}"
        for one, other in zip(expected, got, strict=True):
            _same(one, other, case)
        return
    if expected is None or got is None:
        assert expected is got, "an absent optional against a present one"
        return
    assert got.shape == expected.shape, f"shape {got.shape} instead of {expected.shape}"
    if expected.dtype.kind in "OUST":
        np.testing.assert_array_equal(got.astype(str), expected.astype(str))
        return
    assert got.dtype == expected.dtype, f"{got.dtype} instead of {expected.dtype}"
    rtol = max(case.rtol, _BFLOAT16_RTOL) if expected.dtype.name == "bfloat16" else case.rtol
    if expected.dtype.name not in np.sctypeDict:  # numpy has no tolerance for bfloat16, float8 and int4
        expected, got = expected.astype(np.float32), got.astype(np.float32)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=case.atol)


def _blame(case: Case, form: Form, level: int) -> dict[str, Any]:
    """The first rewrite without which the case passes: its pass and site."""

    def fails(limit: int) -> bool:
        return _attempt(lambda: _through(form, level=level, limit=limit), case, form) is not None

    if fails(0):
        return {"pass": "", "site": "without any rewrite"}
    low, high = 0, 1
    while not fails(high):
        low, high = high, high * 2
        if high > _MOST_REWRITES:
            return {"pass": "", "site": "not reproduced"}
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _, result = backend.transform(form.model, make_target("cpu"), Path(folder), {"level": level, "limit": high})
    except GraphoptError as error:  # the rewrite breaks the model itself; such messages name the pass
        return {"pass": _named(str(error)), "site": f"rewrite {high}"}
    rewrite = result.rewrites[high - 1]
    return {"pass": rewrite.pass_name, "site": f"rewrite {high} at {rewrite.op} {rewrite.site}"}


def _named(text: str) -> str:
    _, found, rest = text.partition("pass '")
    return rest.partition("'")[0] if found else ""


def _text(form: Form) -> str:
    import onnx

    try:
        return onnx.printer.to_text(form.model)[:_TEXT_LIMIT]
    except Exception as error:  # the printer refuses some element types
        return f"({_line(error)})"


def _line(error: BaseException) -> str:
    """The message in one line, without the folder that this run put its models into."""
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/[^/\s]+/", "", " ".join(str(error).split()))
    return text[:300] or type(error).__name__


if __name__ == "__main__":
    main()
