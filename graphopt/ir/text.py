"""The text form: ONNX's own text with big weights shown as dtype, shape and hash, and back again for tests.

`from_text` reads ONNX text; initializers that are declared without data get values seeded by their name.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.ir import sites

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir

_SHOWN = 16
"""Weights with more elements print as dtype, shape and hash."""


def to_text(model: ir.Model) -> str:
    """Print a model: one line per node, scopes indented; made for reading and for diffs, not for reloading."""
    return "\n".join(_model_lines(model)) + "\n"


def _model_lines(model: ir.Model) -> Iterator[str]:
    imports = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opset_imports.items()))
    yield f"model (opset {imports})"
    yield from _graph_lines(model.graph, "main", "")
    for function in model.functions.values():
        yield from _graph_lines(function.graph, f"function {function.domain}::{function.name}", "")


def _graph_lines(graph: ir.Graph, title: str, indent: str) -> Iterator[str]:
    inputs = ", ".join(_typed(value) for value in graph.inputs)
    yield f"{indent}{title}({inputs}) {{"
    for value in graph.initializers.values():
        yield f"{indent}  {value.name} = {_tensor(value.const_value)}"
    for node in graph:
        outputs = ", ".join(_typed(value) for value in node.outputs)
        operands = ", ".join(value.name or "" if value is not None else "_" for value in node.inputs)
        plain = [
            f"{name}={_attr(attr)}" for name, attr in node.attributes.items() if not attr.type.name.startswith("GRAPH")
        ]
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        yield f"{indent}  {outputs} = {op}{'<' + ', '.join(plain) + '>' if plain else ''}({operands})"
        for name, sub in sites.subgraphs(node):
            yield from _graph_lines(sub, name, indent + "    ")
    yield f"{indent}  return {', '.join(str(value.name) for value in graph.outputs)}"
    yield f"{indent}}}"


def _typed(value: ir.Value) -> str:
    kind = value.dtype.name.lower() if value.dtype is not None else "?"
    if value.shape is None:
        return f"{value.name}: {kind}"
    dims = ",".join(str(dim) if isinstance(dim, int) else (dim.value or "?") for dim in value.shape)
    return f"{value.name}: {kind}[{dims}]"


def _attr(attr: ir.Attr) -> str:
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type.name == "TENSOR":
        return _tensor(attr.as_tensor())
    return str(list(attr.value)) if isinstance(attr.value, tuple) else repr(attr.value)


def _tensor(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return "<no data>"
    dims = list(tensor.shape.numpy())
    count = 1
    for dim in dims:
        count *= dim
    head = f"{tensor.dtype.name.lower()}{dims}"
    if count <= _SHOWN:
        return f"{head} {{{', '.join(map(str, tensor.numpy().reshape(-1).tolist()))}}}"
    from graphopt.ir.hash import tensor_digest

    return f"{head} #{tensor_digest(tensor)[:12]}"


def from_text(text: str) -> ir.Model:
    """Parse ONNX text syntax (a `<ir_version..., opset_import...>` header and `agraph (...) => (...) {...}`).

    Declared but undefined values that nodes use become initializers seeded by their name: floats in [-1, 1), positive
    where the name starts with `var` or `pos`, integers in 0..3.

    Raises:
        GraphoptError: the text does not parse.
    """
    import onnx.parser

    from graphopt import ir
    from graphopt.errors import GraphoptError

    try:
        proto = onnx.parser.parse_model(text)
    except Exception as error:  # the parser's own error class is not exported
        raise GraphoptError(f"the model text does not parse: {' '.join(str(error).split())}") from None
    made = {name for node in proto.graph.node for name in node.output}
    made.update(tensor.name for tensor in proto.graph.initializer)
    for info in [info for info in proto.graph.value_info if info.name not in made]:
        proto.graph.value_info.remove(info)
        proto.graph.initializer.append(ir.to_proto(ir.tensor(_seeded(ir.from_proto(info)), name=info.name)))
    return ir.from_proto(proto)


def _seeded(value: ir.Value) -> np.ndarray:
    import numpy as np

    assert value.name is not None and value.shape is not None and value.dtype is not None
    random = np.random.default_rng(zlib.crc32(value.name.encode()))
    shape = value.shape.numpy()
    if not value.dtype.is_floating_point():
        return random.integers(0, 4, shape).astype(value.dtype.numpy())
    low = 0.5 if value.name.startswith(("var", "pos")) else -1.0
    return random.uniform(low, 1.5 if low > 0 else 1.0, shape).astype(value.dtype.numpy())
