"""Dead code: nodes that nothing uses and initializers that no node reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.base import Pass

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context


class DCE(Pass):
    """Erase nodes whose outputs nobody uses, and unused initializers."""

    name: ClassVar[str] = "dce"
    stage: ClassVar[str] = "simplify"
    level: ClassVar[int | None] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ("shapes", "ranges")

    def run(self, model: ir.Model, ctx: Context) -> None:
        rewriter = ctx.rewriter
        # Inner graphs first: an outer node may live only for a dead inner one.
        for scope in reversed(list(rewriter.scopes())):
            for node in reversed(list(scope.graph)):
                if node.graph is None or any(out.uses() or out.is_graph_output() for out in node.outputs):
                    continue
                site, op = rewriter.site(node), node.op_type
                rewriter.erase(node)
                ctx.remarks.applied(self.name, site, op, "nothing uses it")
            for name, value in list(scope.graph.initializers.items()):
                if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                    rewriter.drop_initializer(scope.graph, name)
                    ctx.remarks.applied(self.name, name, "initializer", "nothing uses it")
