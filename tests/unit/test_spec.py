"""Text form of passes and targets: grammar, types, canonical printing, carets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from graphopt.errors import GraphoptError, nearest
from graphopt.spec import Spec, SpecError, build, parse_spec, unbuild


@dataclass(frozen=True)
class Options:
    count: int = 3
    ratio: float = 0.5
    flag: bool = False
    mode: Literal["fast", "slow"] = "fast"
    skip: tuple[str, ...] = ()
    limit: int | None = None


@pytest.mark.parametrize(
    "text",
    [
        "p",
        "p{count=4}",
        "p{skip=[/a/Conv b]}",
        'p{mode=slow skip=["a b" c]}',
        "p{flag=true limit=7}",
        r'p{skip=["q\"x" "y \\z"]}',
    ],
)
def test_canonical_text_parses_back(text: str) -> None:
    spec = parse_spec(text)
    assert str(spec) == text
    made = build(Options, spec, "pass")
    assert build(Options, parse_spec(str(unbuild(made, "p"))), "pass") == made


def test_values_take_the_type_of_their_field() -> None:
    made = build(Options, parse_spec("p{count=4, ratio=1e-3 flag limit=none skip=one}"), "pass")
    assert made == Options(count=4, ratio=1e-3, flag=True, limit=None, skip=("one",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p{cuont=1}", "has no option 'cuont'; did you mean 'count'?"),
        ("p{count=x}", "count=x is not an integer"),
        ("p{flag=maybe}", "is not true or false"),
        ("p{mode=fats}", "did you mean 'fast'?"),
        ("p{mode=SLOW}", "mode=SLOW is not one of fast, slow; did you mean 'slow'?"),
        ("p{Mode=fast}", "has no option 'Mode'; did you mean 'mode'?"),
        ("p{count=[1 2]}", "is a list, one value is wanted"),
    ],
)
def test_wrong_options_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(GraphoptError) as caught:
        build(Options, parse_spec(text), "pass")
    assert message in str(caught.value)


def test_what_is_not_near_lists_the_known_once() -> None:
    with pytest.raises(GraphoptError) as caught:
        build(Options, parse_spec("p{mode=zzz}"), "pass")
    assert str(caught.value) == "pass 'p': option mode=zzz is not one of fast, slow"


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("gpu", ("cpu", "cuda"), "cuda"),
        ("gpu", ("cpu",), "cpu"),
        ("ort", ("none", "onnxruntime"), "onnxruntime"),
        ("x", ("X", "xy"), "X"),
        ("AVX513", ("avx2", "avx512"), "avx512"),
        ("sve", ("auto", "avx2"), None),
    ],
)
def test_what_is_meant_is_found_whatever_its_case(word: str, known: tuple[str, ...], meant: str | None) -> None:
    assert nearest(word, known) == meant


@pytest.mark.parametrize(
    ("text", "column"), [("p{", 2), ("p{a=}", 4), ("{", 0), ("p}", 1), ("p{a=1 a=2}", 7), ('p{a="x', 6)]
)
def test_grammar_errors_point_at_the_column(text: str, column: int) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert caught.value.column == column
    assert str(caught.value).splitlines()[-1] == "  " + " " * column + "^"


def test_a_required_option_is_asked_for() -> None:
    @dataclass(frozen=True)
    class Needs:
        path: str

    with pytest.raises(GraphoptError, match=r"needs option 'path': p\{path=\.\.\.\}"):
        build(Needs, Spec("p"), "pass")
