"""Every error a user can meet, and the exit code it ends the command with.

A message says what was asked, what is there and what to do; the CLI prints it as one line.
"""

from __future__ import annotations

from collections.abc import Iterable

# What other tools call it.
_ELSEWHERE = {"gpu": "cuda", "ort": "onnxruntime", "arm64": "aarch64"}


class GraphoptError(Exception):
    """A failure that is explained to the user in one line. `exit_code` is the CLI's exit status."""

    exit_code = 2


class VerificationError(GraphoptError):
    """The model breaks an IR rule, or a result differs from the reference beyond its tolerance."""

    exit_code = 1


class GateError(GraphoptError):
    """A gate or `--require-effect` was not met."""

    exit_code = 3


class FrozenError(GraphoptError):
    """`--frozen` found that an input, option or version differs from the manifest."""

    exit_code = 4


class PassError(GraphoptError):
    """A pass raised, or broke a rule of the pass API: a bug in graphopt or in that pass."""

    exit_code = 70


class RuntimeDied(GraphoptError):
    """A runtime crashed on a model or took longer than it may; its process is gone."""


class RanTooLong(RuntimeDied):
    """A runtime took longer than it may: nothing is known of what it was given."""


class MissingDependency(GraphoptError):
    """An optional package is needed and is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f'{what} needs a package that is not installed; install it with: pip install "graphopt[{extra}]"'
        )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is meant, whatever its case; None when none is near."""
    import difflib

    words = sorted(known)
    folded = {item.lower(): item for item in words}
    same = folded.get(_ELSEWHERE.get(word.lower(), word.lower()))
    if same is not None:
        return same
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return near[0]
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the nearest known word, or the known words when none is near."""
    known = sorted(known)
    near = nearest(word, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; known: {', '.join(known)}" if known and len(known) <= 40 else ""


def in_one_line(error: BaseException) -> str:
    """Class and text of a foreign error, whose text may have any number of lines."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
