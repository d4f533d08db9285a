"""The attention ops of com.microsoft and RotaryEmbedding as standard ops, in the forms that this package emits.

Forms with a cache, a padding mask or a causal flag are left alone: nothing here makes them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


def attention(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    """Attention(x, weights, bias, attention_bias) with one weight for q, k and v."""
    _only(m, node, {0, 1, 2, 5}, {"num_heads", "scale", "qkv_hidden_sizes", "mask_filter_value"})
    total = m.dim(node.inputs[1], 1)
    given = m.attr(node, "qkv_hidden_sizes", ())
    sizes = [int(size) for size in given] if given else [total // 3] * 3
    rows = op.MatMul(node.inputs[0], node.inputs[1])
    if m.input(2, node) is not None:
        rows = op.Add(rows, m.input(2, node))
    query, key, value = op.Split(rows, sizes, axis=-1, _outputs=3)
    heads = m.attr(node, "num_heads")
    q, k, v = (_by_head(op, part, heads) for part in (query, key, value))
    return _core(op, m, node, q, k, v, m.input(5, node), sizes[0] // heads)


def multi_head(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    """MultiHeadAttention(q, k, v, bias, attention_bias), key and value by position or by head."""
    _only(m, node, {0, 1, 2, 3, 5}, {"num_heads", "scale", "mask_filter_value"})
    heads = m.attr(node, "num_heads")
    parts = [m.input(index, node) for index in range(3)]
    m.require(all(part is not None for part in parts) and m.rank(parts[0]) == 3, "q, k and v are packed")
    width = m.dim(parts[0], 2) // heads
    bias = m.input(3, node)
    if bias is not None:
        sizes = [m.dim(part, 2) for part in parts]
        parts = [
            op.Add(part, piece) for part, piece in zip(parts, op.Split(bias, sizes, axis=0, _outputs=3), strict=True)
        ]
    q, k, v = (part if m.rank(part) == 4 else _by_head(op, part, heads) for part in parts)
    return _core(op, m, node, q, k, v, m.input(5, node), width)


def group_query(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    """GroupQueryAttention over the whole sequence, without cache and causal mask."""
    _only(m, node, {0, 1, 2, 5, 6, 10}, {"num_heads", "kv_num_heads", "scale", "causal"})
    m.require(m.attr(node, "causal", 1) == 0, "the mask is causal")
    query, key, value = (m.input(index, node) for index in range(3))
    m.require(key is not None and value is not None, "q, k and v are packed")
    m.require(_is_whole_length(m, m.input(5, node), query), "the lengths may differ from the sequence")
    heads, groups = m.attr(node, "num_heads"), m.attr(node, "kv_num_heads")
    width = m.dim(query, 2) // heads
    k, v = (_repeated(op, _by_head(op, part, groups), heads, groups, width) for part in (key, value))
    return _core(op, m, node, _by_head(op, query, heads), k, v, m.input(10, node), width)


def rotary(op: Builder, m: Match, node: ir.Node) -> ir.Value:
    """RotaryEmbedding of all channels in the rotate-half form."""
    _only(m, node, {0, 1, 2, 3}, {"num_heads", "interleaved", "scale", "rotary_embedding_dim", "is_packed_batching"})
    plain = not m.attr(node, "interleaved", 0) and m.attr(node, "scale", 1.0) == 1.0
    m.require(plain and not m.attr(node, "rotary_embedding_dim", 0), "only whole heads in halves are taken apart")
    x, positions = node.inputs[0], node.inputs[1]
    rank, half = m.rank(x), m.dim(node.inputs[2], 1)
    m.require(rank in (3, 4), f"the input has rank {rank}")
    rows = positions
    if m.rank(positions) == 1:
        length = (
            op.Squeeze(op.Shape(x, start=rank - 2, end=rank - 1))
            if rank == 4
            else op.Squeeze(op.Shape(x, start=1, end=2))
        )
        rows = op.Add(op.Range(_int64(op, 0), length, _int64(op, 1)), positions)
    # One axis for the heads, in front of the positions or behind them.
    axis = -2 if rank == 3 else -3
    cos, sin = (op.Unsqueeze(op.Gather(table, rows, axis=0), [axis]) for table in node.inputs[2:4])
    parts = x if rank == 4 else op.Reshape(x, [0, 0, -1, 2 * half])
    lower, upper = op.Split(parts, [half, half], axis=-1, _outputs=2)
    turned = op.Concat(
        op.Sub(op.Mul(lower, cos), op.Mul(upper, sin)), op.Add(op.Mul(upper, cos), op.Mul(lower, sin)), axis=-1
    )
    return turned if rank == 4 else op.Reshape(turned, op.Shape(x))


def _only(m: Match, node: ir.Node, slots: set[int], names: set[str]) -> None:
    """Raise where an input or attribute is used that the rule does not know."""
    for index, value in enumerate(node.inputs):
        if value is not None and index not in slots:
            raise NoMatch(f"input {index} of {node.op_type} is in use")
    for name in node.attributes:
        if name not in names:
            raise NoMatch(f"{node.op_type} has {name}")
    m.require(not any(output.uses() for output in node.outputs[1:]), "more than the first output is in use")


def _core(op: Builder, m: Match, node: ir.Node, q: Any, k: Any, v: Any, bias: ir.Value | None, width: int) -> ir.Value:
    scale = m.attr(node, "scale", 0.0) or 1.0 / math.sqrt(width)
    scores = op.Mul(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), float(scale))
    if bias is not None:
        scores = op.Add(scores, bias)
    mixed = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
    return op.Reshape(mixed, [0, 0, m.dim(node.outputs[0], 2)])


def _by_head(op: Builder, value: Any, heads: int) -> Any:
    return op.Transpose(op.Reshape(value, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _repeated(op: Builder, value: Any, heads: int, groups: int, width: int) -> Any:
    if heads == groups:
        return value
    wide = op.Expand(op.Unsqueeze(value, [2]), [1, 1, heads // groups, 1, 1])
    return op.Reshape(wide, [0, heads, -1, width])


def _is_whole_length(m: Match, lengths: ir.Value | None, query: ir.Value | None) -> bool:
    """Whether the lengths are Expand(Cast(positions of the query) - 1), as this package writes them."""
    node = lengths.producer() if lengths is not None else None
    if lengths is None or query is None:
        return False
    known = m.ctx.shapes.values(lengths)
    if known:
        from graphopt.analysis import dims

        return all(m.equal(dims.add(item, 1), m.dims(query)[1]) for item in known)
    if node is None or node.op_type != "Expand":
        return False
    one = m.ctx.shapes.values(node.inputs[0])
    from graphopt.analysis import dims

    return bool(one) and one is not None and m.equal(dims.add(one[0], 1), m.dims(query)[1])


def _int64(op: Builder, number: int) -> ir.Value:
    import numpy as np

    return op.const(np.asarray(number, np.int64), "number")
