"""Einsum that is a matrix product, written as MatMul with transposes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.worklist import NodePass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


class EinsumToMatMul(NodePass):
    """Einsum<bij,bjk->bik>(a, b) -> MatMul(a, b), with Transpose (and Reshape of several free or summed dims)."""

    name: ClassVar[str] = "einsum-to-matmul"
    level: ClassVar[int | None] = 2
    tolerance = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Einsum",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        equation = str(m.attr(node, "equation")).replace(" ", "")
        m.require("." not in equation, "the equation has an ellipsis")
        left, _, right = equation.partition("->")
        terms = left.split(",")
        m.require("->" in equation and len(terms) == len(node.inputs), "the equation does not name its result")
        if len(terms) == 1:
            return _transposed(op, m, node.inputs[0], terms[0], right)
        m.require(len(terms) == 2, f"it has {len(terms)} operands")
        return _product(op, m, node, terms, right)


def _transposed(op: Builder, m: Match, x: ir.Value | None, term: str, right: str) -> ir.Value:
    m.require(x is not None and len(set(term)) == len(term), "a letter repeats within an operand")
    m.require(sorted(term) == sorted(right), "it sums one operand alone")
    return _permute(op, x, term, right)


def _permute(op: Builder, x: ir.Value | None, have: str, want: str) -> ir.Value:
    if have == want:
        assert x is not None
        return x if x.producer() is not None and x.producer() in op.nodes else op.Identity(x)
    value: ir.Value = op.Transpose(x, perm=[have.index(letter) for letter in want])
    return value


def _product(op: Builder, m: Match, node: ir.Node, terms: list[str], right: str) -> ir.Value:
    a, b = node.inputs
    first, second = terms
    m.require(all(len(set(term)) == len(term) for term in (*terms, right)), "a letter repeats within an operand")
    m.require(set(right) <= set(first) | set(second), "its result has a letter of its own")
    sizes = _sizes(m, (a, b), terms)
    batch = [letter for letter in right if letter in first and letter in second]
    summed = [letter for letter in first if letter in second and letter not in right]
    rows = [letter for letter in right if letter in first and letter not in second]
    columns = [letter for letter in right if letter in second and letter not in first]
    m.require(len(batch) + len(summed) + len(rows) == len(first), "it sums a dim of one operand alone")
    m.require(len(batch) + len(summed) + len(columns) == len(second), "it sums a dim of one operand alone")
    m.require(summed, "it sums nothing")
    if _transposes(second, first, batch, columns, summed, rows, right) < _transposes(
        first, second, batch, rows, summed, columns, right
    ):
        a, b, rows, columns, first, second = b, a, columns, rows, second, first
    left_side = _arranged(op, m, a, first, batch, rows, summed, sizes)
    right_side = _arranged(op, m, b, second, batch, summed, columns, sizes)
    product: ir.Value = op.MatMul(left_side, right_side)
    letters = "".join([*batch, *rows, *columns])
    if len(rows) != 1 or len(columns) != 1:
        product = op.Reshape(product, op.const(_target(letters, sizes), "shape"))
    return product if letters == right else op.Transpose(product, perm=[letters.index(letter) for letter in right])


def _transposes(
    first: str, second: str, batch: list[str], rows: list[str], summed: list[str], columns: list[str], right: str
) -> int:
    """How many transposes the product of the factors in this order needs."""
    wanted = [(first, batch + rows + summed), (second, batch + summed + columns), (right, batch + rows + columns)]
    return sum(have != "".join(want) for have, want in wanted)


def _sizes(
    m: Match, values: tuple[ir.Value | None, ir.Value | None], terms: list[str]
) -> dict[str, int | ir.SymbolicDim]:
    """The dim of each letter; both operands must agree on it, since Einsum would broadcast a 1."""
    sizes: dict[str, int | ir.SymbolicDim] = {}
    for value, term in zip(values, terms, strict=True):
        dims = m.dims(value)
        m.require(len(dims) == len(term), "the equation does not fit the ranks")
        for letter, dim in zip(term, dims, strict=True):
            m.require(
                letter not in sizes or m.equal(sizes[letter], dim),
                f"letter {letter} may stand for a 1 that is broadcast",
            )
            sizes[letter] = dim
    return sizes


def _arranged(
    op: Builder,
    m: Match,
    x: ir.Value | None,
    have: str,
    batch: list[str],
    before: list[str],
    last: list[str],
    sizes: dict[str, int | ir.SymbolicDim],
) -> ir.Value:
    """`x` as [batch..., prod(before), prod(last)]."""
    assert x is not None
    want = "".join([*batch, *before, *last])
    value: ir.Value = x if have == want else op.Transpose(x, perm=[have.index(letter) for letter in want])
    if len(before) == 1 and len(last) == 1:
        return value
    target = [*_target("".join(batch), sizes), _joined(before, sizes), _joined(last, sizes)]
    if target.count(-1) > 1:
        raise NoMatch("more than one of its dims is symbolic")
    return op.Reshape(value, op.const(target, "shape"))


def _joined(letters: list[str], sizes: dict[str, int | ir.SymbolicDim]) -> int:
    total = 1
    for letter in letters:
        size = sizes[letter]
        if not isinstance(size, int):
            return -1
        total *= size
    return total


def _target(letters: str, sizes: dict[str, int | ir.SymbolicDim]) -> list[int]:
    target = [size if isinstance(size := sizes[letter], int) else -1 for letter in letters]
    if target.count(-1) > 1 or 0 in target:
        raise NoMatch("more than one of its dims is symbolic, or one is empty")
    return target
