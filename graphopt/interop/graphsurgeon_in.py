"""From onnx-graphsurgeon to IR: tensors become values by name, scope by scope, as ONNX itself resolves names.

Not here: the way out (graphsurgeon_out.py), passes (graphsurgeon.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnx_ir
from onnx_graphsurgeon.util import misc

from graphopt.errors import GraphoptError
from graphopt.interop.graphsurgeon_out import LazyTensor
from graphopt.ir import optable, sites

_IR_VERSION = 10
_Names = dict[str, onnx_ir.Value]


class GraphReader:
    """Makes one model of one gs.Graph; `like` lends what graphsurgeon cannot hold."""

    def __init__(self, graph: gs.Graph, like: onnx_ir.Model | None) -> None:
        self.source = graph
        self.like = like
        self._values: dict[tuple[str, str], onnx_ir.Value] = {}
        self._nodes: dict[tuple[str, str], onnx_ir.Node] = {}
        for scope in sites.scopes(like) if like is not None else ():
            made = (value for node in scope.graph for value in node.outputs)
            for value in (*scope.graph.inputs, *made):
                self._values[scope.path, value.name or ""] = value
            for node in scope.graph:
                self._nodes[scope.path, node.name or ""] = node
        self._owner = _owners(graph)

    def model(self) -> onnx_ir.Model:
        graph, like = self.source, self.like
        imports = _imports(graph)
        functions = [self._function(function) for function in graph.functions]
        main = self._graph(graph, {}, "", imports)
        if like is not None:
            main.metadata_props.update(like.graph.metadata_props)
        return onnx_ir.Model(
            main,
            ir_version=graph.ir_version or _IR_VERSION,
            producer_name=graph.producer_name,
            producer_version=graph.producer_version,
            domain=like.domain if like is not None else None,
            model_version=like.model_version if like is not None else None,
            doc_string=like.doc_string if like is not None else None,
            functions=functions,
            metadata_props=dict(like.metadata_props) if like is not None else None,
        )

    def _graph(self, graph: gs.Graph, outer: _Names, path: str, imports: dict[str, int] | None) -> onnx_ir.Graph:
        names = dict(outer)
        own: set[str] = set()
        constants = []
        for tensor in self._owner.get(id(graph), {}).values():
            value = _initializer(tensor)
            self._define(tensor.name, value, names, own, path)
            constants.append(value)
        inputs = []
        for tensor in graph.inputs:
            if not isinstance(tensor, gs.Constant):
                self._define(tensor.name, self._value(tensor, path), names, own, path)
            inputs.append(names[tensor.name])
        nodes = self._nodes_of(graph, names, own, path, imports)
        outputs = self._outputs(graph, names, f"the outputs of graph {path or 'main'!r}")
        made = onnx_ir.Graph(
            inputs, outputs, nodes=nodes, initializers=constants, doc_string=graph.doc_string or None, name=graph.name
        )  # fmt: skip
        made.opset_imports.update(imports or {})
        return made

    def _nodes_of(
        self, graph: gs.Graph, names: _Names, own: set[str], path: str, imports: dict[str, int] | None
    ) -> list[onnx_ir.Node]:
        # Values first: nodes may stand in any order, and bodies may capture what is made further down.
        for node in graph.nodes:
            for tensor in node.outputs:
                if tensor.name:
                    self._define(tensor.name, self._value(tensor, path), names, own, path)
        return [self._node(node, names, path, imports) for node in graph.nodes]

    def _define(self, name: str, value: onnx_ir.Value, names: _Names, own: set[str], path: str) -> None:
        if name in own:
            raise GraphoptError(f"two things in graph {path or 'main'!r} make tensor {name!r}; names must be unique")
        own.add(name)
        names[name] = value

    def _node(self, node: gs.Node, names: _Names, path: str, imports: dict[str, int] | None) -> onnx_ir.Node:
        where = f"{node.op} {node.name!r}"
        site = f"{path}/{node.name}".lstrip("/")
        before = self._nodes.get((path, node.name))
        version = (imports or _imports(self.source)).get(node.domain or "", 1)
        schema = optable.schema(node.domain or "", node.op, version)
        attributes = []
        for key, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                graph = self._graph(value, names, f"{site}.{key}", None)
                attributes.append(onnx_ir.Attr(key, onnx_ir.AttributeType.GRAPH, graph))
            else:
                kind = schema.attributes.get(key) if schema is not None else None
                attributes.append(_attribute(key, value, kind, where))
        inputs = [self._use(tensor, names, where) for tensor in node.inputs]
        outputs = [names[tensor.name] if tensor.name else onnx_ir.Value(name="") for tensor in node.outputs]
        made = onnx_ir.Node(node.domain or "", node.op, inputs, attributes, outputs=outputs, name=node.name or None)
        if before is not None and before.op_type == node.op:
            made.metadata_props.update(before.metadata_props)
            made.doc_string = before.doc_string
        return made

    def _use(self, tensor: gs.Tensor, names: _Names, where: str) -> onnx_ir.Value | None:
        if not tensor.name:
            return None
        if tensor.name not in names:
            raise GraphoptError(
                f"{where} uses tensor {tensor.name!r}, which no node of the graph makes and is no input"
            )
        return names[tensor.name]

    def _outputs(self, graph: gs.Graph, names: _Names, where: str) -> list[onnx_ir.Value]:
        used = [self._use(tensor, names, where) for tensor in graph.outputs]
        if None in used:
            raise GraphoptError(f"one of {where} has no name")
        return [value for value in used if value is not None]

    def _value(self, tensor: gs.Variable, path: str) -> onnx_ir.Value:
        value = onnx_ir.Value(name=tensor.name)
        before = self._values.get((path, tensor.name))
        if tensor.shape is not None:
            dims = [None if dim == gs.Tensor.DYNAMIC else dim for dim in tensor.shape]
            value.shape = onnx_ir.Shape(dims)
        if tensor.dtype is not None:
            element = onnx_ir.TensorType(_data_type(tensor.dtype, tensor.name))
            value.type = element if tensor.type == "tensor_type" else _wrapped(element, tensor.type)
            if before is not None and before.type is not None and before.dtype == element.dtype:
                value.type = before.type
        if before is not None:
            value.metadata_props.update(before.metadata_props)
            value.doc_string = before.doc_string
        return value

    def _function(self, function: gs.Function) -> onnx_ir.Function:
        path = f"{function.domain}::{function.name}"
        names: _Names = {}
        own: set[str] = set()
        inputs = []
        for tensor in function.inputs:
            self._define(tensor.name, self._value(tensor, path), names, own, path)
            inputs.append(names[tensor.name])
        constants = []
        for tensor in self._owner.get(id(function), {}).values():  # functions have no initializers
            attr = onnx_ir.Attr("value", onnx_ir.AttributeType.TENSOR, _tensor(tensor))
            value = _initializer(tensor)
            value.const_value = None
            self._define(tensor.name, value, names, own, path)
            constants.append(onnx_ir.Node("", "Constant", [], [attr], outputs=[value]))
        imports = _imports(function)
        nodes = [*constants, *self._nodes_of(function, names, own, path, imports)]
        outputs = self._outputs(function, names, f"the outputs of function {function.name!r}")
        graph = onnx_ir.Graph(inputs, outputs, nodes=nodes, name=function.name, doc_string=function.doc_string or None)
        graph.opset_imports.update(imports)
        attributes = [
            onnx_ir.Attr(key, onnx_ir.AttributeType.UNDEFINED, None)
            if value is None
            else _attribute(key, value, None, f"function {function.name!r}")
            for key, value in function.attrs.items()
        ]
        return onnx_ir.Function(function.domain or "", function.name, graph=graph, attributes=attributes)


def _owners(graph: gs.Graph) -> dict[int, dict[str, gs.Constant]]:
    """For each graph, the constants to register there: where they are used, or in the nearest graph around all uses."""
    uses: dict[int, tuple[gs.Constant, list[list[gs.Graph]]]] = {}
    for top in (graph, *graph.functions):
        for trail in _graphs(top, []):
            for tensor in _tensors(trail[-1]):
                if isinstance(tensor, gs.Constant):
                    uses.setdefault(id(tensor), (tensor, []))[1].append(trail)
    owners: dict[int, dict[str, gs.Constant]] = {}
    for tensor, trails in uses.values():
        shared = 0
        while all(len(trail) > shared and trail[shared] is trails[0][shared] for trail in trails):
            shared += 1
        table = owners.setdefault(id(trails[0][max(shared - 1, 0)]), {})
        other = table.setdefault(tensor.name, tensor)
        if (
            other is not tensor
            and other._values is not tensor._values
            and not np.array_equal(other.values, tensor.values)
        ):
            raise GraphoptError(f"two different constants are called {tensor.name!r}; names must be unique")
    return owners


def _graphs(graph: gs.Graph, above: list[gs.Graph]) -> Iterator[list[gs.Graph]]:
    """Each graph as the list of graphs around it, itself last."""
    trail = [*above, graph]
    yield trail
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _graphs(value, trail)


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.inputs
    yield from graph.outputs


def _imports(graph: gs.Graph) -> dict[str, int]:
    found = {item.domain: item.version for item in graph.import_domains or ()}
    found[""] = graph.opset
    for trail in _graphs(graph, []):
        for node in trail[-1].nodes:
            found.setdefault(node.domain or "", 1)
    return found


def _initializer(tensor: gs.Constant) -> onnx_ir.Value:
    data = _tensor(tensor)
    return onnx_ir.Value(
        name=tensor.name, const_value=data, shape=onnx_ir.Shape(data.shape.numpy()), type=onnx_ir.TensorType(data.dtype)
    )


def _tensor(tensor: gs.Constant) -> onnx_ir.TensorProtocol:
    if isinstance(tensor._values, LazyTensor):
        return tensor._values.source
    values = tensor.values
    wanted = _data_type(tensor.export_dtype, tensor.name)
    if values.dtype.kind in "OUS":
        items = [item if isinstance(item, bytes) else str(item).encode() for item in values.reshape(-1)]
        return onnx_ir.StringTensor(items, shape=onnx_ir.Shape(values.shape), name=tensor.name)
    return onnx_ir.tensor(np.ascontiguousarray(values).reshape(values.shape), dtype=wanted, name=tensor.name)


def _data_type(dtype: Any, name: str) -> onnx_ir.DataType:
    if isinstance(dtype, int):
        return onnx_ir.DataType(dtype)
    if np.dtype(dtype).kind in "OUS":
        return onnx_ir.DataType.STRING
    try:
        return onnx_ir.DataType.from_numpy(np.dtype(dtype))
    except TypeError:
        raise GraphoptError(f"tensor {name!r} has element type {dtype}, which ONNX does not have") from None


def _wrapped(element: onnx_ir.TensorType, kind: str) -> Any:
    if kind == "sequence_type":
        return onnx_ir.SequenceType(element)
    if kind == "optional_type":
        return onnx_ir.OptionalType(element)
    return onnx_ir.SparseTensorType(element.dtype)


def _attribute(key: str, value: Any, kind: str | None, where: str) -> onnx_ir.Attr:
    """An attribute of the type that the op's schema says, else of the type of its value."""
    if isinstance(value, onnx_ir.Attr):
        return value
    if isinstance(value, gs.Node.AttributeRef):
        return onnx_ir.RefAttr(key, value.name, onnx_ir.AttributeType(misc.convert_to_onnx_attr_type(value.type)))
    if isinstance(value, gs.Constant):
        return onnx_ir.Attr(key, onnx_ir.AttributeType.TENSOR, _tensor(value))
    if isinstance(value, type | np.dtype):
        value = int(_data_type(value, where))
    if isinstance(value, np.ndarray) and kind in (None, "TENSOR"):
        return onnx_ir.Attr(key, onnx_ir.AttributeType.TENSOR, onnx_ir.tensor(value))
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    wanted = kind or _guess(plain)
    convert: dict[str, Any] = {
        "FLOAT": float,
        "INT": int,
        "STRING": _string,
        "FLOATS": lambda items: [float(item) for item in items],
        "INTS": lambda items: [int(item) for item in items],
        "STRINGS": lambda items: [_string(item) for item in items],
    }
    if wanted not in convert:
        raise GraphoptError(f"{where}: attribute {key}={value!r} is no value that ONNX can hold")
    try:
        return onnx_ir.Attr(key, onnx_ir.AttributeType[wanted], convert[wanted](plain))
    except (TypeError, ValueError):
        raise GraphoptError(f"{where}: attribute {key}={value!r} is not of type {wanted}") from None


def _guess(value: Any) -> str:
    if isinstance(value, list | tuple):
        if any(isinstance(item, float) for item in value):
            return "FLOATS"
        return "STRINGS" if any(isinstance(item, str | bytes) for item in value) else "INTS"
    if isinstance(value, str | bytes):
        return "STRING"
    if isinstance(value, float):
        return "FLOAT"
    return "INT" if isinstance(value, int) else "UNKNOWN"


def _string(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(value)
    return value
