"""onnx-graphsurgeon both ways, and passes written on a `gs.Graph`.

    graph = to_graphsurgeon(model)                    # weights stay where they are until somebody reads `.values`
    model = from_graphsurgeon(graph, like=model)

Not here: the conversions themselves (graphsurgeon_out.py, graphsurgeon_in.py).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.errors import GraphoptError, MissingDependency, PassError
from graphopt.manager.base import Pass

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from graphopt import ir
    from graphopt.manager.context import Context


def to_graphsurgeon(model: ir.Model) -> gs.Graph:
    """A gs.Graph of the model. Weights are read when a pass reads `Constant.values`; the model is not changed.

    Raises:
        MissingDependency: onnx-graphsurgeon is not installed.
        GraphoptError: the model has something that graphsurgeon cannot hold; names the node.
    """
    _needs_graphsurgeon()
    from graphopt.interop.graphsurgeon_out import GraphWriter

    return GraphWriter(model).graph()


def from_graphsurgeon(graph: gs.Graph, like: ir.Model | None = None) -> ir.Model:
    """The IR of a gs.Graph: named, sorted and verified as a captured model. Weights that were not read are shared.

    Args:
        graph: tensors are matched by name, as graphsurgeon does.
        like: the model the graph was made from. What graphsurgeon has no place for (metadata, doc strings, types
            that are no plain tensors) is taken from its nodes and values of the same name.

    Raises:
        MissingDependency: onnx-graphsurgeon is not installed.
        GraphoptError: the graph is not valid: names what is wrong and where.
    """
    _needs_graphsurgeon()
    from graphopt.frontends.onnx import prepare
    from graphopt.interop.graphsurgeon_in import GraphReader

    return prepare(GraphReader(graph, like).model(), "the graphsurgeon graph")


@dataclass(frozen=True)
class GraphSurgeonPass(Pass):
    """A pass written on a gs.Graph: implement `transform` and give it a `name`; the rest is as for any pass.

    Whether it changed something is seen by comparing structural hashes. New nodes are stamped with the pass.
    """

    # The graph is swapped as a whole, so no analysis survives.
    needs: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def transform(self, graph: gs.Graph) -> gs.Graph | None:
        """Edit the graph in place, or return another one. Functions of the model must stay as they are.

        The interface must stay too: names, order and types of the graph's inputs and outputs.
        """

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.ir.hash import structural_hash
        from graphopt.ir.sites import count_nodes

        graph = to_graphsurgeon(model)
        functions = _functions(graph)
        returned = self.transform(graph)
        result = graph if returned is None else returned
        try:
            new = from_graphsurgeon(result, like=model)
        except GraphoptError as error:
            raise PassError(f"pass {self.name!r} made a graph that is not valid: {error}") from error
        if structural_hash(new) == structural_hash(model):
            ctx.note("transform changed nothing")
            return
        if _functions(result) != functions:
            raise PassError(f"pass {self.name!r} changed a function; a graphsurgeon pass may change graphs only")
        before = count_nodes(model)
        _stamp(self.name, model, new)
        ctx.rewriter.replace_graph(new)
        ctx.remarks.applied(self.name, "<whole graph>", "", f"{before} nodes became {count_nodes(model)}")


def _needs_graphsurgeon() -> None:
    import importlib.util

    if importlib.util.find_spec("onnx_graphsurgeon") is None:
        raise MissingDependency("working on graphsurgeon graphs", "graphsurgeon")


def _functions(graph: Any) -> list[tuple[str, str, list[tuple[str, tuple[str, ...], tuple[str, ...]]]]]:
    def rows(function: Any) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        return [(n.op, tuple(t.name for t in n.inputs), tuple(t.name for t in n.outputs)) for n in function.nodes]

    return [(function.domain, function.name, rows(function)) for function in graph.functions]


def _stamp(name: str, old: ir.Model, new: ir.Model) -> None:
    """Say on each new node which pass made it and what it stands for: the old makers of its outputs, else all lost."""
    from graphopt.ir.rewriter import PROVENANCE
    from graphopt.ir.sites import scopes

    was = {(scope.path, node.name): node for scope in scopes(old) for node in scope.graph}
    makers = {out.name: str(node.name) for node in was.values() for out in node.outputs if out.name}
    now = {(scope.path, node.name): node for scope in scopes(new) for node in scope.graph}
    gone = [str(site[1]) for site in was if site not in now]
    for site, node in now.items():
        before = was.get(site)
        if before is not None and before.op_type == node.op_type:
            continue
        made = [makers[out.name] for out in node.outputs if out.name in makers]
        node.metadata_props[PROVENANCE] = f"{name}: {','.join((made or gone)[:8])}"[:400]
