"""Rotary position embedding in the rotate-half form, fused into com.microsoft RotaryEmbedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_scalar
from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse_target._layout import walk

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.worklist import Replacement

MS = "com.microsoft"


class FuseRotaryEmbedding(NodePass):
    """x * cos + concat(-x[half:], x[:half]) * sin -> RotaryEmbedding(x, positions, cos half, sin half).

    cos and sin hold both halves alike, one row per position, constant or computed while running: then their rows are
    the caches, so no largest length has to be known. Where x is a transposed [batch, positions, heads * channels],
    the fused node takes that and the transpose follows it. Source: Su et al., RoFormer (2021).
    """

    name: ClassVar[str] = "fuse-rotary-embedding"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Add",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        x, cos, sin, inner = _rotation(m, node)
        m.supports("RotaryEmbedding", MS, like=x)
        m.not_quantized((x,))
        m.require(m.opset() >= 15, f"the model is of opset {m.opset()}, the positions need 15")
        dims = m.dims(x)
        m.require(len(dims) == 4, "the rotated value is no [batch, heads, positions, channels]")
        width = m.dim(x, -1)
        cos_rows, cos_batch = _rows(op, m, cos, "Cos", dims)
        sin_rows, sin_batch = _rows(op, m, sin, "Sin", dims)
        m.require(cos_batch == sin_batch, "cos and sin differ in their batch dim")
        positions = _positions(op, cos_batch, x) if cos_batch else op.const([0])
        m.interior = inner
        for view in walk(m, x, ("B", "H", "S", "D")):
            if view.lies("B", "S", "HD") and view.scale == 1.0 and not view.repeated:
                heads = m.dim(x, 1)
                rotated = op.RotaryEmbedding(view.value, positions, cos_rows, sin_rows, _domain=MS)
                return op.Transpose(op.Reshape(rotated, [0, 0, heads, width]), perm=[0, 2, 1, 3])
        return op.RotaryEmbedding(x, positions, cos_rows, sin_rows, _domain=MS)


def _rotation(m: Match, add: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, list[ir.Node]]:
    """x, cos, sin and the inner nodes.

    Raises:
        Uninteresting: no rotation.
    """
    products = [value.producer() if value is not None else None for value in add.inputs]
    if any(product is None or product.op_type != "Mul" or product.domain != "" for product in products):
        raise Uninteresting("no rotation")
    straight, turned = products
    for plain, other in ((straight, turned), (turned, straight)):
        assert plain is not None and other is not None
        for a, b in ((0, 1), (1, 0)):
            swapped, sin = other.inputs[a], other.inputs[b]
            half = _rotated_half(m, swapped)
            if half is None or sin is None:
                continue
            x, nodes = half
            for c, d in ((0, 1), (1, 0)):
                cos = plain.inputs[d]
                if plain.inputs[c] is x and cos is not None:
                    return x, cos, sin, [plain, other, *nodes]
    raise Uninteresting("no rotation")


def _rotated_half(m: Match, value: ir.Value | None) -> tuple[ir.Value, list[ir.Node]] | None:
    """x and the nodes when `value` is concat(-x[half:], x[:half]) over the last axis."""
    concat = value.producer() if value is not None else None
    if concat is None or concat.op_type != "Concat" or concat.domain != "" or len(concat.inputs) != 2:
        return None
    neg = concat.inputs[0].producer() if concat.inputs[0] is not None else None
    if neg is None or neg.op_type != "Neg" or neg.domain != "":
        return None
    assert value is not None
    rank = m.rank(value)
    if m.axis(m.attr(concat, "axis"), rank) != rank - 1:
        return None
    upper, lower = _half(m, neg.inputs[0], 1), _half(m, concat.inputs[1], 0)
    if upper is None or lower is None or upper[0] is not lower[0]:
        return None
    return upper[0], [concat, neg, upper[1], lower[1]]


def _half(m: Match, value: ir.Value | None, which: int) -> tuple[ir.Value, ir.Node] | None:
    """x when `value` is its lower (0) or upper (1) half over the last axis."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or node.op_type not in ("Slice", "Split"):
        return None
    assert value is not None
    for view in walk(m, value, tuple("ABCDEFGH"[: m.rank(value)])):
        if view.value is value:
            continue
        last = view.axes[-1]
        picked = view.selections()
        if (
            view.value is node.inputs[0]
            and len(picked) == 1
            and picked[0] is last[0]
            and picked[0].size == 2
            and picked[0].index == which
        ):
            return view.value, node
        return None
    return None


