"""Tensors of a file that is not trusted: do type, dims and data fit together, before anything reads them?

Lives here: initializers and attributes of all graphs and functions. Not here: external files (external.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.frontends.external import check_entries
from graphopt.ir.attrtypes import GRAPH, GRAPHS, TENSOR, TENSORS

_EXTERNAL = 1
_STRING = 8
# The field that holds elements which are not raw, and how many of its items one element takes.
_FIELDS = {1: ("float_data", 1), 7: ("int64_data", 1), 8: ("string_data", 1), 11: ("double_data", 1)} | {
    12: ("uint64_data", 1),
    13: ("uint64_data", 1),
    14: ("float_data", 2),
    15: ("double_data", 2),
}


def check_tensors(proto: Any, path: object) -> None:
    """Check every tensor of a ModelProto.

    Raises:
        GraphoptError: an initializer that is there twice, unknown element type, a negative dimension, a size beyond 64
            bits, more or fewer data than declared, or what `check_entries` refuses.
    """
    for owner, tensor in _tensors(proto, path):
        _check(tensor, f"{path}: {owner}")


def _tensors(proto: Any, path: object) -> Iterator[tuple[str, Any]]:
    stack: list[tuple[Iterable[Any], Iterable[Any]]] = [(proto.graph.initializer, proto.graph.node)]
    stack += [((), function.node) for function in proto.functions]
    while stack:
        initializers, nodes = stack.pop()
        names: set[str] = set()
        for tensor in initializers:
            if tensor.name in names:
                raise GraphoptError(f"{path}: initializer {tensor.name!r} is there twice in one graph")
            names.add(tensor.name)
            yield f"initializer {tensor.name!r}", tensor
        for node in nodes:
            for attr in node.attribute:
                if attr.type in (TENSOR, TENSORS):
                    found = [attr.t] if attr.type == TENSOR and attr.HasField("t") else attr.tensors
                    for tensor in found:
                        yield f"attribute {attr.name!r} of {node.op_type} node {node.name!r}", tensor
                elif attr.type in (GRAPH, GRAPHS):
                    for graph in [attr.g] if attr.type == GRAPH else attr.graphs:
                        stack.append((graph.initializer, graph.node))


def _check(tensor: Any, what: str) -> None:
    from graphopt import ir

    if any(dim < 0 for dim in tensor.dims):
        raise GraphoptError(f"{what} has a negative dimension")
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = 64 if tensor.data_type == _STRING else dtype.bitwidth
    except (ValueError, KeyError, TypeError):
        raise GraphoptError(f"{what} has an unknown element type {tensor.data_type}") from None
    if math.prod(dim for dim in tensor.dims if dim) * bits >= 1 << 66:
        raise GraphoptError(f"{what} has dims {list(tensor.dims)}: more bytes than 64 bits can count")
    if tensor.data_location == _EXTERNAL:
        check_entries(tensor, what)
        return
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        wanted, there, unit = (count * bits + 7) // 8, len(tensor.raw_data), "bytes"
    else:
        name, per_element = _FIELDS.get(tensor.data_type, ("int32_data", 1))
        wanted, there, unit = count * per_element, len(getattr(tensor, name)), "elements"
        if bits < 8:  # several stand in one item
            wanted = (count * bits + 7) // 8
    if wanted != there:
        raise GraphoptError(f"{what} declares {wanted} {unit} and holds {there}")
