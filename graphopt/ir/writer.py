"""Writing a model: protobuf and weights to temporary files in the target folder, then renamed into place together."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graphopt.errors import GraphoptError
from graphopt.ir.constants import model_bytes
from graphopt.ir.places import check_together, file_place

if TYPE_CHECKING:
    from graphopt import ir

ExternalData = Literal["auto", "always", "never"]
_AUTO_BYTES = 1 << 30
_PROTOBUF_BYTES = (1 << 31) - (64 << 20)
_THRESHOLD = 1024


def write(model: ir.Model, path: str | Path, external_data: ExternalData = "auto") -> tuple[str, ...]:
    """Write an ONNX file, atomically; return the names of the files written.

    Args:
        model: The model; it is not changed.
        path: The `.onnx` file; large weights go to `<name>.data` beside it. A link is written through.
        external_data: "auto" (from 1 GiB of weights on, or when the model came with external data), "always", "never".

    Raises:
        GraphoptError: the folder is not writable, the disk is full, something else than a file is there, or "never"
            with more than 2 GiB.
    """
    given, path = Path(path), file_place(Path(path))
    size = model_bytes(model)
    if external_data == "never" and size > _PROTOBUF_BYTES:
        raise GraphoptError(
            f"{path}: {size} bytes of weights do not fit into one protobuf file; use --external-data auto"
        )
    apart = external_data == "always" or (external_data == "auto" and (size > _AUTO_BYTES or _has_external(model)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = file_place(path.with_name(f"{path.name}.data"))
    temporary_data = data.with_name(f".{data.name}.{os.getpid()}.tmp")
    try:
        moved = _serialize(model, temporary, temporary_data.name if apart else None, data)
        # Where no tensor is large enough the file is empty, or not there.
        apart = apart and temporary_data.exists() and temporary_data.stat().st_size > 0
        if apart:
            check_together(given, path, (path.name, data.name))
            os.replace(temporary_data, data)
            for value, tensor in moved:
                value.const_value = tensor
        os.replace(temporary, path)
    except OSError as error:
        raise GraphoptError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        for leftover in (temporary, temporary_data):
            with contextlib.suppress(OSError):
                leftover.unlink()
    return (path.name, data.name) if apart else (path.name,)


def _has_external(model: ir.Model) -> bool:
    from graphopt import ir

    return any(isinstance(v.const_value, ir.ExternalTensor) for g in model.graphs() for v in g.initializers.values())


def _serialize(
    model: ir.Model, path: Path, data: str | None, final_data: Path
) -> list[tuple[ir.Value, ir.ExternalTensor]]:
    """Write the protobuf and the data file; return the tensors that mapped the file to be replaced, moved to it."""
    from graphopt import ir

    moved: list[tuple[ir.Value, ir.ExternalTensor]] = []
    final = os.path.realpath(final_data)

    values = [v for graph in model.graphs() for v in graph.initializers.values()]
    tensors = [v.const_value for v in values]
    try:
        if data is not None:
            ir.external_data.unload_from_model(model, path.parent, data, size_threshold_bytes=_THRESHOLD)
        else:
            for value in values:
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = ir.Tensor(
                        value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name
                    )
        proto = ir.to_proto(model)
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            new = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and isinstance(new, ir.ExternalTensor) and tensor.path == final:
                where = (final, new.offset, new.length, new.dtype)
                moved.append((value, ir.ExternalTensor(*where, shape=new.shape, name=tensor.name, base_dir="")))
            value.const_value = tensor
    if data is not None:
        for graph in _graphs(proto.graph):
            for tensor in graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = final_data.name
    with open(path, "wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
    return moved


def _graphs(graph: object) -> list:
    found = [graph]
    for node in graph.node:  # type: ignore[attr-defined]
        for attr in node.attribute:
            if attr.HasField("g"):
                found.extend(_graphs(attr.g))
            for inner in attr.graphs:
                found.extend(_graphs(inner))
    return found
