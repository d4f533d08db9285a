"""Moving a scale per channel from activations into weights: f(x) W = (f(x) / s) (s W), so that both round better.

Lives here: where that is possible, the error that it is expected to leave, and the two rewrites, each of which keeps
what the model computes. Which sites a pass looks at is its own: equalize_layers.py, smooth_quant.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_tensor
from graphopt.ir.rewrite_log import StopRewriting
from graphopt.ir.rewriter import PROVENANCE
from graphopt.manager.match import Match
from graphopt.passes.fuse._linear import fold, linear, per_channel, rounded
from graphopt.passes.fuse.scale_conv import times_input
from graphopt.passes.quantize._kinds import clip_high, kind_of

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context

EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of the activations' range that the weights may take over: s = max|x|^a / max|w|^(1 - a)."""
WORTH = 0.9
"""A site is changed where the expected error falls below this part of what it is."""
_HOMOGENEOUS = frozenset({"LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
_HEADROOM = 1.1
"""A channel that is scaled up below a Clip keeps this much room between what was seen and the bound."""
_SHARES = (0.25, 0.5, 0.75, 1.0)
"""How far a channel below a Clip is brought to the bound: s = (max x / bound)^a."""
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_STEPS = 255


class ChannelStats:
    """Per channel of one axis: smallest, largest, sum of squares and count of the elements (an Accumulator)."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.count = 0
        self.low: Any = None
        self.high: Any = None
        self.squares: Any = 0.0

    def update(self, array: np.ndarray) -> None:
        import numpy as np

        rows = np.moveaxis(array, self.axis, -1).reshape(-1, array.shape[self.axis])
        if not len(rows):
            return
        low, high = rows.min(axis=0), rows.max(axis=0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        self.squares = self.squares + np.square(rows, dtype=np.float64).sum(axis=0)
        self.count += len(rows)

    @property
    def usable(self) -> bool:
        import numpy as np

        return bool(self.count) and bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())


@dataclass(frozen=True)
class Site:
    """A value whose channels can be scaled: its readers have constant weights, all of its channels along one axis.

    Attributes:
        value: the activations. axis: their channels. readers: the compute nodes that take the scale into their weights.
        chain: nodes from the producer that can be scaled up to the one that makes `value`; empty: a Mul is needed.
        bound: of a Clip in the chain; inf without one. Channels that reach it cannot be scaled, others only up to it.
    """

    value: ir.Value
    axis: int
    readers: tuple[ir.Node, ...]
    chain: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        return str(self.value.name)

    @property
    def bound(self) -> float:
        return min((clip_high(node) or 0.0 for node in self.chain if kind_of(node) == "clips"), default=float("inf"))


def find_sites(ctx: Context, graph: ir.Graph, ops: Sequence[str], insert: bool) -> list[Site]:
    """Values read by nodes of `ops` with constant weights; with `insert`, also those that need a Mul."""
    sites = []
    for node in graph:
        for value in node.outputs:
            readers = [use.node for use in value.uses() if use.idx == 0 and _scalable(use.node, ops)]
            readers = [node for node in readers if not _is_scaled(ctx, node)]
            if not readers:
                continue
            axis = 1 if readers[0].op_type == "Conv" else -1
            alone = len(readers) == len(list(value.uses())) and not value.is_graph_output()
            chain = _chain(ctx, value) if alone else ()
            if chain or insert:
                sites.append(Site(value, axis, tuple(dict.fromkeys(readers)), chain))
    return sites


def choose_scale(ctx: Context, site: Site, stats: ChannelStats) -> tuple[np.ndarray, float] | None:
    """The scale per channel with the least expected error, and the part of it that is left; None: keep as it is."""
    import numpy as np

    weights = [_by_channel(reader, const_array(reader.inputs[1], ctx.max_bytes)) for reader in site.readers]
    if any(rows is None or rows.shape[0] != len(stats.low) for rows in weights):
        return None
    rows = [item for item in weights if item is not None]
    reach = np.maximum(np.maximum(-stats.low, stats.high), 1e-12).astype(np.float64)
    largest = np.maximum(np.max([np.abs(item).max(axis=1) for item in rows], axis=0), 1e-12)
    plain = _expected_error(stats, rows, np.ones(len(reach)))
    if not plain or not np.isfinite(plain):
        return None
    best: tuple[np.ndarray, float] | None = None
    for scale in _candidates(reach, largest, site.bound):
        left = _expected_error(stats, rows, scale) / plain
        if left < (WORTH if best is None else best[1]):
            best = scale, left
    return best


def _candidates(reach: np.ndarray, largest: np.ndarray, bound: float) -> Iterator[np.ndarray]:
    import numpy as np

    if np.isfinite(bound):
        least = reach * _HEADROOM / bound
        for share in _SHARES:
            yield np.where(least < 1, np.clip((reach / bound) ** share, np.maximum(least, 1e-3), 1.0), 1.0)
        return
    for exponent in EXPONENTS:
        scale = reach**exponent / largest ** (1 - exponent)
        yield np.clip(scale / np.exp(np.log(scale).mean()), 1e-3, 1e3)


def move(ctx: Context, site: Site, scale: np.ndarray) -> bool:
    """Divide the value and multiply the readers' weights by the scale; then let the producer divide, where it can."""
    made: list[ir.Value] = []
    for reader in site.readers:
        if not _attempt(ctx, reader, lambda op, m, node: _multiply_weights(op, m, node, site, scale, made)):
            break
    if not made:
        return False
    divide = made[0].producer()
    if site.chain and divide is not None and divide.graph is not None and len(list(site.value.uses())) == 1:
        _attempt(ctx, divide, lambda op, m, node: _divide_in_producer(op, m, site, scale))
    return True


def _attempt(ctx: Context, node: ir.Node, rewrite: Any) -> bool:
    rewriter, site, op_type = ctx.rewriter, ctx.rewriter.site(node), node.op_type
    op, m = rewriter.builder(node), Match(ctx, node)
    try:
        rewriter.replace(node, rewrite(op, m, node), op, m.interior)
    except NoMatch as why:
        op.discard()
        ctx.remarks.missed(ctx.pass_name, site, op_type, str(why))
        return False
    except StopRewriting:
        op.discard()
        raise
    return True


def _multiply_weights(
    op: Any, m: Match, node: ir.Node, site: Site, scale: np.ndarray, made: list[ir.Value]
) -> ir.Value:
    weight = node.inputs[1]
    assert weight is not None
    exact = times_input(m, node, m.const(weight).astype("float64"), scale)
    if not made:
        shape = (len(scale), *(1,) * (m.rank(site.value) - 2)) if site.axis == 1 else (len(scale),)
        made.append(
            op.Mul(site.value, op.const((1 / scale).astype("float32").reshape(shape), f"{weight.name}_divisor"))
        )
    inputs = list(node.inputs)
    inputs[0], inputs[1] = made[0], rounded(op, m, exact, weight)
    return op.clone(node, inputs)


def _divide_in_producer(op: Any, m: Match, site: Site, scale: np.ndarray) -> ir.Value:
    factor = 1 / scale
    first, rest = site.chain[0], site.chain[1:]
    if first.op_type in _NORMS:
        value = _scaled_norm(op, m, first, factor)
    else:
        value = fold(op, m, linear(m, first), factor, None)
    for node in rest:
        inputs = list(node.inputs)
        inputs[_through(node)] = value
        if node.op_type == "Add":
            other = 1 - _through(node)
            constant = node.inputs[other]
            assert constant is not None
            rank = m.rank(node.outputs[0])
            terms = per_channel(m, constant, rank, site.axis % rank, len(scale)) * factor
            shape = (len(scale), *(1,) * (rank - 1 - site.axis % rank))
            inputs[other] = rounded(op, m, terms.reshape(shape), constant)
        value = op.clone(node, inputs)
    m.interior = list(site.chain)
    return value


def _scaled_norm(op: Any, m: Match, norm: ir.Node, factor: np.ndarray) -> ir.Value:
    inputs = list(norm.inputs)
    for slot in (1, 2):
        value = inputs[slot] if slot < len(inputs) else None
        if value is not None:
            inputs[slot] = rounded(op, m, m.const(value).astype("float64") * factor, value)
    made = op.clone(norm, inputs)
    return made[0] if isinstance(made, tuple) else made


def _scalable(node: ir.Node, ops: Sequence[str]) -> bool:
    if node.op_type not in ops or node.domain != "" or const_tensor(node.inputs[1]) is None:
        return False
    attributes = node.attributes
    if node.op_type == "Conv":
        shape = const_tensor(node.inputs[1]).shape.numpy()  # type: ignore[union-attr]
        groups = attributes["group"].as_int() if "group" in attributes else 1
        return groups == 1 or shape[1] == 1
    if node.op_type == "Gemm" and "transA" in attributes and attributes["transA"].as_int():
        return False
    return len(const_tensor(node.inputs[1]).shape) == 2  # type: ignore[union-attr]


def _is_scaled(ctx: Context, node: ir.Node) -> bool:
    """Whether this pass has made the node: a reader is scaled once."""
    return str(node.metadata_props.get(PROVENANCE, "")).startswith(f"{ctx.pass_name}: ")


def _chain(ctx: Context, value: ir.Value) -> tuple[ir.Node, ...]:
    """From the nearest producer that can be scaled to the one that makes `value`, all read once; () without one."""
    chain: list[ir.Node] = []
    while True:
        node = value.producer()
        if node is None or node.domain != "" or (chain and len(list(value.uses())) != 1) or value.is_graph_output():
            return ()
        chain.append(node)
        if node.op_type in _NORMS:
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
            plain = axis in (-1, (len(value.shape) if value.shape is not None else 0) - 1)
            used = [out for out in node.outputs[1:] if out.uses() or out.is_graph_output()]
            constants = all(const_tensor(item) is not None for item in node.inputs[1:] if item is not None)
            return tuple(reversed(chain)) if plain and constants and not used else ()
        if node.op_type in ("Conv", "Gemm") or (node.op_type == "MatMul" and const_tensor(node.inputs[1]) is not None):
            return tuple(reversed(chain)) if const_tensor(node.inputs[1]) is not None else ()
        if node.op_type not in _HOMOGENEOUS and kind_of(node) != "clips" and not _adds_constant(node):
            return ()
        source = node.inputs[_through(node)]
        assert source is not None
        value = source


def _adds_constant(node: ir.Node) -> bool:
    return node.op_type == "Add" and any(const_tensor(value) is not None for value in node.inputs)


def _through(node: ir.Node) -> int:
    """The input that is not the constant."""
    return 1 if node.op_type == "Add" and const_tensor(node.inputs[0]) is not None else 0


def _by_channel(node: ir.Node, weights: np.ndarray | None) -> np.ndarray | None:
    """Weights as (input channels, everything else)."""
    import numpy as np

    if weights is None or not np.isfinite(weights).all():
        return None
    if node.op_type == "Conv":
        axis = 0 if weights.shape[1] == 1 and "group" in node.attributes else 1
    else:
        trans = node.attributes.get("transB")
        axis = 1 if node.op_type == "Gemm" and trans is not None and trans.as_int() else 0
    return np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(np.float64)


def _expected_error(stats: ChannelStats, weights: Sequence[np.ndarray], scale: np.ndarray) -> float:
    """Expected squared error of the readers' outputs: uniform noise of one step in activations and in weights.

    sum over readers of  d_x^2 / 12 * sum_ck (s_c w_ck)^2  +  sum_c E[(x_c / s_c)^2] * sum_k d_k^2 / 12
    with d_x = (max - min of x / s) / 255, and d_k = 2 max_c |s_c w_ck| / 255 per column k.
    """
    import numpy as np

    low, high = np.minimum(stats.low / scale, 0).min(), np.maximum(stats.high / scale, 0).max()
    step = (high - low) / _STEPS
    power = (stats.squares / stats.count / np.square(scale)).sum()
    total = 0.0
    for rows in weights:
        scaled = rows * scale[:, None]
        steps = 2 * np.abs(scaled).max(axis=0) / _STEPS
        total += step**2 / 12 * np.square(scaled).sum() + power * np.square(steps).sum() / 12
    return float(total)
