"""Capture of ONNX files: read, check, name every node. The file is not trusted.

Lives here: what a file must fulfil to become IR. Not here: opset conversion (a pass), writing (graphopt/ir/writer.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, VerificationError
from graphopt.frontends.external import resolve_external_data
from graphopt.frontends.operand_types import check_operand_types
from graphopt.frontends.structure import check_structure
from graphopt.frontends.tensors import check_tensors
from graphopt.ir import optable, sites
from graphopt.ir.places import kind
from graphopt.ir.verifier import verify

if TYPE_CHECKING:
    from graphopt import ir

_MAX_FILE = (1 << 31) - 1


def load(path: str | Path) -> ir.Model:
    """Read an ONNX file (binary protobuf, any standard opset from 7 up) into the IR.

    External weights stay memory-mapped. Every node gets a unique name.

    Raises:
        GraphoptError: missing, unreadable, not an ONNX model, broken structure, or external data that is missing,
            too short or outside the model's folder.
    """
    path = Path(path)
    proto = _parse(path, _read(path))
    if not proto.opset_import:
        raise GraphoptError(f"{path}: imports no opset, so its ops have no meaning; not a complete ONNX model")
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise GraphoptError(f"{path}: sparse initializer {name!r}: sparse weights are not supported; store them dense")
    check_structure(proto, path)
    model = _to_ir(proto, path)
    resolve_external_data(model, path)
    prepare(model, str(path))
    check_operand_types(model, str(path))
    return model


def prepare(model: ir.Model, origin: str) -> ir.Model:
    """Name the nodes, sort them where needed, and check every IR rule.

    Raises:
        GraphoptError: the model breaks a rule; the message names the place.
    """
    _name_standard_domain(model)
    _check_opset(model, origin)
    _drop_initializer_inputs(model)
    _forget_negative_dims(model)
    sites.name_nodes(model)
    try:
        verify(model)
    except VerificationError as error:
        _sort(model, origin, error)
    return model


def _read(path: Path) -> bytes:
    try:
        there = kind(path)
        if there not in ("", "file"):
            raise GraphoptError(
                f"{path} is a {there}; give {'the .onnx file in it' if path.is_dir() else 'an .onnx file'}"
            )
        size = path.stat().st_size
        if size == 0:
            raise GraphoptError(f"{path} is empty; an ONNX file was expected")
        if size > _MAX_FILE:
            raise GraphoptError(f"{path} has {size} bytes; protobuf ends at 2 GiB: keep the weights as external data")
        return path.read_bytes()
    except FileNotFoundError:
        raise GraphoptError(f"{path}: there is no such file") from None
    except OSError as error:
        raise GraphoptError(f"{path}: {error.strerror}") from None


def _parse(path: Path, data: bytes) -> Any:
    import google.protobuf.message
    import onnx

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except google.protobuf.message.DecodeError:
        raise GraphoptError(
            f"{path}: not an ONNX model (truncated, nested too deep, or no protobuf); {_look(data)}"
        ) from None
    if not proto.HasField("graph"):
        raise GraphoptError(f"{path}: not an ONNX model (it has no graph); {_look(data)}")
    return proto


def _look(data: bytes) -> str:
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in data[:256]):
        return f"it is a text file that begins with {data[:24].decode('ascii', 'replace')!r}"
    return f"its {len(data)} bytes begin with {data[:8].hex(' ')}"


def _to_ir(proto: Any, path: Path) -> ir.Model:
    import logging

    from graphopt import ir
    from graphopt.frontends.prototensor import keep_types

    check_tensors(proto, path)
    # Undefined inputs are reported by our verifier with the site; onnx_ir's own log line would come first.
    logger = logging.getLogger("onnx_ir.serde")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        model = ir.from_proto(proto)
        keep_types(model)
        return model
    except RecursionError:
        raise GraphoptError(f"{path}: its subgraphs are nested too deep to be read") from None
    except Exception as error:  # the deserializer meets arbitrary bytes; whatever it says, the file is at fault
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise GraphoptError(f"{path}: not a valid ONNX model: {' '.join(str(cause).split())[:300]}") from None
    finally:
        logger.setLevel(level)


def _name_standard_domain(model: ir.Model) -> None:
    """`ai.onnx` is another name of the standard domain; nodes come without it, imports do not."""
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:
            version = imports.pop("ai.onnx")
            imports.setdefault("", version)


def _check_opset(model: ir.Model, origin: str) -> None:
    version = model.opset_imports.get("", 0)
    if version and not 7 <= version <= optable.newest_opset():
        raise GraphoptError(f"{origin}: opset {version}; supported are 7 to {optable.newest_opset()}")


def _drop_initializer_inputs(model: ir.Model) -> None:
    """Before IR version 4 every initializer had to be listed as an input, though callers could not override it."""
    if model.ir_version is not None and model.ir_version >= 4:
        return
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    if len(kept) != len(model.graph.inputs):
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
        model.ir_version = 4


def _forget_negative_dims(model: ir.Model) -> None:
    """Some exporters write -1 for an unknown dim; the standard has no number for that."""
    from graphopt import ir

    for scope in sites.scopes(model):
        values = [*scope.graph.inputs, *scope.graph.outputs, *(out for node in scope.graph for out in node.outputs)]
        for value in values:
            if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
                value.shape = ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape])


def _sort(model: ir.Model, origin: str, first: VerificationError) -> None:
    """Sort the nodes when only their order is at fault; else report the broken rule."""
    try:
        for scope in sites.scopes(model):
            if scope.path == "" or scope.function is not None:
                scope.graph.sort()
        verify(model)
    except ValueError:
        raise GraphoptError(f"{origin}: the graph has a cycle ({first})") from None
    except VerificationError as error:
        raise GraphoptError(f"{origin}: {error}") from None


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file (64 hex digits), read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
