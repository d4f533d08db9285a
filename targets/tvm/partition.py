"""Splits a model between TVM and ONNX Runtime: convex parts, as few as the alternation of the two allows.

    parts = partition(model, refused)      # refused: nodes that TVM does not take

Parts are levels: a node's level is the largest of its operands' levels, plus one where the runtime changes. Edges never
go to a lower level, so no path leaves a part and comes back. Of the earliest and the latest such levels, the one whose
values between parts are fewer bytes is taken. A constant that is an output belongs to no level: a part of ONNX Runtime
has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from graphopt.ir.constants import is_const
from graphopt.ir.sites import subgraphs

if TYPE_CHECKING:
    import networkx

    from graphopt import ir
    from graphopt.analysis.shapes import Shapes

Runtime = Literal["tvm", "onnxruntime"]

PAYS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Einsum", "MatMulInteger",
                  "ConvInteger", "QLinearConv", "QLinearMatMul"})  # fmt: skip
"""Ops whose time is worth a boundary; a part without any goes to ONNX Runtime unless it is large."""
LARGE = 16
"""Nodes from which on a part stays without such an op."""


@dataclass(frozen=True)
class Piece:
    """Nodes of one runtime with the values that they read from outside and that are read outside, in order."""

    runtime: Runtime
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def one_piece(model: ir.Model) -> Piece:
    """All of a model as one part, for TVM."""
    nodes = tuple(node for node in model.graph if not _is_constant(node))
    return Piece("tvm", nodes, tuple(model.graph.inputs), tuple(model.graph.outputs))


def partition(model: ir.Model, shapes: Shapes, refused: Iterable[ir.Node]) -> list[Piece]:
    """The parts in the order in which they run; none where the model has neither nodes nor constants as outputs."""
    nodes = [node for node in model.graph if not _is_constant(node)]
    graph = dependencies(nodes)
    theirs = set(refused)
    runtime: dict[ir.Node, Runtime] = {node: "onnxruntime" if node in theirs else "tvm" for node in nodes}
    while True:
        choices = [_pieces(model, nodes, runtime, _levels(graph, runtime, late)) for late in (False, True)]
        pieces = min(choices, key=lambda found: (len(found), boundary_bytes(found, shapes) or 0))
        poor = [piece for piece in pieces if piece.runtime == "tvm" and len(pieces) > 1 and not _pays(piece)]
        if not poor:
            return _with_constants(pieces, model)
        runtime.update(dict.fromkeys(min(poor, key=lambda piece: len(piece.nodes)).nodes, "onnxruntime"))


def dependencies(nodes: Iterable[ir.Node]) -> networkx.DiGraph:
    """An edge from each node to those that read its outputs, also from within their subgraphs."""
    import networkx

    graph: networkx.DiGraph = networkx.DiGraph()
    graph.add_nodes_from(nodes)
    for node in list(graph):
        for value in reads(node):
            producer = value.producer()
            if producer is not None and producer in graph:
                graph.add_edge(producer, node)
    return graph


def reads(node: ir.Node) -> list[ir.Value]:
    """Values that a node reads, itself or in its subgraphs from outside of them; constants left out."""
    found = dict.fromkeys(value for value in node.inputs if value is not None and not is_const(value))
    for _, body in subgraphs(node):
        made = {out for inner in body.all_nodes() for out in inner.outputs}
        for inner in body.all_nodes():
            found.update(dict.fromkeys(v for v in inner.inputs if v is not None and v not in made and not is_const(v)))
        found.update(dict.fromkeys(v for v in body.outputs if v not in made and not is_const(v)))
        for value in body.inputs:
            found.pop(value, None)
    return list(found)


def boundary_bytes(pieces: Iterable[Piece], shapes: Shapes) -> int | None:
    """Bytes that one run hands from part to part; None when a size is not known."""
    pieces = list(pieces)
    made = {value for piece in pieces for value in piece.outputs}
    total = 0
    for piece in pieces:
        for value in piece.inputs:
            if value not in made or value.is_graph_input():
                continue
            static = shapes.static(value)
            if static is None or value.dtype is None or value.dtype.name == "STRING":
                return None
            total += math.ceil(math.prod(static) * value.dtype.bitwidth / 8)
    return total


def _levels(graph: networkx.DiGraph, runtime: Mapping[ir.Node, Runtime], late: bool) -> dict[ir.Node, int]:
    """Levels whose parity is the runtime: even for TVM. `late` puts nodes as late as the number of levels allows."""
    import networkx

    order = list(networkx.topological_sort(graph))
    parity = {node: 0 if runtime[node] == "tvm" else 1 for node in order}
    level: dict[ir.Node, int] = {}
    for node in order:
        least = max((level[before] for before in graph.predecessors(node)), default=0)
        level[node] = least if least % 2 == parity[node] else least + 1
    if not late:
        return level
    top = max(level.values(), default=0)
    for node in reversed(order):
        most = min((level[after] for after in graph.successors(node)), default=top)
        level[node] = most if most % 2 == parity[node] else most - 1
    return level


def _pieces(
    model: ir.Model, nodes: list[ir.Node], runtime: Mapping[ir.Node, Runtime], level: Mapping[ir.Node, int]
) -> list[Piece]:
    by_level: dict[int, list[ir.Node]] = {}
    for node in nodes:
        by_level.setdefault(level[node], []).append(node)
    wanted = set(model.graph.outputs)
    readers: dict[ir.Value, set[int]] = {}
    for node in nodes:
        for value in reads(node):
            readers.setdefault(value, set()).add(level[node])
    pieces = []
    for number, members in sorted(by_level.items()):
        made = [out for node in members for out in node.outputs if out.name]
        inner = set(made)
        inputs = dict.fromkeys(value for node in members for value in reads(node) if value not in inner)
        outputs = [out for out in made if out in wanted or readers.get(out, set()) - {number}]
        pieces.append(Piece(runtime[members[0]], tuple(members), tuple(inputs), tuple(outputs)))
    return pieces


def _with_constants(pieces: list[Piece], model: ir.Model) -> list[Piece]:
    """The parts, one of which has the outputs that are constants. ONNX Runtime's do: they hold any type."""
    constants = tuple(dict.fromkeys(value for value in model.graph.outputs if is_const(value)))
    if not constants:
        return pieces
    for index, piece in enumerate(pieces):
        if piece.runtime == "onnxruntime":
            return [*pieces[:index], replace(piece, outputs=(*piece.outputs, *constants)), *pieces[index + 1 :]]
    return [*pieces, Piece("onnxruntime", (), (), constants)]


def _pays(piece: Piece) -> bool:
    return len(piece.nodes) >= LARGE or any(node.op_type in PAYS for node in piece.nodes)


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")