def _rows(op: Builder, m: Match, table: ir.Value, function: str, dims: tuple[Any, ...]) -> tuple[ir.Value, bool]:
    """The first half of cos or sin as [rows, channels / 2], and whether each element of the batch has rows of its own.

    Raises:
        NoMatch: the halves may differ, or the table has other axes than positions and channels.
    """
    own = (1,) * (4 - m.rank(table)) + m.dims(table)
    m.require(
        m.rank(table) <= 4 and own[1] == 1 and own[3] == dims[3] and m.equal(own[2], dims[2]),
        "cos or sin is no table of positions",
    )
    batched = own[0] != 1
    m.require(not batched or m.equal(own[0], dims[0]), "cos or sin is no table of positions")
    half = m.dim(table, -1) // 2
    array = const_array(table)
    if array is not None:
        import numpy as np

        m.require(np.array_equal(array[..., :half], array[..., half:]), "the halves of cos or sin differ")
        return op.const(array[..., :half].reshape(-1, half), f"{table.name}_rows"), batched
    angles, factor = _angles(m, table, function)
    rows = op.Reshape(getattr(op, function)(angles), [-1, half])
    return (rows if factor == 1.0 else op.Mul(rows, factor)), batched


def _angles(m: Match, table: ir.Value, function: str) -> tuple[ir.Value, float]:
    """The angles of one half and a scalar factor, when the table is function(concat(angles, angles)) * factor."""
    value, factor, applied = table, 1.0, False
    for _ in range(12):
        node = value.producer()
        if node is None or node.domain != "" or node.graph is not m.root.graph:
            break
        if node.op_type in ("Unsqueeze", "Squeeze", "Identity", "Reshape"):
            source = node.inputs[0]
            m.require(
                source is not None and m.dims(source)[-1] == m.dims(value)[-1],
                "cos or sin is reshaped over its channels",
            )
        elif node.op_type == "Mul" and not applied:
            source = next((a for a, b in (node.inputs, node.inputs[::-1]) if const_scalar(b)), None)
            factor *= next((number for number in map(const_scalar, node.inputs) if number), 1.0)
        elif node.op_type == function and not applied:
            source, applied = node.inputs[0], True
        elif node.op_type == "Concat":
            return _twice(m, node, applied, function), factor
        else:
            break
        if source is None:
            break
        value = source
    raise NoMatch(f"the halves of {function.lower()} are not provably equal")


def _twice(m: Match, concat: ir.Node, applied: bool, function: str) -> ir.Value:
    first = concat.inputs[0]
    rank = m.rank(concat.outputs[0])
    m.require(
        len(concat.inputs) == 2 and concat.inputs[1] is first and m.axis(m.attr(concat, "axis"), rank) == rank - 1,
        "the halves differ",
    )
    assert first is not None
    if applied:
        return first
    made = first.producer()
    m.require(made is not None and made.domain == "" and made.op_type == function, f"no {function} of angles")
    assert made is not None and made.inputs[0] is not None
    return made.inputs[0]


def _positions(op: Builder, batched: bool, x: ir.Value) -> ir.Value:
    """Row numbers [batch, positions]: every element of the batch has its own rows, one after the other."""
    import numpy as np

    batch, length = op.Shape(x, start=0, end=1), op.Shape(x, start=2, end=3)
    count = op.Squeeze(op.Mul(batch, length))
    zero, one = op.const(np.array(0, np.int64), "zero"), op.const(np.array(1, np.int64), "one")
    return op.Reshape(op.Range(zero, count, one), op.Concat(batch, length, axis=0))
