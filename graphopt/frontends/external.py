"""External data: where it may lie, and turning every reference into a checked, memory-mapped tensor.

Data must lie under the model's folder, as given or as resolved: caches that keep files as links load, escapes do not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir.places import kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt import ir

_STRING = 8


def check_entries(tensor: Any, what: str) -> None:
    """Check what a TensorProto says of its external data; `what` names it.

    Raises:
        GraphoptError: strings, no location or one that no file has, an offset or length that is no number of bytes.
    """
    if tensor.data_type == _STRING:
        raise GraphoptError(f"{what} is of strings, which cannot be external data")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or "\0" in location:
        raise GraphoptError(f"{what} has external data at {location!r}, which is no name of a file")
    for key in ("offset", "length"):
        if key in entries and not re.fullmatch("[0-9]{1,18}", entries[key]):
            raise GraphoptError(f"{what} has external data of {key} {entries[key]!r}, which is no number of bytes")


def resolve_external_data(model: ir.Model, path: Path) -> None:
    """Check every external tensor of the model and point it at its real file.

    Raises:
        GraphoptError: absolute, outside, missing, or shorter than declared.
    """
    from graphopt import ir

    roots = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}
    for value, tensor in _external(model):
        real = _locate(tensor, path, roots)
        _check_length(tensor, real, path)
        # Checked here: an empty base folder with an absolute location skips the stricter rule of the library,
        # which refuses the links of package caches.
        value.const_value = ir.ExternalTensor(
            real, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=""
        )


def _external(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    from graphopt import ir
    from graphopt.ir.sites import scopes

    for scope in scopes(model):
        for value in scope.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, value.const_value
        for node in scope.graph:
            for attr in node.attributes.values():
                if attr.is_ref() or attr.type not in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
                    continue
                tensors = [attr.value] if attr.type == ir.AttributeType.TENSOR else attr.value
                if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
                    raise GraphoptError(
                        f"node {node.name!r}: attribute {attr.name!r} refers to external data; only initializers may"
                    )


def _locate(tensor: ir.ExternalTensor, path: Path, roots: set[str]) -> str:
    location = os.fspath(tensor.location)
    what = f"{path}: external data {location!r} of {tensor.name!r}"
    if os.path.isabs(location):
        raise GraphoptError(f"{what} is an absolute path; it must lie in the model's folder")
    given = os.path.normpath(os.path.join(path.parent, location))
    if os.path.relpath(given, path.parent).startswith(".."):
        raise GraphoptError(f"{what} lies outside the model's folder")
    real = os.path.realpath(given)
    if not any(os.path.commonpath([root, real]) == root for root in roots):
        raise GraphoptError(f"{what} is a link to a place outside the model's folder")
    there = kind(Path(real))
    if there != "file":
        raise GraphoptError(f"{what} is {f'a {there}' if there else 'missing'}; a file must lie beside the model")
    return real


def _check_length(tensor: ir.ExternalTensor, real: str, path: Path) -> None:
    size = os.path.getsize(real)
    start, length = tensor.offset or 0, tensor.length
    if length is not None and length != tensor.nbytes:
        raise GraphoptError(
            f"{path}: {tensor.name!r} declares {length} bytes of external data, its type and shape need {tensor.nbytes}"
        )
    if start < 0 or start + tensor.nbytes > size:
        file = os.path.basename(real)
        raise GraphoptError(
            f"{path}: external data of {tensor.name!r} ends at byte {start + tensor.nbytes}, "
            f"the file {file!r} has {size}"
        )
