"""Makes the fused attention node: which operands it takes, in which layout, and the bias in the form it wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor, nbytes
from graphopt.passes.fuse_target._attention_core import Core, Size, build_bias, zero_hidden_rows
from graphopt.passes.fuse_target._cache import Joined, find_joined
from graphopt.passes.fuse_target._layout import pick
from graphopt.passes.fuse_target._projections import Projection, find_projection

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.passes.fuse_target._layout import View

MS = "com.microsoft"


@dataclass(frozen=True)
class Heads:
    """Heads of the query, channels of a query (and key) head, channels of a value head."""

    count: int
    width: int
    value_width: int


def emit(op: Builder, m: Match, core: Core, heads: Heads) -> ir.Value:
    """The fused node's output, [batch, positions, heads * channels].

    Raises:
        NoMatch: no fused op takes these operands.
    """
    packed = _packed(m, core, heads)
    if packed is not None:
        source = _batch_first(op, packed[0].projection.source, packed[0].swapped)
        size = Size(source, 1)
        bias = build_bias(op, m, core, size, size)
        return zero_hidden_rows(op, m, bias, _attention(op, m, core, heads, source, packed, bias.value))
    query = _query(op, m, core, heads)
    cached = _cached(m, core, heads)
    if cached is not None:
        return _cached_group_query(op, m, core, heads, query, *cached)
    rows, letter = Size(query.value, 1), core.heads
    key, value = pick(core.key, "T", f"{letter}D"), pick(core.value, "T", f"{letter}V", unscaled=True)
    alike = key is not None and value is not None and not key.repeated and not value.repeated
    grouped = key and value and m.equal(*core.dims[-2:]) and _groups(m, core, heads, key, value)
    if key is not None and value is not None and (alike or grouped):
        key, value = _turned(op, key), _turned(op, value)
        bias = build_bias(op, m, core, rows, Size(key.value, 1))
        make = _multi_head if alike else _group_query
    else:
        key, value = _by_head(op, m, core.key, "D"), _by_head(op, m, core.value, "V")
        bias = build_bias(op, m, core, rows, Size(key.value, 2))
        make = _multi_head
    return zero_hidden_rows(op, m, bias, make(op, m, core, heads, query, key, value, bias.value))


def _is_swapped(view: View) -> bool:
    """Whether the positions lie in front of the batch."""
    first = [factor.name for factor in view.axes[0]]
    second = [factor.name for factor in view.axes[1] if factor.size != 1]
    return "B" in second or (bool(first) and "B" not in first)


def _turned(op: Builder, view: View) -> View:
    """The view with the batch first."""
    if not _is_swapped(view):
        return view
    first, second, *rest = view.axes
    return replace(view, value=op.Transpose(view.value, perm=[1, 0, 2]), axes=(second, first, *rest))


def _batch_first(op: Builder, value: ir.Value, swapped: bool) -> ir.Value:
    return op.Transpose(value, perm=[1, 0, 2]) if swapped else value


def _query(op: Builder, m: Match, core: Core, heads: Heads) -> View:
    """The query as [batch, positions, heads * channels], transposed into it where it does not come so."""
    from graphopt.passes.fuse_target._layout import View

    found = pick(core.query, "S", f"{core.heads}D")
    if found is not None and not found.repeated:
        return _turned(op, found)
    m.require(core.heads == "H", "batch and heads of the query share an axis")
    rows = op.Transpose(core.query[0].value, perm=[0, 2, 1, 3])
    return View(op.Reshape(rows, [0, 0, heads.count * heads.width]), ())


def _by_head(op: Builder, m: Match, views: Sequence[View], channel: str) -> View:
    """Key or value as [batch, heads, positions, channels]."""
    from graphopt.passes.fuse_target._layout import View

    for view in views:
        if view.lies("B", "H", "T", channel) and not view.repeated and (channel == "D" or view.scale == 1.0):
            return view
    first = views[0]
    m.require(len(first.axes) == 4, "batch and heads of key or value share an axis")
    return View(op.Transpose(first.value, perm=[0, 1, 3, 2]), ())


def _total_scale(core: Core, query: View, key: View) -> float:
    return core.scale * query.scale * key.scale


# -- one node for the projections too ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A linear layer behind q, k or v: its view, the layer, and whether positions lie in front of the batch."""

    view: View
    projection: Projection
    swapped: bool


