"""Structural hash and equality of models: what they compute, not what their inner values are called.

`fingerprint` is the cheap in-memory cousin: it tells whether anything was mutated since it was taken.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

from graphopt.ir import sites

if TYPE_CHECKING:
    from graphopt import ir

_CHUNK = 16 << 20


def fingerprint(model: ir.Model) -> int:
    """A number that changes when nodes, edges, attributes, initializers or the interface are mutated (by identity)."""
    parts: list[Any] = [model.ir_version, tuple(sorted(model.opset_imports.items()))]
    parts.extend(str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs))
    for scope in sites.scopes(model):
        graph = scope.graph
        parts.append((tuple(map(id, graph.inputs)), tuple(map(id, graph.outputs))))
        parts.append(tuple((name, id(v), id(v.const_value)) for name, v in graph.initializers.items()))
        for node in graph:
            attrs = tuple(id(a) for a in node.attributes.values()) if node.attributes else ()
            parts.append((id(node), node.op_type, tuple(map(id, node.inputs)), attrs, len(node.metadata_props)))
    return hash(tuple(parts))


def structural_hash(model: ir.Model) -> str:
    """SHA-256 over ops, attributes, edges, weights and the interface. Inner names, docs and metadata do not count.

    Returns:
        64 hex digits. Weights are read in pieces, so a memory-mapped model stays mapped.
    """
    digest = hashlib.sha256()
    digest.update(repr(sorted(model.opset_imports.items())).encode())
    _hash_graph(digest, model.graph, {}, "main")
    for key in sorted(model.functions):
        function = model.functions[key]
        digest.update(repr((key, sorted(function.opset_imports.items()))).encode())
        for name in sorted(function.attributes):
            _hash_attr(digest, function.attributes[name], {})
        _hash_graph(digest, function.graph, {}, "function")
    return digest.hexdigest()


def equal(a: ir.Model, b: ir.Model) -> bool:
    """True when both models are the same up to inner names, docs and metadata."""
    return structural_hash(a) == structural_hash(b)


def _hash_graph(
    digest: Any, graph: ir.Graph, outer: dict[int, str], kind: Literal["main", "inner", "function"]
) -> None:
    label = dict(outer)
    depth = len(outer)
    for index, value in enumerate(graph.inputs):
        label[id(value)] = f"i{depth}.{index}"
        default = tensor_digest(value.const_value) if value.is_initializer() and value.const_value is not None else ""
        digest.update(f"in {_signature(value, kind)} {default};".encode())
    for index, node in enumerate(graph):
        operands = [_operand(digest, value, label) for value in node.inputs]
        digest.update(f"{node.domain}::{node.op_type}:{node.overload} {operands} -> {len(node.outputs)};".encode())
        for name in sorted(node.attributes):
            _hash_attr(digest, node.attributes[name], label)
        for slot, output in enumerate(node.outputs):
            label[id(output)] = f"n{depth}.{index}.{slot}"
    for value in graph.outputs:
        ref = _operand(digest, value, label)
        digest.update(f"out {ref} {_signature(value, kind)};".encode())


def _signature(value: ir.Value, kind: str) -> str:
    """What a graph declares of an input or output; a function declares no types, what stands there was inferred."""
    return "" if kind == "function" else f"{value.name if kind == 'main' else ''} {value.type} {value.shape}"


def _operand(digest: Any, value: ir.Value | None, label: dict[int, str]) -> str:
    if value is None:
        return "-"
    known = label.get(id(value))
    if known is None:
        known = label[id(value)] = (
            f"c:{tensor_digest(value.const_value)}" if value.const_value is not None else f"?{value.name}"
        )
    return known


def _hash_attr(digest: Any, attr: ir.Attr, label: dict[int, str]) -> None:
    import numpy as np

    from graphopt import ir

    digest.update(f"@{attr.name}:{attr.type.name}".encode())
    if attr.is_ref():
        digest.update(f"ref {attr.ref_attr_name}".encode())
    elif attr.type == ir.AttributeType.GRAPH:
        _hash_graph(digest, attr.as_graph(), label, "inner")
    elif attr.type == ir.AttributeType.GRAPHS:
        for graph in attr.as_graphs():
            _hash_graph(digest, graph, label, "inner")
    elif attr.type == ir.AttributeType.TENSOR:
        digest.update(tensor_digest(attr.as_tensor()).encode())
    elif attr.type == ir.AttributeType.TENSORS:
        for tensor in attr.as_tensors():
            digest.update(tensor_digest(tensor).encode())
    elif attr.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        # A file holds single precision, so that is all that counts.
        items = [attr.value] if attr.type == ir.AttributeType.FLOAT else list(attr.value)
        digest.update(np.asarray(items, dtype=np.float64).astype(np.float32).tobytes())
    else:
        digest.update(repr(attr.value).encode())


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of dtype, shape and contents (64 hex digits), read in pieces of 16 MiB."""
    from graphopt import ir

    digest = hashlib.sha256(f"{tensor.dtype.name}{list(tensor.shape.numpy())}".encode())
    if tensor.dtype == ir.DataType.STRING:
        for item in tensor.numpy().reshape(-1).tolist():
            raw = item if isinstance(item, bytes) else str(item).encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()
    array = tensor.numpy()
    if array.nbytes <= _CHUNK or tensor.dtype.bitwidth < 8:
        digest.update(tensor.tobytes())
        return digest.hexdigest()
    flat = array.reshape(-1)
    step = max(1, _CHUNK // array.itemsize)
    for start in range(0, flat.size, step):
        digest.update(flat[start : start + step].tobytes())
    return digest.hexdigest()
