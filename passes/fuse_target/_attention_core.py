"""The middle of attention: softmax(q k^T * scale + mask) v, found from its second MatMul.

Lives here: what the exporters write around the softmax, and masks as an additive bias. Not here: how q, k and v were
made _projections.py) and which fused op is emitted (attention.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_scalar
from graphopt.manager.worklist import Uninteresting
from graphopt.passes.fuse_target._layout import View, walk

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

# A masked score at or below this is lost in the fill value for any finite score: fill + score == fill in float32.
_ABSORBING = -1e30


@dataclass(frozen=True)
class Mask:
    """What is added to the scores: `bias` as it stands, or `fill` where `keep` is False (True when `inverted`)."""

    bias: ir.Value | None = None
    keep: ir.Value | None = None
    inverted: bool = False
    fill: float = 0.0


@dataclass(frozen=True)
class Size:
    """An axis of a value that stays in the graph."""

    value: ir.Value
    axis: int


@dataclass(frozen=True)
class Bias:
    """What is added to the scores, and whether it may be -inf over a whole row whose NaN the graph turns into 0."""

    value: ir.Value | None
    may_hide_rows: bool


@dataclass(frozen=True)
class Core:
    """One attention core.

    Attributes:
        query, key, value: views of the operands, nearest first.
        heads: the letter of the factor that counts heads: "H", or "b" where batch and heads share the first axis.
        dims: sizes of the scores, [batch, heads, positions, key positions]; with shared axis [both, positions, ...].
        scale: product of the scalar factors on the scores (those on q and k are in the views).
        masks: what is added to the scores.
        zeroes_nan: the softmax is followed by "NaN becomes 0", which only shows in rows that are masked with -inf.
        softmax: the softmax node.
    """

    query: tuple[View, ...]
    key: tuple[View, ...]
    value: tuple[View, ...]
    heads: str
    dims: tuple[Any, ...]
    scale: float
    masks: tuple[Mask, ...]
    zeroes_nan: bool
    softmax: ir.Node


def find_core(m: Match, final: ir.Node) -> Core:
    """The attention core whose last MatMul is `final`.

    Raises:
        Uninteresting: no softmax in front of this MatMul.
        NoMatch: a softmax, but no attention of known shape.
    """
    probabilities, value = final.inputs[0], final.inputs[1]
    softmax, zeroes_nan = _softmax(m, probabilities)
    scores = softmax.inputs[0]
    assert scores is not None and value is not None
    rank = m.rank(scores)
    m.require(rank in (3, 4), f"the scores have rank {rank}")
    axis = m.attr(softmax, "axis", -1 if m.opset() >= 13 else 1)
    m.require(axis in (-1, rank - 1), "the softmax does not run over the last axis")
    dims = m.dims(scores)
    product, scale, masks = _scores(m, scores)
    m.require(m.same_shape(product.outputs[0], scores), "a mask has more elements than q k^T, or unknown ones")
    query, key = product.inputs[0], product.inputs[1]
    assert query is not None and key is not None
    names = ("B", "H") if rank == 4 else ("B",)
    for operand in (query, key, value):
        m.require(m.rank(operand) == rank, "q, k and v differ in rank")
        m.require(all(m.equal(a, b) for a, b in zip(m.dims(operand)[:-2], dims, strict=False)), "q, k and v broadcast")
    return Core(
        query=tuple(walk(m, query, (*names, "S", "D"))),
        key=tuple(walk(m, key, (*names, "D", "T"))),
        value=tuple(walk(m, value, (*names, "T", "V"))),
        heads="H" if rank == 4 else "b",
        dims=dims,
        scale=scale,
        masks=masks,
        zeroes_nan=zeroes_nan,
        softmax=softmax,
    )


def _softmax(m: Match, value: ir.Value | None) -> tuple[ir.Node, bool]:
    """The Softmax behind the probabilities, and whether Where(IsNaN(p), 0, p) stands between."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or node.op_type not in ("Softmax", "Where"):
        raise Uninteresting("no softmax in front")
    if node.op_type == "Softmax":
        return node, False
    test = node.inputs[0].producer() if node.inputs[0] is not None else None
    inner = node.inputs[2]
    if test is None or test.op_type != "IsNaN" or test.inputs[0] is not inner or const_scalar(node.inputs[1]) != 0.0:
        raise Uninteresting("no softmax in front")
    softmax = inner.producer() if inner is not None else None
    if softmax is None or softmax.domain != "" or softmax.op_type != "Softmax":
        raise Uninteresting("no softmax in front")
    return softmax, True


