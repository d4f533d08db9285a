"""Feeds that users bring: .npz, .npy, a folder of .npy, or a folder of .pb as ONNX's test data sets are laid out.

Nothing is unpickled. What was read is checked against the model's interface: names, element types, shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean

if TYPE_CHECKING:
    from graphopt.target import TensorSpec

# How numpy and ml_dtypes spell ONNX Runtime's element types where the names differ.
_NUMPY_NAMES = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
    "float4e2m1": "float4_e2m1fn",
}


def load_feeds(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Read feeds for a model whose interface is `inputs`.

    Args:
        path: `.npz` (keys are input names), `.npy` (a model of one input), a folder of `<input>.npy`, or a folder with
            `input_<i>.pb` (TensorProto, i-th input; a name stored in it wins), also as its subfolder `test_data_set_0`.
        inputs: `runner.inputs`.

    Raises:
        GraphoptError: nothing there, a file that is none of these, pickled objects, or data that does not fit.
    """
    if not path.exists():
        raise GraphoptError(f"there is no data file {path}")
    if path.is_dir():
        feeds = _read_folder(path, inputs)
    elif path.suffix == ".npz":
        feeds = _read_npz(path)
    elif path.suffix == ".npy":
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise GraphoptError(f"{path} holds one array and the model has {len(inputs)} inputs ({names}); use an .npz")
        feeds = {inputs[0].name: read_npy(path)}
    else:
        raise GraphoptError(f"{path} is not .npz, .npy or a folder of .npy or .pb files")
    check_feeds(feeds, inputs, str(path))
    return feeds


def check_feeds(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec], origin: str) -> None:
    """Compare names, element types and shapes with the interface; the first difference is the error.

    Raises:
        GraphoptError: unknown or missing input, another type, rank or static size, or one symbol with two sizes.
    """
    known = {spec.name: spec for spec in inputs}
    for name in feeds:
        if name not in known:
            raise GraphoptError(f"{origin}: the model has no input {name!r}{did_you_mean(name, known)}")
    missing = [name for name, spec in known.items() if name not in feeds and not spec.type.startswith("optional")]
    if missing:
        raise GraphoptError(f"{origin}: no data for input {missing[0]!r}; it has {', '.join(feeds) or 'nothing'}")
    symbols: dict[str, tuple[int, str]] = {}
    for name, value in feeds.items():
        _check_one(value, known[name], symbols, origin)


def _check_one(value: Any, spec: TensorSpec, symbols: dict[str, tuple[int, str]], origin: str) -> None:
    found = re.fullmatch(r"tensor\((\w+)\)", spec.type)
    if found is None:
        return  # sequences and optionals are checked by the runtime
    wanted = _NUMPY_NAMES.get(found.group(1), found.group(1))
    is_text = value.dtype.kind in "OUST"
    if is_text != (wanted == "string") or (not is_text and value.dtype.name != wanted):
        raise GraphoptError(f"{origin}: input {spec.name!r} is {value.dtype.name}, the model wants {wanted}")
    if spec.shape is None:
        return
    misfit = GraphoptError(
        f"{origin}: input {spec.name!r} has shape {_text(value.shape)}, the model wants {_text(spec.shape)}"
    )
    if len(spec.shape) != value.ndim:
        raise misfit
    for size, dim in zip(value.shape, spec.shape, strict=True):
        if isinstance(dim, int) and size != dim:
            raise misfit
        nameless = dim in (None, "", "?")  # as files spell a dimension of unknown size
        if isinstance(dim, str) and not nameless and symbols.setdefault(dim, (size, spec.name))[0] != size:
            there, other = symbols[dim]
            raise GraphoptError(f"{origin}: dim {dim!r} is {size} in {spec.name!r} and {there} in {other!r}")


def _text(shape: Sequence[Any]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Tell any error as a file that cannot be read as `what`.

    Each of zlib, zipfile, numpy (which evaluates headers) and protobuf has errors of its own for bytes that are none.
    """
    try:
        yield
    except GraphoptError:
        raise
    except Exception as error:
        text = one_line(error)
        if "allow_pickle" in text:
            text = "it holds Python objects, which are never unpickled"
        raise GraphoptError(f"{path} cannot be read as {what}: {text}") from None


def one_line(error: BaseException) -> str:
    """What an error says, cut to a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_npy(path: Path, *, mapped: bool = False) -> Any:
    """The array of a file, `mapped` or in memory.

    Raises:
        GraphoptError: it is none, or holds pickled objects.
    """
    import numpy as np

    with reading(path, "an .npy array"):
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":  # numpy would take it for a pickle
                raise ValueError("it does not begin as one")
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def _read_npz(path: Path) -> dict[str, Any]:
    import zipfile

    import numpy as np

    with reading(path, "an .npz archive"):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip file")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _read_folder(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    arrays = sorted(path.glob("*.npy"))
    if arrays:
        return {item.stem: read_npy(item) for item in arrays}
    folder = path / "test_data_set_0" if (path / "test_data_set_0").is_dir() else path
    protos = sorted(folder.glob("input_*.pb"))
    if not protos:
        raise GraphoptError(f"{path} has no .npy files and no input_<i>.pb files")
    feeds = {}
    for item in protos:
        found = re.fullmatch(r"input_(\d+)\.pb", item.name)
        index = int(found.group(1)) if found else -1
        name, value = read_proto(item)
        if name not in {spec.name for spec in inputs}:
            if not 0 <= index < len(inputs):
                raise GraphoptError(f"{item} is for input {index}, the model has {len(inputs)} inputs")
            name = inputs[index].name
        feeds[name] = value
    return feeds


def read_proto(path: Path) -> tuple[str, Any]:
    """Name and array of a TensorProto's file.

    Raises:
        GraphoptError: it is none.
    """
    from graphopt import ir

    with reading(path, "a TensorProto"):
        tensor = ir.serde.deserialize_tensor(_parse_tensor(path.read_bytes()))
        return tensor.name or "", tensor.numpy()


def _parse_tensor(data: bytes) -> Any:
    from graphopt import ir

    proto = ir.to_proto(ir.tensor([0]))  # the message class, without importing onnx here
    proto.Clear()
    proto.ParseFromString(data)
    return proto
