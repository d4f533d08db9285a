"""The interface in half precision: inputs and outputs of the model change their type, under the same names.

    retype(graph, {"x", "y"}, ir.DataType.FLOAT16, fresh)

Not here: which of them (_half_plan.py), and the nodes between them (_half_rewrite.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from graphopt.passes.quantize._half_plan import READERS

if TYPE_CHECKING:
    from graphopt import ir

    Fresh = Callable[[str], str]


def retype(graph: ir.Graph, names: Collection[str], dtype: ir.DataType, fresh: Fresh) -> None:
    """Give the named inputs and outputs the type; Casts that this makes needless are gone."""
    for index, value in enumerate(graph.inputs):
        if value.name in names:
            _retype_input(graph, index, dtype, fresh)
    for index, value in enumerate(graph.outputs):
        if value.name in names:
            _retype_output(graph, index, dtype, fresh)


def _retype_input(graph: ir.Graph, index: int, dtype: ir.DataType, fresh: Fresh) -> None:
    from graphopt import ir

    old, name = graph.inputs[index], str(graph.inputs[index].name)
    half = ir.Value(name=name, type=ir.TensorType(dtype), shape=old.shape)
    old.name = fresh(f"{name}_float")
    graph.inputs[index] = half
    wide = _cast(half, ir.DataType.FLOAT, fresh)
    for use in list(old.uses()):
        node = use.node
        if _casts_to(node, dtype) and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(half)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        else:
            reads = node.op_type in READERS and node.domain == ""
            node.replace_input_with(use.idx, half if reads else wide.outputs[0])
    if wide.outputs[0].uses():
        graph.insert_before(graph[0], wide)


def _retype_output(graph: ir.Graph, index: int, dtype: ir.DataType, fresh: Fresh) -> None:
    from graphopt import ir

    old, name = graph.outputs[index], str(graph.outputs[index].name)
    maker = old.producer()
    old.name = fresh(f"{name}_float")
    if maker is not None and _casts_to(maker, ir.DataType.FLOAT):
        half = maker.inputs[0]
        made_here = half is not None and half.producer() is not None and half.graph is graph
        if half is not None and made_here and not half.is_graph_output() and half.dtype == dtype:
            half.name = name
            graph.outputs[index] = half
            if not old.uses() and not old.is_graph_output():
                graph.remove(maker, safe=True)
            return
    cast = _cast(old, dtype, fresh)
    cast.outputs[0].name = name
    graph.outputs[index] = cast.outputs[0]
    graph.append(cast)


def _cast(value: ir.Value, dtype: ir.DataType, fresh: Fresh) -> ir.Node:
    from graphopt import ir

    node = ir.node("Cast", [value], {"to": dtype.value}, name=fresh(f"{value.name}_Cast"))
    node.outputs[0].name = fresh(f"{value.name}_cast")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node


def _casts_to(node: ir.Node, dtype: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.domain == "" and node.outputs[0].dtype == dtype
