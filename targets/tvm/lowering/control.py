"""Rule of If: each branch becomes a function of its own, called with the outer values that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.ir.constants import is_const
from graphopt.ir.sites import subgraphs
from graphopt.targets.tvm.lowering.table import defined_by, lowers, symbols_of, why_not
from graphopt.targets.tvm.lowering.view import View

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.targets.tvm.lowering.context import Lowering

    Expr = Any

BRANCHES = ("then_branch", "else_branch")


def _check(n: View) -> str | None:
    for _, graph in subgraphs(n.node):
        for node in graph:
            if node.op_type == "Constant":
                continue
            reason = why_not(View(node, n.shapes, n.version))
            if reason is not None:
                return f"If: in a branch, {reason}"
        made = [value for node in graph for value in node.outputs]
        needed = {name for value in made for dim in n.shapes.dims(value) or () for name in symbols_of(n.shapes, dim)}
        if needed - defined_by(n.shapes, captured(graph)):
            return "If: sizes in a branch do not follow from what it reads; bind them with --dim or --input-shapes"
    return None


@lowers("If", dtypes=frozenset({"bool"}), check=_check)
def if_(c: Lowering, n: View) -> list[Expr]:
    calls = []
    for name in BRANCHES:
        graph = n.node.attributes[name].as_graph()
        arguments = [c.get(value) for value in captured(graph)]
        calls.append(c.relax.Call(c.functions[graph], arguments))
    condition = c.emit(c.reshape(c.input(n, 0), []))
    bodies = [c.relax.SeqExpr([], call) for call in calls]
    both = c.emit(c.relax.If(condition, *bodies))
    return [c.emit(c.relax.TupleGetItem(both, index)) for index in range(len(n.node.outputs))]


def captured(graph: ir.Graph) -> list[ir.Value]:
    """Values of outer scopes that a branch reads, itself or in branches within; constants are not passed."""
    inner: set[ir.Value] = set()
    found: dict[ir.Value, None] = {}

    def visit(scope: ir.Graph) -> None:
        inner.update(scope.inputs)
        inner.update(scope.initializers.values())
        for node in scope:
            for value in node.inputs:
                if value is not None and value not in inner and not is_const(value):
                    found[value] = None
            for _, body in subgraphs(node):
                visit(body)
            inner.update(node.outputs)
        for value in scope.outputs:
            if value not in inner and not is_const(value):
                found[value] = None

    visit(graph)
    return list(found)
