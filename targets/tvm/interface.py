"""Feeds against the interface of a compiled model: generated code reads what it is given without looking, and all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.targets.onnxruntime.wire import EXOTIC

if TYPE_CHECKING:
    from graphopt.target import Feeds, TensorSpec

_TYPES = {"float32": "float", "float64": "double", **{element.ml_dtype: name for name, element in EXOTIC.items()}}


def check_feeds(
    feeds: Feeds, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], wanted: Sequence[str] | None = None
) -> None:
    """Check names, element types and dims of feeds, and the names of wanted outputs.

    Raises:
        GraphoptError: something is missing, unknown, or of another type or shape.
    """
    import numpy as np

    known = {spec.name: spec for spec in inputs}
    for name, value in feeds.items():
        if name not in known:
            raise GraphoptError(f"the model has no input {name!r}{did_you_mean(name, known)}")
        spec = known[name]
        if not spec.type.startswith("tensor"):
            continue  # sequences and optionals are checked by ONNX Runtime, which alone takes them
        array = np.asarray(value)
        if type_text(array.dtype) != spec.type:
            raise GraphoptError(f"input {name!r} is {spec.type}, the feed is {type_text(array.dtype)}")
        if spec.shape is not None and not _fits(array.shape, spec.shape):
            raise GraphoptError(f"input {name!r} is {list(spec.shape)}, the feed is {list(array.shape)}")
    missing = [spec.name for spec in inputs if spec.name not in feeds and not spec.type.startswith("optional")]
    if missing:
        raise GraphoptError(f"no value is given for input {missing[0]!r}")
    there = [spec.name for spec in outputs]
    for name in wanted or ():
        if name not in there:
            raise GraphoptError(f"the model has no output {name!r}{did_you_mean(name, there)}")


def type_text(dtype: Any) -> str:
    """ONNX's type text of a tensor of a numpy dtype."""
    if dtype.kind in "OUST":
        return "tensor(string)"
    return f"tensor({_TYPES.get(dtype.name, dtype.name)})"


def _fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(dim, int) or dim == size for size, dim in zip(shape, wanted, strict=True)
    )
