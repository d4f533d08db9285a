"""What a ModelProto must fulfil that its IR can no longer tell: versions, types of inputs, functions.

Not here: tensors (tensors.py), what the IR does show (graphopt/ir/verifier.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from graphopt.errors import GraphoptError

Name = tuple[str, str, str]


def check_structure(proto: Any, path: object) -> None:
    """Check a ModelProto.

    Raises:
        GraphoptError: the IR version is missing or not known, an input has no type, or a function is there twice or
            calls itself.
    """
    import onnx

    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        there = f"IR version {proto.ir_version}" if proto.ir_version else "has no IR version"
        raise GraphoptError(f"{path}: {there}; known are 1 to {onnx.IR_VERSION}")
    for value in proto.graph.input:
        kind = value.type.WhichOneof("value") if value.HasField("type") else None
        if kind is None or (kind == "tensor_type" and not value.type.tensor_type.elem_type):
            raise GraphoptError(f"{path}: input {value.name!r} has no {'element ' if kind else ''}type")
    if proto.functions:
        _check_functions(proto.functions, path)


def _check_functions(functions: Iterable[Any], path: object) -> None:
    calls: dict[Name, set[Name]] = {}
    for function in functions:
        name = (function.domain, function.name, function.overload)
        if name in calls:
            raise GraphoptError(f"{path}: function {_text(name)} is defined twice")
        calls[name] = {(node.domain, node.op_type, node.overload) for node in _nodes(function.node)}
    try:
        TopologicalSorter({name: used & calls.keys() for name, used in calls.items()}).prepare()
    except CycleError as error:
        cycle = " -> ".join(map(_text, reversed(error.args[1])))
        raise GraphoptError(f"{path}: a function calls itself ({cycle}), which ONNX has no meaning for") from None


def _nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    stack = [nodes]
    while stack:
        for node in stack.pop():
            yield node
            for attr in node.attribute:
                stack += [graph.node for graph in ([attr.g] if attr.HasField("g") else attr.graphs)]


def _text(name: Name) -> str:
    return "::".join(part for part in name if part)
