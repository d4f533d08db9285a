"""LayerNormalization and RMSNormalization from their parts, with the scale and bias behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._expr import Region, producer_is
from graphopt.passes.fuse._moments import Normalized, read_affine, read_normalized, read_scaled_root

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

    Reading = Callable[[Region], tuple[Normalized, ir.Value | None, ir.Value | None]]

_ROOTS = ("Sqrt", "Pow", "Reciprocal")


class _Norm(NodePass):
    """Tries the whole first: normalised * scale + bias, then without bias, then bare."""

    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Add", "Mul", "Div", "Cast")
    op_type: ClassVar[str]
    centered: ClassVar[bool]
    has_bias: ClassVar[bool]

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        if not any(_near_root(value, 5) for value in node.inputs):
            raise Uninteresting("no square root near")
        reason = "not a normalisation"
        for read in self._readings(m, node):
            region = Region(m)
            try:
                found, scale, bias = read(region)
                axis = self._axis(m, found)
                _fits(m, scale, found, axis)
                _fits(m, bias, found, axis)
                region.close()
            except NoMatch as miss:
                reason = str(miss)
                continue
            more: tuple[str, ...] = ("Mul",) if scale is None and bias is None else ()
            if self.has_bias and bias is None:
                more += ("Add",)
            if _more_behind(m, node, more, found, axis):
                raise Uninteresting("taken with the scale and bias behind it")
            m.supports(self.op_type, like=found.x)
            return self._make(op, m, found, axis, scale, bias)
        raise NoMatch(reason)

    def _readings(self, m: Match, node: ir.Node) -> Iterator[Reading]:
        """The ways to read the root, from the largest expression to the smallest."""
        out = node.outputs[0]
        if node.op_type == "Add" and self.has_bias:
            for value, other in (node.inputs, node.inputs[::-1]):
                if value is not None and other is not None and producer_is(m, value, "Mul"):
                    if producer_is(m, other, "Sub"):
                        yield partial(read_affine, product=value, rest=other)
                    yield partial(_distributed, value=value, bias=other)
        if node.op_type == "Mul":
            yield partial(_distributed, value=out, bias=None)
        for value, scale, bias in self._splits(m, node):
            yield partial(_plain, root=node, value=value, scale=scale, bias=bias)

    def _splits(self, m: Match, node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value | None, ir.Value | None]]:
        """The ways to read the root as value [* scale] [+ bias]."""
        out = node.outputs[0]
        if node.op_type == "Add":
            if not self.has_bias:
                return
            for rest, bias in (node.inputs, node.inputs[::-1]):
                if producer_is(m, rest, "Mul"):
                    product = rest.producer()  # type: ignore[union-attr]
                    assert product is not None
                    for value, scale in (product.inputs, product.inputs[::-1]):
                        if value is not None and producer_is(m, value, "Mul", "Div", "Cast"):
                            yield value, scale, bias
                if rest is not None and producer_is(m, rest, "Mul", "Div", "Cast"):
                    yield rest, None, bias
            return
        if node.op_type == "Mul":
            for value, scale in (node.inputs, node.inputs[::-1]):
                if value is not None and producer_is(m, value, "Mul", "Div", "Cast"):
                    yield value, scale, None
        yield out, None, None

    def _axis(self, m: Match, found: Normalized) -> int:
        if found.centered != self.centered:
            raise NoMatch("the mean is subtracted" if found.centered else "the mean is not subtracted")
        rank = m.rank(found.x)
        m.require(
            found.axes == tuple(range(rank - len(found.axes), rank)),
            f"axes {list(found.axes)} are not the last of {rank}",
        )
        m.require(m.is_float(found.x), "not of floats")
        return found.axes[0]

    def _make(
        self, op: Builder, m: Match, found: Normalized, axis: int, scale: ir.Value | None, bias: ir.Value | None
    ) -> ir.Value:
        import numpy as np

        if scale is None:
            dims = [m.dim(found.x, at) for at in found.axes]
            scale = op.const(np.ones(dims, dtype=m.dtype(found.x).numpy()), "ones")
        made = op.node(
            self.op_type,
            found.x,
            _trailing(op, m, scale, found, axis),
            *([_trailing(op, m, bias, found, axis)] if bias is not None else []),
            axis=axis - m.rank(found.x),
            epsilon=found.epsilon,
            _outputs=1,
        )
        return made


@dataclass(frozen=True)
class FuseLayerNorm(_Norm):
    """d / sqrt(mean(d * d) + eps) * scale + bias -> LayerNormalization(x, scale, bias), d = x - mean(x), last axes."""

    name: ClassVar[str] = "fuse-layer-norm"
    op_type: ClassVar[str] = "LayerNormalization"
    centered: ClassVar[bool] = True
    has_bias: ClassVar[bool] = True


@dataclass(frozen=True)
class FuseRMSNorm(_Norm):
    """x / sqrt(mean(x^2) + epsilon) * scale -> RMSNormalization(x, scale), over the last axes, from opset 23."""

    name: ClassVar[str] = "fuse-rms-norm"
    op_type: ClassVar[str] = "RMSNormalization"
    centered: ClassVar[bool] = False
    has_bias: ClassVar[bool] = False

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        if m.opset() < 23:
            raise Uninteresting("RMSNormalization came with opset 23")
        return super().rewrite_node(op, m, node)


def _plain(
    region: Region, root: ir.Node, value: ir.Value, scale: ir.Value | None, bias: ir.Value | None
) -> tuple[Normalized, ir.Value | None, ir.Value | None]:
    region.nodes.update(dict.fromkeys(_between(region.m, root, value)))
    return read_normalized(region, value), scale, bias


def _distributed(
    region: Region, value: ir.Value, bias: ir.Value | None
) -> tuple[Normalized, ir.Value | None, ir.Value | None]:
    found, scale = read_scaled_root(region, value)
    if scale is None:
        raise NoMatch("no scale")
    return found, scale, bias


def _near_root(value: ir.Value | None, depth: int) -> bool:
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type in _ROOTS:
        return True
    return (
        depth > 1
        and node.op_type in ("Mul", "Div", "Cast", "Sub")
        and any(_near_root(v, depth - 1) for v in node.inputs)
    )


def _between(m: Match, root: ir.Node, value: ir.Value) -> list[ir.Node]:
    """The Mul between the root and the normalised value, if there is one."""
    if value is root.outputs[0] or any(v is value for v in root.inputs):
        return []
    producers = [v.producer() for v in root.inputs if v is not None and producer_is(m, v, "Mul")]
    return [node for node in producers if node is not None and any(v is value for v in node.inputs)]


def _fits(m: Match, value: ir.Value | None, found: Normalized, axis: int) -> None:
    """Raise unless a scale or bias varies along the normalised axes only and has their sizes."""
    if value is None:
        return
    dims, rank = m.dims(value), m.rank(found.x)
    m.require(m.dtype(value) == m.dtype(found.x), "scale or bias are of another type")
    m.require(len(dims) <= rank, "scale or bias has more dims than the value")
    padded = (1,) * (rank - len(dims)) + dims
    m.require(all(dim == 1 for dim in padded[:axis]), "scale or bias varies along other axes")
    whole = m.dims(found.x)
    same = all(dim == 1 or m.equal(dim, whole[at]) for at, dim in enumerate(padded) if at >= axis)
    m.require(same, "scale or bias does not have the sizes of the normalised axes")


def _more_behind(m: Match, node: ir.Node, more: tuple[str, ...], found: Normalized, axis: int) -> bool:
    """Whether the only user multiplies or adds (ops in `more`) something that the fused op can take in as well."""
    out = node.outputs[0]
    users = list(out.uses())
    if len(users) != 1 or out.is_graph_output():
        return False
    user = users[0].node
    if user.op_type not in more or user.graph is not node.graph or user.domain != "":
        return False
    other = user.inputs[1] if user.inputs[0] is out else user.inputs[0]
    try:
        _fits(m, other, found, axis)
    except NoMatch:
        return False
    return other is not out


def _trailing(op: Builder, m: Match, value: ir.Value, found: Normalized, axis: int) -> ir.Value:
    """The scale or bias with exactly the dims of the normalised axes."""
    import numpy as np

    rank = m.rank(found.x)
    dims, count = m.dims(value), rank - axis
    whole = m.dims(found.x)[axis:]
    if len(dims) == count and all(m.equal(a, b) for a, b in zip(dims, whole, strict=True)):
        return value
    array = m.const(value)
    sizes = [m.dim(found.x, at) for at in range(axis, rank)]
    array = array.reshape(array.shape[-count:] if array.ndim >= count else array.shape)
    return op.const(np.broadcast_to(array, sizes).copy(), str(value.name))
