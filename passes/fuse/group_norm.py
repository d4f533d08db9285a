"""GroupNormalization and InstanceNormalization from the forms that older opsets forced upon exporters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Tolerance
from graphopt.manager.pattern import RewritePass
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse._expr import Region, is_near_op
from graphopt.passes.fuse._linear import per_channel, rounded
from graphopt.passes.fuse._moments import read_normalized

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.pattern import PatternBuilder


class FuseGroupNorm(RewritePass):
    """Reshape(InstanceNormalization(Reshape(x, [N, G, -1]))) * scale + bias -> GroupNormalization(x, scale, bias)."""

    name: ClassVar[str] = "fuse-group-norm"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"

    def pattern(
        self, op: PatternBuilder, x: Any, down: Any, ones: Any, zeros: Any, up: Any, scale: Any, bias: Any
    ) -> Any:
        groups = op.Reshape(x, down, _as="down")
        normal = op.InstanceNormalization(groups, ones, zeros, _as="norm")
        return op.Add(op.Mul(op.Reshape(normal, up, _as="up"), scale), bias)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Any:
        if not is_near_op(m, node, ("InstanceNormalization",), 3, through=("Mul", "Reshape")):
            raise Uninteresting("no InstanceNormalization near")
        return super().rewrite_node(op, m, node)

    def rewrite(
        self,
        op: Builder,
        m: Match,
        x: ir.Value,
        down: ir.Value,
        ones: ir.Value,
        zeros: ir.Value,
        up: ir.Value,
        *affine: ir.Value,
    ) -> ir.Value:
        m.require(m.opset() >= 21, "GroupNormalization has a scale per channel from opset 21")
        rank, channels = m.rank(x), m.dim(x, 1)
        grouped = m["down"].outputs[0]
        groups = m.dim(grouped, 1)
        m.require(groups > 0 and channels % groups == 0, f"{channels} channels are not {groups} groups")
        m.require(m.equal(m.dims(x)[0], m.dims(grouped)[0]), "the reshape changes the batch")
        m.require(m.same_shape(x, m["up"].outputs[0]), "the second Reshape does not undo the first")
        m.require((m.const(ones) == 1).all() and (m.const(zeros) == 0).all(), "the groups are scaled one by one")
        scale, bias = (per_channel(m, value, rank, 1, channels) for value in affine)
        m.supports("GroupNormalization", like=x)
        spread = [rounded(op, m, _spread(array, channels), x, "group_norm") for array in (scale, bias)]
        return op.GroupNormalization(x, *spread, num_groups=groups, epsilon=m.attr("norm", "epsilon", 1e-5))


def _spread(array: Any, channels: int) -> Any:
    import numpy as np

    return np.broadcast_to(array, (channels,))


class FuseInstanceNorm(NodePass):
    """d / sqrt(mean(d^2) + epsilon) -> InstanceNormalization(x, 1, 0), d = x - mean(x), over all spatial axes."""

    name: ClassVar[str] = "fuse-instance-norm"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Div", "Mul")
    # The last axis of three is a sequence's features more often than a signal's samples.
    after: ClassVar[tuple[str, ...]] = ("fuse-layer-norm",)

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        if not any(v is not None and _is_root(v.producer()) for v in node.inputs):
            raise Uninteresting("no square root near")
        region = Region(m)
        found = read_normalized(region, node.outputs[0])
        rank = m.rank(found.x)
        if not found.centered or rank < 3 or found.axes != tuple(range(2, rank)):
            raise NoMatch(f"axes {list(found.axes)} of {rank} are not all spatial axes, or the mean is not subtracted")
        region.close()
        m.supports("InstanceNormalization", like=found.x)
        channels, dtype = m.dim(found.x, 1), m.dtype(found.x).numpy()
        ones, zeros = np.ones(channels, dtype), np.zeros(channels, dtype)
        return op.InstanceNormalization(found.x, ones, zeros, epsilon=found.epsilon)


class FuseInstanceNormScale(NodePass):
    """InstanceNormalization(x, s, b) * c -> InstanceNormalization(x, s * c, b * c), for a constant c; + too."""

    name: ClassVar[str] = "fuse-instance-norm-scale"
    stage: ClassVar[str] = "fuse-portable"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Add")
    after: ClassVar[tuple[str, ...]] = ("fuse-group-norm", "fuse-instance-norm")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        for value, constant in (node.inputs, node.inputs[::-1]):
            norm = value.producer() if value is not None else None
            if norm is None or norm.op_type != "InstanceNormalization" or norm.domain != "":
                continue
            assert value is not None and constant is not None
            m.producer(value, "InstanceNormalization")
            m.sole_use(value)
            x, scale, bias = norm.inputs
            assert x is not None and scale is not None and bias is not None
            found = per_channel(m, constant, m.rank(x), 1, m.dim(scale, 0))
            new = [m.const(v).astype("float64") for v in (scale, bias)]
            new = [v * found for v in new] if node.op_type == "Mul" else [new[0], new[1] + found]
            m.interior = [norm]
            return op.clone(norm, [x, *(rounded(op, m, v, like) for v, like in zip(new, (scale, bias), strict=True))])
        raise Uninteresting("no InstanceNormalization in front")


def _is_root(node: ir.Node | None) -> bool:
    return node is not None and node.op_type in ("Sqrt", "Pow", "Reciprocal", "Div")