def _scores(m: Match, value: ir.Value) -> tuple[ir.Node, float, tuple[Mask, ...]]:
    """The q k^T MatMul behind the scores, with the scalar factors and masks on the way."""
    scale = 1.0
    masks: list[Mask] = []
    while True:
        node = value.producer()
        if node is None or node.domain != "" or node.graph is not m.root.graph:
            raise NoMatch(f"the scores come from {node.op_type if node else 'no node'}, not from a MatMul")
        if node.op_type == "MatMul":
            return node, scale, tuple(masks)
        if node.op_type in ("Mul", "Div"):
            value, factor = _scalar_factor(m, node)
            scale *= factor
        elif node.op_type in ("Add", "Where") and scale != 1.0:
            raise NoMatch("the scores are scaled after the mask was added")
        elif node.op_type == "Add":
            value, mask = _added(m, node)
            masks.append(mask)
        elif node.op_type == "Where":
            value, mask = _selected(m, node)
            masks.append(mask)
        else:
            raise NoMatch(f"{node.op_type} stands between q k^T and the softmax")


def _scalar_factor(m: Match, node: ir.Node) -> tuple[ir.Value, float]:
    for data, factor in ((0, 1), (1, 0)):
        number, source = const_scalar(node.inputs[factor]), node.inputs[data]
        if number and source is not None and not (node.op_type == "Div" and data == 1):
            return source, number if node.op_type == "Mul" else 1.0 / number
    raise NoMatch(f"the scores are scaled by something that is no constant: {node.op_type} {node.name!r}")


def _leads_to_product(m: Match, value: ir.Value | None, depth: int = 6) -> bool:
    """Whether scalar factors, masks and at last a MatMul of two computed values make this value."""
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or depth == 0:
        return False
    if node.op_type == "MatMul":
        return not any(m.is_const(operand) for operand in node.inputs)
    if node.op_type in ("Mul", "Div", "Add"):
        return any(_leads_to_product(m, operand, depth - 1) for operand in node.inputs)
    return node.op_type == "Where" and any(_leads_to_product(m, operand, depth - 1) for operand in node.inputs[1:])


def _added(m: Match, node: ir.Node) -> tuple[ir.Value, Mask]:
    for data, other in ((0, 1), (1, 0)):
        source, bias = node.inputs[data], node.inputs[other]
        if _leads_to_product(m, source) and source is not None and bias is not None:
            return source, Mask(bias=bias)
    raise NoMatch("an Add in front of the softmax adds no mask to q k^T")


def _selected(m: Match, node: ir.Node) -> tuple[ir.Value, Mask]:
    """Where(keep, scores, fill) and Where(drop, fill, scores), for a fill that swallows any score."""
    keep = node.inputs[0]
    assert keep is not None
    for data, other, inverted in ((1, 2, False), (2, 1, True)):
        source, fill = node.inputs[data], const_scalar(node.inputs[other])
        if fill is None or source is None:
            continue
        m.require(fill <= _ABSORBING, f"masked scores become {fill}, which a bias does not do to every score")
        return source, Mask(keep=keep, inverted=inverted, fill=float(fill))
    raise NoMatch("a Where in front of the softmax fills in no constant")


def build_bias(op: Builder, m: Match, core: Core, rows: Size, columns: Size | ir.Value) -> Bias:
    """All masks as one bias of shape [batch or 1, heads or 1, positions, key positions].

    Args:
        op, m: the builder and the match.
        core: what was found.
        rows, columns: an axis that has the size of the positions, and of the key positions, or their number [1].
    """
    masks = [mask for mask in core.masks if not _is_neutral(m, mask)]
    total: ir.Value | None = None
    for mask in masks:
        bias = mask.bias if mask.bias is not None else _as_bias(op, mask, core)
        total = bias if total is None else op.Add(total, bias)
    if total is None:
        return Bias(None, may_hide_rows=False)
    hides = core.zeroes_nan and not (len(masks) == 1 and _shows_every_row(masks[0])) and not all(map(_is_finite, masks))
    return Bias(_filled_out(op, m, total, core, rows, columns), hides)


def zero_hidden_rows(op: Builder, m: Match, bias: Bias, result: ir.Value) -> ir.Value:
    """`result` [batch, positions, width] with 0 in the rows whose bias is -inf throughout: there the softmax is NaN."""
    if bias.value is None or not bias.may_hide_rows:
        return result
    m.require(m.dims(bias.value)[1] == 1, "whole rows of single heads may be masked with -inf, and NaN becomes 0 there")
    m.require(m.opset() >= 18, "rows masked with -inf as a whole need ops of opset 18")
    top = op.ReduceMax(bias.value, [1, 3], keepdims=0)
    hidden = op.IsInf(op.Unsqueeze(top, [2]), detect_positive=0)
    return op.Where(hidden, _zero(op, result), result)


