"""Dimension arithmetic: the normal form against numbers, equality, substitution, and what must stay unknown."""

from __future__ import annotations

import math

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis import dims
from graphopt.analysis.symbol import Size

NAMES = ("N", "M", "a")


def _sum(parts: tuple[str, str, str]) -> str:
    return f"(({parts[0]}) {parts[1]} ({parts[2]}))"


_LEAF = st.sampled_from([*NAMES, "0", "1", "2", "3", "7"])
_EXPRESSION = st.recursive(
    _LEAF,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(_sum),
        st.tuples(inner, st.sampled_from(["//", "%"]), st.sampled_from(["2", "3", "4"])).map(_sum),
        st.tuples(inner, st.sampled_from([2, 3, 5])).map(lambda p: f"floor(({p[0]})/{p[1]})"),
        st.tuples(inner, st.sampled_from([2, 3, 5])).map(lambda p: f"ceiling(({p[0]})/{p[1]})"),
        st.tuples(st.sampled_from(["max", "min"]), inner, inner).map(lambda p: f"{p[0]}({p[1]}, {p[2]})"),
    ),
    max_leaves=6,
)
_BINDING = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(0, 11)))


@settings(max_examples=400, deadline=None)
@given(text=_EXPRESSION, binding=_BINDING)
def test_canonical_text_means_the_same_number(text: str, binding: dict[str, int]) -> None:
    canonical = dims.canonical(ir.SymbolicDim(text))
    functions = {"floor": math.floor, "ceiling": math.ceil, "max": max, "min": min}
    if dims.is_unknown(canonical):
        return
    assert dims.evaluate(canonical, binding) == eval(text, {**functions, **binding})


@settings(max_examples=200, deadline=None)
@given(text=_EXPRESSION, binding=_BINDING)
def test_canonical_text_is_read_alike_by_the_ir(text: str, binding: dict[str, int]) -> None:
    """Passes and runtimes read dimension texts through onnx_ir's own parser."""
    canonical = dims.canonical(ir.SymbolicDim(text))
    if isinstance(canonical, int) or dims.is_unknown(canonical):
        return
    # Its symbols are positive by assumption, ours may be 0.
    positive = {name: number + 1 for name, number in binding.items()}
    assert ir.SymbolicDim(canonical.value).evaluate(positive) == dims.evaluate(canonical, positive)


@settings(max_examples=200, deadline=None)
@given(text=_EXPRESSION, binding=_BINDING)
def test_provably_nonnegative_is_never_negative(text: str, binding: dict[str, int]) -> None:
    dim = ir.SymbolicDim(text)
    if dims.nonnegative(dim):
        number = dims.evaluate(dim, binding)
        assert number is not None and number >= 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("floor(N/2 - 1/2) + 1", "(N + 1)//2"),
        ("ceiling(N/2)", "floor((N + 1)/2)"),
        ("floor(floor((N + 1)/2)/4)", "floor((N + 1)/8)"),
        ("N*M*4/(2*M)", "2*N"),
        ("max(0, N)", "N"),
        ("min(min(N, 5), M)", "min(M, 5, N)"),
        ("(N + 1)*(N - 1)", "N**2 - 1"),
        ("-N**2", "0 - N*N"),
        ("Mod(N, 2)", "N - 2*(N//2)"),
    ],
)
def test_equal_expressions(a: str, b: str) -> None:
    assert dims.equal(ir.SymbolicDim(a), ir.SymbolicDim(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("N", "M"),
        ("2*(N//2)", "N"),
        ("max(0, N - 1)", "N - 1"),
        ("max(1, N)", "N"),
        ("floor(N/2)", "floor(N/3)"),
        ("_v0", "max(0, _v0)"),
    ],
)
def test_expressions_that_differ_somewhere(a: str, b: str) -> None:
    assert not dims.equal(ir.SymbolicDim(a), ir.SymbolicDim(b))


@pytest.mark.parametrize("name", [None, "", "?"])
def test_a_nameless_dimension_equals_nothing(name: str | None) -> None:
    assert not dims.equal(ir.SymbolicDim(name), ir.SymbolicDim(name))
    assert not dims.equal(ir.SymbolicDim(name), 1)


@pytest.mark.parametrize("text", ["foo(N)", "N)", "(N", "N +", "1/0", "N/2", "N $ 2", "(" * 300 + "N" + ")" * 300])
def test_text_outside_the_normal_form_is_unknown(text: str) -> None:
    assert dims.is_unknown(dims.canonical(ir.SymbolicDim(text)))


def test_growing_expressions_become_unknown_in_little_time() -> None:
    dim: dims.Dim = Size("N")
    for index in range(60):
        dim = dims.add(dims.floor_divide(dims.multiply(dim, 3), 2), Size(f"M{index}"))
    assert dims.is_unknown(dim)


def test_substitute_and_symbols() -> None:
    dim = ir.SymbolicDim("floor((N + max(M, 3))/2)")
    assert dims.symbols(dim) == {"N", "M"}
    assert dims.substitute(dim, {"M": 5}) == "floor((N + 1)/2) + 2"
    assert dims.substitute(dim, {"M": 5, "N": 4}) == 4
    assert dims.evaluate(dim, {"M": 5}) is None
    assert dims.is_unknown(dims.substitute(ir.SymbolicDim("7//N"), {"N": 0}))


def test_python_operators_compute_in_the_normal_form() -> None:
    n = Size("N")
    assert (n + 1 - 1) == n and (3 * n // 3) == n and 0 - (-n) == n
    assert 2 + n == "N + 2" and 2 - n == "-N + 2"
    assert math.ceil(n / 2) == "floor((N + 1)/2)"
    assert dims.equal(math.floor((4 * n) / 2), 2 * n)
    assert dims.equal(n % 2, ir.SymbolicDim("N - 2*floor(N/2)"))
    assert (Size("N") // 0).value is None