def _packed(m: Match, core: Core, heads: Heads) -> tuple[Layer, ...] | None:
    """q, k and v as linear layers of one input, when Attention can take them all in."""
    if m.ctx.supports("Attention", MS, _dtype(m, core)) is not None or not m.equal(*core.dims[-2:]):
        return None
    found = []
    for views, position, channel, width in (
        (core.query, "S", "D", heads.width),
        (core.key, "T", "D", heads.width),
        (core.value, "T", "V", heads.value_width),
    ):
        layer = _linear(m, views, position, [core.heads, channel], heads.count * width)
        if layer is None:
            return None
        found.append(layer)
    alike = len({(id(layer.projection.source), layer.swapped) for layer in found}) == 1
    if not alike or found[2].view.scale != 1.0:
        return None
    return tuple(found) if all(_may_copy(m, layer.projection.weight) for layer in found) else None


def _dtype(m: Match, core: Core) -> str:
    return m.dtype(core.query[0].value).name


def _may_copy(m: Match, weight: ir.Value) -> bool:
    """Whether a weight may be put into a new one: one in a file beside the model stays memory-mapped there."""
    from graphopt import ir

    tensor = const_tensor(weight)
    return tensor is not None and not isinstance(tensor, ir.ExternalTensor) and nbytes(tensor) <= m.ctx.max_bytes


def _linear(m: Match, views: Sequence[View], position: str, wanted: list[str], width: int) -> Layer | None:
    for view in views:
        if len(view.axes) != 3 or view.repeated:
            continue
        outer = [[factor.name for factor in axis if factor.size != 1] for axis in view.axes[:2]]
        picked = [factor for factor in view.axes[2] if factor.index is None]
        if [factor.name for factor in picked if factor.size != 1] != [n for n in wanted if _size(view, n) != 1]:
            continue
        expected = [[name] if _size(view, name) != 1 else [] for name in ("B", position)]
        if outer not in (expected, expected[::-1]) or math.prod(factor.size for factor in picked) != width:
            continue
        try:
            return Layer(view, find_projection(m, view), _is_swapped(view))
        except NoMatch:
            continue
    return None


def _size(view: View, name: str) -> Any:
    return next((factor.size for axis in view.axes for factor in axis if factor.name == name), None)


def _attention(
    op: Builder,
    m: Match,
    core: Core,
    heads: Heads,
    source: ir.Value,
    packed: Sequence[Layer],
    bias: ir.Value | None,
) -> ir.Value:
    import numpy as np

    layers = [layer.projection for layer in packed]
    weights = [layer.read_weight(m) for layer in layers]
    biases = [layer.read_bias(m) for layer in layers]
    full = [b if b is not None else np.zeros(w.shape[1], w.dtype) for b, w in zip(biases, weights, strict=True)]
    sizes = [heads.count * heads.width] * 2 + [heads.count * heads.value_width]
    name = layers[0].weight.name
    return op.Attention(
        source,
        op.const(np.concatenate(weights, axis=1), f"{name}_qkv"),
        op.const(np.concatenate(full), f"{name}_qkv_bias"),
        None,
        None,
        bias,
        _domain=MS,
        num_heads=heads.count,
        scale=_total_scale(core, packed[0].view, packed[1].view),
        qkv_hidden_sizes=sizes if sizes[0] != sizes[2] else None,
    )


def _multi_head(
    op: Builder, m: Match, core: Core, heads: Heads, query: View, key: View, value: View, bias: ir.Value | None
) -> ir.Value:
    operands, layer_bias = [query.value, key.value, value.value], None
    if len(query.axes) == len(key.axes) == len(value.axes) == 3:
        operands, layer_bias = _without_biases(op, m, (query, key, value))
    return op.MultiHeadAttention(
        *operands,
        layer_bias,
        None,
        bias,
        _domain=MS,
        num_heads=heads.count,
        scale=_total_scale(core, query, key),
    )


def _without_biases(op: Builder, m: Match, views: Sequence[View]) -> tuple[list[ir.Value], ir.Value | None]:
    """The products of the linear layers and their biases as one constant, when all three are layers with a bias."""
    import numpy as np

    given = [view.value for view in views]
    try:
        layers = [find_projection(m, view) for view in views]
        biases = [layer.read_bias(m) for layer in layers]
    except NoMatch:
        return given, None
    products = [layer.product for layer in layers if layer.product is not None]
    known = [bias for bias in biases if bias is not None]
    if len(known) < 3 or len(products) < 3:
        return given, None
    return products, op.const(np.concatenate(known), f"{layers[0].weight.name}_qkv_bias")


