"""From IR to onnx-graphsurgeon: one gs object per IR object, weights wrapped so that they are read on demand.

Not here: the way back (graphsurgeon_in.py), passes (graphsurgeon.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util import misc

from graphopt.errors import GraphoptError
from graphopt.ir.constants import nbytes

_PLAIN = ("FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS")


class LazyTensor(LazyValues):  # type: ignore[misc]
    """Weights of the IR behind a gs.Constant. `source` is the IR's own tensor, which the way back uses again."""

    def __init__(self, source: onnx_ir.TensorProtocol) -> None:
        self.source = source
        self.shape = list(source.shape.numpy())
        self.dtype = dtype_of(source.dtype)
        self.nbytes = nbytes(source)

    @property
    def tensor(self) -> onnx.TensorProto:
        """What graphsurgeon's own exporter writes."""
        return onnx_ir.to_proto(self.source)

    def load(self) -> np.ndarray:
        """A copy that may be written to."""
        return np.array(self.source.numpy())


def dtype_of(data_type: onnx_ir.DataType) -> Any:
    """What graphsurgeon calls an element type: a numpy dtype, or ONNX's number where numpy has none."""
    if data_type == onnx_ir.DataType.STRING:
        return np.dtype(object)
    try:
        dtype = np.dtype(data_type.numpy())
    except TypeError:
        return int(data_type)
    return dtype if dtype.name in np.sctypeDict else int(data_type)


class GraphWriter:
    """Makes one gs.Graph of one model."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self.model = model

    def graph(self) -> gs.Graph:
        model = self.model
        functions = [self._function(function) for function in model.functions.values()]
        graph = self._graph(model.graph, {}, model.opset_imports)
        graph.functions = functions
        graph.producer_name = model.producer_name or ""
        graph.producer_version = model.producer_version or ""
        graph.ir_version = model.ir_version
        return graph

    def _graph(self, graph: onnx_ir.Graph, outer: dict[int, gs.Tensor], imports: dict[str, int]) -> gs.Graph:
        tensors = dict(outer)
        inputs, nodes = self._body(graph, tensors, imports)
        return gs.Graph(
            nodes=nodes,
            inputs=inputs,
            outputs=[self._known(value, tensors, "the graph's outputs") for value in graph.outputs],
            name=graph.name,
            doc_string=graph.doc_string,
            opset=imports.get("", 1),
            import_domains=[onnx.helper.make_opsetid(domain, version) for domain, version in imports.items()],
        )

    def _body(
        self, graph: onnx_ir.Graph, tensors: dict[int, gs.Tensor], imports: dict[str, int]
    ) -> tuple[list[gs.Tensor], list[gs.Node]]:
        for value in graph.initializers.values():
            if value.const_value is None:
                raise GraphoptError(f"initializer {value.name!r} has no data")
            tensors[id(value)] = gs.Constant(value.name, LazyTensor(value.const_value))
        for value in graph.inputs:
            tensors.setdefault(id(value), _variable(value))
        for node in graph:
            for value in node.outputs:
                tensors[id(value)] = _variable(value)
        inputs = [tensors[id(value)] for value in graph.inputs]
        return inputs, [self._node(node, tensors, imports) for node in graph]

    def _node(self, node: onnx_ir.Node, tensors: dict[int, gs.Tensor], imports: dict[str, int]) -> gs.Node:
        if node.overload:
            raise GraphoptError(f"node {node.name!r} calls overload {node.overload!r}; graphsurgeon knows no overloads")
        return gs.Node(
            op=node.op_type,
            name=node.name or "",
            attrs={name: self._attribute(attr, tensors, imports) for name, attr in node.attributes.items()},
            inputs=[self._known(value, tensors, f"node {node.name!r}") for value in node.inputs],
            outputs=[tensors[id(value)] if value.name else gs.Variable.empty() for value in node.outputs],
            domain=node.domain or None,
        )

    def _known(self, value: onnx_ir.Value | None, tensors: dict[int, gs.Tensor], where: str) -> gs.Tensor:
        if value is None:
            return gs.Variable.empty()
        if id(value) not in tensors:
            raise GraphoptError(f"{where} uses {value.name!r}, which nothing makes")
        return tensors[id(value)]

    def _attribute(self, attr: onnx_ir.Attr, tensors: dict[int, gs.Tensor], imports: dict[str, int]) -> Any:
        kind = attr.type.name
        if attr.is_ref():
            return gs.Node.AttributeRef(attr.ref_attr_name, misc.convert_from_onnx_attr_type(int(attr.type)))
        if kind in _PLAIN:
            return list(attr.value) if isinstance(attr.value, list | tuple) else attr.value
        if kind == "TENSOR":
            return gs.Constant(attr.as_tensor().name or "", LazyTensor(attr.as_tensor()))
        if kind == "GRAPH":
            return self._graph(attr.as_graph(), tensors, imports)
        if kind == "GRAPHS":
            raise GraphoptError(f"attribute {attr.name!r} is a list of graphs, which graphsurgeon cannot hold")
        return attr  # graphsurgeon leaves values that it does not know alone

    def _function(self, function: onnx_ir.Function) -> gs.Function:
        if function.overload:
            raise GraphoptError(f"function {function.name!r} has overloads; graphsurgeon knows none")
        tensors: dict[int, gs.Tensor] = {}
        inputs, nodes = self._body(function.graph, tensors, function.opset_imports)
        defaults = {
            name: None if attr.value is None else self._attribute(attr, tensors, function.opset_imports)
            for name, attr in function.attributes.items()
        }
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in function.opset_imports.items()]
        return gs.Function(
            function.name,
            function.domain,
            nodes=nodes,
            inputs=inputs,
            outputs=[self._known(value, tensors, f"function {function.name!r}") for value in function.outputs],
            doc_string=function.doc_string,
            opset=function.opset_imports.get("", 1),
            import_domains=imports,
            attrs=defaults,
        )


def _variable(value: onnx_ir.Value) -> gs.Variable:
    kind, shape = value.type, None
    if value.shape is not None:
        shape = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    dtype = None if value.dtype is None else dtype_of(value.dtype)
    name = {"SequenceType": "sequence_type", "OptionalType": "optional_type", "SparseTensorType": "sparse_tensor_type"}
    return gs.Variable(value.name or "", dtype, shape, name.get(type(kind).__name__, "tensor_type"))
