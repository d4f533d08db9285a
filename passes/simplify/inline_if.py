"""If whose condition is known: the branch taken stands in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.constants import const_scalar
from graphopt.manager.base import Pass
from graphopt.passes.simplify._splice import Names

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context


class InlineIf(Pass):
    """If(true, then, else) -> then, If(false, then, else) -> else."""

    name: ClassVar[str] = "inline-if"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("fold-constants",)
    keeps: ClassVar[tuple[str, ...]] = ()

    def run(self, model: ir.Model, ctx: Context) -> None:
        names: Names | None = None
        waiting = ctx.rewriter.index.of("", "If")
        for node in waiting:
            if node.graph is None:
                continue
            taken = _condition(node.inputs[0], ctx)
            if taken is None:
                continue
            names = names or Names(ctx)
            inner = node.attributes["then_branch" if taken else "else_branch"].as_graph()
            site = ctx.rewriter.site(node)
            if inner.initializers and ctx.rewriter.in_function(node):
                ctx.remarks.missed(
                    self.name, site, "If", "its branch has initializers, which a function body cannot hold"
                )
                continue
            names.make_unique(inner)
            ctx.rewriter.splice(node, inner, list(inner.outputs))
            ctx.remarks.applied(self.name, site, "If", f"its condition is always {str(taken).lower()}")


def _condition(value: ir.Value | None, ctx: Context) -> bool | None:
    element = const_scalar(value)
    if element is not None:
        return bool(element)
    known = ctx.shapes.ints(value)
    return bool(known[0]) if known is not None and len(known) == 1 else None
