"""Layouts seen through reshapes: which factor lies in which axis, and where that cannot be told."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.ir.builder import NoMatch
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.match import Match
from graphopt.passes.fuse_target._layout import Factor, View, regroup, walk


def _match(text: str) -> tuple[Match, Any]:
    model = from_text(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    ctx = Context(model)
    assert ctx.shapes is not None
    last = list(model.graph)[-1]
    return Match(ctx, last), last.outputs[0]


def _layout(view: View) -> str:
    return ",".join("".join(f"{f.name}{f.index if f.index is not None else ''}" for f in axis) for axis in view.axes)


SPLIT_HEADS = """g (float[N, S, 24] x) => (float[N, 2, S, 12] y) <int64[4] heads = {0, 0, 2, 12}> {
  r = Reshape (x, heads)
  y = Transpose <perm = [0, 2, 1, 3]> (r)
}"""


def test_heads_are_found_behind_a_transpose_and_a_reshape() -> None:
    m, value = _match(SPLIT_HEADS)
    views = list(walk(m, value, ("B", "H", "S", "D")))
    assert [_layout(view) for view in views] == ["B,H,S,D", "B,S,H,D", "B,S,HD"]
    assert views[-1].value is m.ctx.model.graph.inputs[0]


def test_scalar_factors_are_collected() -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) <float a = {2}, float[1] b = {8}> { p = Mul (a, x)\n y = Div (p, b) }"
    m, value = _match(text)
    assert [view.scale for view in walk(m, value, ("B", "D"))] == [1.0, 0.125, 0.25]


@pytest.mark.parametrize("factor", ["float[4] a", "float[1, 1, 1] a", "float a = {0}"])
def test_other_factors_end_the_walk(factor: str) -> None:
    rank = 3 if "1, 1, 1" in factor else 2
    shape = "[1, N, 4]" if rank == 3 else "[N, 4]"
    m, value = _match(f"g (float[N, 4] x) => (float{shape} y) <{factor}> {{ y = Mul (x, a) }}")
    assert len(list(walk(m, value, tuple("ABC"[:rank])))) == 1


def test_a_selection_is_noted_with_its_index() -> None:
    text = """g (float[N, S, 3, 2, 4] x) => (float[N, S, 2, 4] y)
<int64[1] a = {1}, int64[1] b = {2}, int64[1] ax = {2}> {
  s = Slice (x, a, b, ax)
  y = Squeeze (s, ax)
}"""
    m, value = _match(text)
    assert [_layout(view) for view in walk(m, value, ("B", "S", "H", "D"))][-1] == "B,S,P1,H,D"


def test_unequal_slices_end_the_walk() -> None:
    text = """g (float[N, 10] x) => (float[N, 4] y) <int64[1] a = {3}, int64[1] b = {7}, int64[1] ax = {1}> {
  y = Slice (x, a, b, ax)
}"""
    m, value = _match(text)
    assert len(list(walk(m, value, ("B", "D")))) == 1


def test_repeated_heads_leave_the_layout() -> None:
    text = """g (float[N, 2, S, 4] x) => (float[N, 6, S, 4] y)
<int64[1] two = {2}, int64[5] wide = {1, 1, 3, 1, 1}, int64[4] flat = {0, 6, -1, 4}> {
  u = Unsqueeze (x, two)
  e = Expand (u, wide)
  y = Reshape (e, flat)
}"""
    m, value = _match(text)
    last = list(walk(m, value, ("B", "H", "S", "D")))[-1]
    assert last.lies("B", "H", "S", "D")
    assert [(factor.name, factor.size) for factor in last.repeated] == [("h", 3)]


@pytest.mark.parametrize(
    ("sizes", "dims", "expected"),
    [
        ((6, 4), (6, 4), "A,B"),
        ((6, 4), (24,), "AB"),
        ((6, 4), (2, 12), "A,aB"),
        ((6, 4), (12, 2), "AB,b"),
        ((6, 1, 4), (6, 4), "A,BC"),
        ((6, 4), (1, 6, 1, 4), ",A,,B"),
        ((1, 4), (1, 4, 1), "A,B,"),
    ],
)
def test_regrouping(sizes: tuple[int, ...], dims: tuple[int, ...], expected: str) -> None:
    m, value = _match(SPLIT_HEADS)
    factors = [Factor(name, size) for name, size in zip("ABC", sizes, strict=False)]
    assert _layout(View(value, regroup(m, factors, dims))) == expected


@pytest.mark.parametrize(("sizes", "dims"), [((6, 4), (5, 4)), ((6, 4), (6, 3)), ((6, 4), (9, 4)), ((6,), ())])
def test_sizes_that_do_not_fit(sizes: tuple[int, ...], dims: tuple[int, ...]) -> None:
    m, _ = _match(SPLIT_HEADS)
    with pytest.raises(NoMatch):
        regroup(m, [Factor(name, size) for name, size in zip("AB", sizes, strict=False)], dims)
