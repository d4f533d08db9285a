"""Casts that change nothing, alone or in a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match


# From each type, the types that hold all of its values, so that going there and on is the same as going on directly.
_WIDER: dict[str, tuple[str, ...]] = {
    "BOOL": ("UINT8", "INT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "FLOAT16", "FLOAT", "DOUBLE"),
    "UINT8": ("INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "FLOAT16", "FLOAT", "DOUBLE"),
    "INT8": ("INT16", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"),
    "UINT16": ("INT32", "UINT32", "INT64", "UINT64", "FLOAT", "DOUBLE"),
    "INT16": ("INT32", "INT64", "FLOAT", "DOUBLE"),
    "UINT32": ("INT64", "UINT64", "DOUBLE"),
    "INT32": ("INT64", "DOUBLE"),
    "FLOAT16": ("FLOAT", "DOUBLE"),
    "BFLOAT16": ("FLOAT", "DOUBLE"),
    "FLOAT": ("DOUBLE",),
}
_FLOATS = ("FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE")


class EliminateCast(NodePass):
    """Cast(x, its own type) -> x; Cast(Cast(x, wider), t) -> Cast(x, t), for a wider type that holds every x."""

    name: ClassVar[str] = "eliminate-cast"
    level: ClassVar[int | None] = 1
    ops: ClassVar[tuple[str, ...]] = ("Cast", "CastLike")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        x, target = node.inputs[0], node.outputs[0].dtype
        if x is None or x.dtype is None or target is None:
            raise Uninteresting("a type is unknown")
        if x.dtype == target:
            return x
        inner = x.producer()
        if inner is None or inner.op_type != "Cast" or inner.domain != "" or inner.graph is not node.graph:
            raise Uninteresting("another type")
        source = inner.inputs[0]
        assert source is not None
        if source.dtype is None or x.dtype.name not in _WIDER.get(source.dtype.name, ()):
            raise Uninteresting("the inner cast loses values")
        if source.dtype == target:
            return source
        # What an out-of-range float becomes as an integer differs between the float types, and float8 may saturate.
        plain = target.name == "BOOL" or target.name in (_FLOATS if source.dtype.name in _FLOATS else _WIDER)
        m.require(plain or target.name == "DOUBLE", f"{source.dtype.name} to {target.name} depends on the way taken")
        return op.Cast(source, to=target.value)