def _zero(op: Builder, like: ir.Value) -> ir.Value:
    import numpy as np

    assert like.dtype is not None
    return op.const(np.asarray(0, like.dtype.numpy()), "zero")


def _as_bias(op: Builder, mask: Mask, core: Core) -> ir.Value:
    import numpy as np

    scores = core.softmax.inputs[0]
    assert scores is not None and scores.dtype is not None
    zero, fill = _zero(op, scores), op.const(np.asarray(mask.fill, scores.dtype.numpy()), "fill")
    choices = (fill, zero) if mask.inverted else (zero, fill)
    return op.Where(mask.keep, *choices)


def _filled_out(op: Builder, m: Match, bias: ir.Value, core: Core, rows: Size, columns: Size | ir.Value) -> ir.Value:
    """The bias with rank 4 and full last two axes, as the kernels want it."""
    rank = m.rank(bias)
    if len(core.dims) == 3:
        m.require(rank < 3 or m.dims(bias)[0] == 1, "the mask differs between heads that share an axis with the batch")
    dims = (1,) * (4 - rank) + m.dims(bias)
    full = [m.equal(have, want) for have, want in zip(dims[-2:], core.dims[-2:], strict=True)]
    m.require((all(full) and rank == 4) or m.opset() >= 15, "the mask would have to be expanded with ops of opset 15")
    if rank < 4:
        bias = op.Unsqueeze(bias, list(range(4 - rank)))
    if all(full):
        return bias
    sizes: list[Any] = [op.const([1])] * 2
    for known, size, source in zip(full, core.dims[-2:], (rows, columns), strict=True):
        if known or isinstance(size, int):
            sizes.append(op.const([1 if known else size]))
        elif isinstance(source, Size):
            sizes.append(op.Shape(source.value, start=source.axis, end=source.axis + 1))
        else:
            sizes.append(source)
    return op.Expand(bias, op.Concat(*sizes, axis=0))


def _is_neutral(m: Match, mask: Mask) -> bool:
    """Whether the mask provably leaves all scores as they are."""
    if mask.bias is not None:
        return _is_zero(mask.bias)
    return _always(mask.keep, not mask.inverted)


def _is_zero(value: ir.Value | None, depth: int = 8) -> bool:
    """Whether all elements are provably 0."""
    if value is None or depth == 0:
        return False
    array = const_array(value)
    if array is not None:
        return array.size > 0 and not array.any()
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in _PASS_THROUGH:
        return _is_zero(node.inputs[0], depth - 1)
    if node.op_type == "Where":
        sides = [side for side, kept in ((1, False), (2, True)) if not _always(node.inputs[0], kept, depth - 1)]
        return all(_is_zero(node.inputs[side], depth - 1) for side in sides)
    return node.op_type == "ConstantOfShape" and (
        "value" not in node.attributes or not node.attributes["value"].as_tensor().numpy().any()
    )


def _always(value: ir.Value | None, wanted: bool, depth: int = 8) -> bool:
    """Whether all elements of a bool tensor are provably `wanted`."""
    if value is None or depth == 0:
        return False
    array = const_array(value)
    if array is not None:
        return array.size > 0 and bool((array == wanted).all())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in _PASS_THROUGH:
        return _always(node.inputs[0], wanted, depth - 1)
    if node.op_type == "Not":
        return _always(node.inputs[0], not wanted, depth - 1)
    if node.op_type in ("And", "Or"):
        decide = all if (node.op_type == "And") == wanted else any
        return decide(_always(operand, wanted, depth - 1) for operand in node.inputs)
    return False


# Ops whose elements are all elements of their first input.
_PASS_THROUGH = (
    "Expand",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Transpose",
    "Identity",
    "Slice",
    "Gather",
    "Flatten",
    "Tile",
)


def _shows_every_row(mask: Mask) -> bool:
    """Whether a constant mask leaves an element of each row above -inf."""
    import numpy as np

    array = const_array(mask.bias if mask.bias is not None else mask.keep)
    if array is None or array.ndim == 0:
        return False
    shown = array > -np.inf if mask.bias is not None else array != mask.inverted
    return bool(shown.any(axis=-1).all())


def _is_finite(mask: Mask) -> bool:
    if mask.bias is None:
        return mask.fill > float("-inf")
    return _bounded(mask.bias)


def _bounded(value: ir.Value | None, depth: int = 8) -> bool:
    """Whether no element can be infinite or NaN."""
    import numpy as np

    if value is None or depth == 0:
        return False
    array = const_array(value)
    if array is not None:
        return bool(np.isfinite(array).all())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in _PASS_THROUGH:
        return _bounded(node.inputs[0], depth - 1)
    if node.op_type == "Where":
        return _bounded(node.inputs[1], depth - 1) and _bounded(node.inputs[2], depth - 1)
    return False
