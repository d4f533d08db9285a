"""Attention as the exporters write it, fused into ONNX Runtime's Attention, MultiHeadAttention or GroupQueryAttention.

Lives here: the pass and the choice of the fused op. The core is found in _attention_core.py, layouts in _layout.py, the
linear layers in _projections.py; _emit_attention.py makes the nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.base import Tolerance
from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.fuse_target._layout import View, walk

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match
    from graphopt.manager.worklist import Replacement
    from graphopt.passes.fuse_target._attention_core import Core
    from graphopt.passes.fuse_target._emit_attention import Heads

# Layout ops that may stand between the second MatMul and the merged heads.
_MERGING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")


class FuseAttention(NodePass):
    """merge_heads(softmax(q k^T * scale + mask) v) -> Attention, MultiHeadAttention or GroupQueryAttention.

    With grouped heads and a cache, GroupQueryAttention takes the past and makes the new cache too, in place of
    Concat(past, new): for one sequence, or one new position of each, which its CPU kernel wants.

    Source: the operators' contracts in ONNX Runtime's documentation of contributed operators (com.microsoft).
    """

    name: ClassVar[str] = "fuse-attention"
    stage: ClassVar[str] = "fuse-target"
    level: ClassVar[int | None] = 2
    tolerance: ClassVar[Tolerance] = "reassociates"
    after: ClassVar[tuple[str, ...]] = ("fuse-rotary-embedding",)
    ops: ClassVar[tuple[str, ...]] = ("Reshape", "Concat")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        from graphopt.passes.fuse_target._attention_core import find_core
        from graphopt.passes.fuse_target._cache import present
        from graphopt.passes.fuse_target._emit_attention import emit

        if node.op_type == "Concat":
            return present(m, node)
        final = _final_product(node)
        core = find_core(m, final)
        _require_private(m, final, core)
        merged = _merged_heads(m, node.outputs[0], final, core)
        query = core.query[0].value
        m.not_quantized((query, core.key[0].value, core.value[0].value))
        m.supports("MultiHeadAttention", "com.microsoft", like=query)
        made = emit(op, m, core, _heads(m, core, merged))
        m.interior = [final, core.softmax]
        if _is_by_position(merged):
            made = op.Transpose(made, perm=[1, 0, 2])
        if m.rank(node.outputs[0]) == 3:
            return made
        return op.Reshape(made, [-1, m.dim(node.outputs[0], -1)])


def _require_private(m: Match, final: ir.Node, core: Core) -> None:
    """Raise when the probabilities or the product are used elsewhere too: they would be computed twice."""
    probabilities = final.inputs[0]
    assert probabilities is not None
    m.sole_use(final.outputs[0])
    m.sole_use(probabilities)
    if core.zeroes_nan:
        softmax = core.softmax.outputs[0]
        m.require(
            len(softmax.uses()) == 2 and not softmax.is_graph_output(), "multiple-uses: the softmax is used elsewhere"
        )


# The final product seen from where the heads are merged; X is heads and channels. The second row of each: positions
# before the batch, as torch.nn.MultiheadAttention has them.
_BATCH_FIRST = (("B", "X", "S", "x"), ("BX", "S", "x"), ("B", "X", "b", "x"), ("BX", "b", "x"))
_POSITIONS_FIRST = (("S", "X", "B", "x"), ("SX", "B", "x"), ("b", "X", "B", "x"), ("bX", "B", "x"))


def _is_by_position(view: View) -> bool:
    return not any(view.lies(*layout) for layout in _BATCH_FIRST)


def _final_product(node: ir.Node) -> ir.Node:
    """The MatMul of probabilities and values behind a Reshape.

    Raises:
        Uninteresting: there is none.
    """
    value = node.inputs[0]
    for _ in range(4):
        made = value.producer() if value is not None else None
        if made is None or made.domain != "" or made.graph is not node.graph:
            break
        if made.op_type == "MatMul":
            probabilities = made.inputs[0].producer() if made.inputs[0] is not None else None
            if probabilities is not None and probabilities.op_type in ("Softmax", "Where"):
                return made
            break
        if made.op_type not in _MERGING:
            break
        value = made.inputs[0]
    raise Uninteresting("no attention in front")


def _merged_heads(m: Match, value: ir.Value, final: ir.Node, core: Core) -> View:
    """The view of the final product from where its heads are merged.

    Raises:
        Uninteresting: the heads are not merged here, perhaps further down.
    """
    rank = m.rank(value)
    if rank not in (2, 3):
        raise Uninteresting("the heads are not merged here")
    for view in walk(m, value, ("B", "S", "X") if rank == 3 else ("B", "X")):
        if view.value is final.outputs[0] and view.scale == 1.0 and not view.repeated:
            if any(view.lies(*layout) for layout in (*_BATCH_FIRST, *_POSITIONS_FIRST)):
                return view
            break
    raise Uninteresting("the heads are not merged here")


def _heads(m: Match, core: Core, merged: View) -> Heads:
    """Number of heads and channels of a value head."""
    from graphopt.passes.fuse_target._emit_attention import Heads

    sizes = {factor.name: factor.size for axis in merged.axes for factor in axis}
    heads, channels = sizes["X"], sizes.get("x")
    m.require(isinstance(heads, int) and isinstance(channels, int), "the number of heads is not known")
    assert isinstance(heads, int) and isinstance(channels, int)
    width = m.dims(core.query[0].value)[-1]
    m.require(isinstance(width, int), "the number of channels of a head is not known")
    assert isinstance(width, int)
    return Heads(heads, width, channels)