# -- grouped heads ----------------------------------------------------------------------------------------------------


def _groups(m: Match, core: Core, heads: Heads, key: View, value: View) -> bool:
    """Whether key and value heads are each repeated for a group of query heads, as GroupQueryAttention does it.

    Its kernels want as many keys as queries where there is no cache, equal widths that are multiples of 8, and must
    know `causal=0`: the built-in causal mask would differ from the graph's in rows that are masked as a whole.
    """
    if m.ctx.supports("GroupQueryAttention", MS, _dtype(m, core)) is not None or core.heads != "H":
        return False
    sizes = [_size(view, "H") for view in (key, value)]
    same = sizes[0] == sizes[1] and isinstance(sizes[0], int) and heads.count % sizes[0] == 0
    if not same or any([factor.name for factor in view.repeated] != ["h"] for view in (key, value)):
        return False
    return m.opset() >= 15 and heads.width == heads.value_width and heads.width % 8 == 0


def _group_query(
    op: Builder, m: Match, core: Core, heads: Heads, query: View, key: View, value: View, bias: ir.Value | None
) -> ir.Value:
    positions = op.Shape(query.value, start=1, end=2)
    operands = query.value, key.value, value.value, None, None
    return _grouped(op, heads, _size(key, "H"), operands, positions, bias, scale=_total_scale(core, query, key))


def _cached(m: Match, core: Core, heads: Heads) -> tuple[Joined, Joined] | None:
    """Grouped keys and values behind a cache. The CPU's kernel takes one sequence then, or one new position of each."""
    key, value = find_joined(m, core.key, "D"), find_joined(m, core.value, "V")
    if key is None or value is None or value.view.scale != 1.0 or not _groups(m, core, heads, key.view, value.view):
        return None
    if m.equal(core.dims[0], 1) or m.equal(core.dims[-2], 1):
        return key, value
    m.ctx.note(
        f"the cache stays outside of the attention and heads are repeated, as neither the batch ({core.dims[0]}) nor "
        f"the number of new tokens ({core.dims[-2]}) is known to be 1: --dim NAME=1 binds one of them"
    )
    return None


def _cached_group_query(
    op: Builder, m: Match, core: Core, heads: Heads, query: View, key: Joined, value: Joined
) -> ir.Value:
    added = op.Shape(query.value, start=1, end=2)
    positions = op.Add(op.Shape(key.past, start=2, end=3), added)
    bias = build_bias(op, m, core, Size(query.value, 1), positions)
    operands = query.value, _turned(op, key.new).value, _turned(op, value.new).value, key.past, value.past
    scale = _total_scale(core, query, key.view)
    out = _grouped(op, heads, _size(key.view, "H"), operands, positions, bias.value, scale)
    return zero_hidden_rows(op, m, bias, out)


def _grouped(
    op: Builder,
    heads: Heads,
    groups: int,
    operands: Sequence[ir.Value | None],
    positions: ir.Value,
    bias: ir.Value | None,
    scale: float,
) -> ir.Value:
    """GroupQueryAttention of query, key, value, past keys and past values, for sequences that are all whole.

    Args:
        op: the builder.
        heads: the query's heads.
        groups: heads of key and value.
        operands: the five inputs.
        positions: int64 [1], how many keys there are, the past included.
        bias: what is added to the scores.
        scale: factor on the scores.
    """
    import numpy as np

    from graphopt import ir

    length = op.Cast(positions, to=ir.DataType.INT32.value)
    last = op.Sub(length, op.const(np.array([1], np.int32), "one"))
    query, past = operands[0], operands[3]
    made = op.node(
        "GroupQueryAttention",
        *operands,
        op.Expand(last, op.Shape(query, start=0, end=1)),
        # Not a Squeeze: ONNX's propagation of shape data makes int64 of what comes through it, which the node refuses.
        op.Reshape(length, op.const(np.array([], np.int64), "scalar")),
        None,
        None,
        None,
        bias,
        _domain=MS,
        _outputs=1 if past is None else 3,
        num_heads=heads.count,
        kv_num_heads=groups,
        scale=scale,
        causal=0,
    )
    return made if past is None else made[0]
