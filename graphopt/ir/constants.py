"""Reading constants: which values are constant, and their contents under a size limit.

A graph input with an initializer is a default that the caller may override, so it is no constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir

MAX_BYTES = 256 << 20
"""Nothing generic reads a tensor larger than this (bytes)."""


def const_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a value when it is an initializer (not an input) or a Constant node's output."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        if value.is_initializer() and not value.is_graph_input():
            return value.const_value
        return None
    if producer.op_type != "Constant" or producer.domain != "":
        return None
    return _constant_node_tensor(producer)


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    from graphopt import ir

    for name, attr in node.attributes.items():
        if attr.is_ref():
            return None
        if name == "value":
            return attr.value  # as_tensor() checks a runtime protocol, which is slow
        if name == "value_int":
            return ir.tensor(attr.as_int(), dtype=ir.DataType.INT64)
        if name == "value_float":
            return ir.tensor(attr.as_float(), dtype=ir.DataType.FLOAT)
        if name == "value_ints":
            return ir.tensor(list(attr.as_ints()), dtype=ir.DataType.INT64)
        if name == "value_floats":
            return ir.tensor(list(attr.as_floats()), dtype=ir.DataType.FLOAT)
        if name in ("value_string", "value_strings"):
            texts = [attr.as_string()] if name == "value_string" else list(attr.as_strings())
            shape = ir.Shape([] if name == "value_string" else [len(texts)])
            return ir.StringTensor([text.encode() for text in texts], shape=shape)
    return None


def is_const(value: ir.Value | None) -> bool:
    return const_tensor(value) is not None


def nbytes(tensor: ir.TensorProtocol) -> int:
    """Size of a tensor's data in bytes, without reading it (strings count 8 bytes each)."""
    from graphopt import ir

    if tensor.dtype == ir.DataType.STRING:
        return 8 * math.prod(tensor.shape.numpy())
    return tensor.nbytes


def const_array(value: ir.Value | None, max_bytes: int = MAX_BYTES) -> np.ndarray | None:
    """The constant's contents, or None when the value is not constant or larger than `max_bytes`."""
    tensor = const_tensor(value)
    if tensor is None or nbytes(tensor) > max_bytes:
        return None
    return tensor.numpy()


def const_scalar(value: ir.Value | None) -> float | int | bool | None:
    """The single element of a one-element numeric constant of any rank, else None."""
    tensor = const_tensor(value)
    if tensor is None or math.prod(tensor.shape.numpy()) != 1:
        return None
    from graphopt import ir

    if tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy().reshape(-1)[0].item()


def model_bytes(model: ir.Model) -> int:
    """Bytes of all initializers and Constant nodes, without reading them."""
    from graphopt.ir.sites import scopes

    graphs = [scope.graph for scope in scopes(model)]
    nodes = (node for graph in graphs for node in graph if node.op_type == "Constant" and node.domain == "")
    return held_bytes(graphs, nodes)


def held_bytes(graphs: Iterable[ir.Graph], constants: Iterable[ir.Node]) -> int:
    """Bytes of the initializers of these graphs and of these Constant nodes, without reading them."""
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    tensors += [const_tensor(node.outputs[0]) for node in constants]
    return sum(nbytes(tensor) for tensor in tensors if tensor is not None)
