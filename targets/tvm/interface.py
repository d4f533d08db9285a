"""Feeds against the interface of a compiled model: generated code reads all that it is given, without looking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.targets.onnxruntime.wire import EXOTIC

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.target import Feeds, TensorSpec
    from graphopt.targets.tvm.plan import ExecutionPlan

_TYPES = {"float32": "float", "float64": "double", **{element.ml_dtype: name for name, element in EXOTIC.items()}}


class Interface:
    """Completes feeds by the defaults of inputs that may be left out, and checks them."""

    def __init__(self, folder: Path, plan: ExecutionPlan) -> None:
        self._folder, self._plan = folder, plan
        self._defaults: dict[str, Any] | None = None

    def complete(self, feeds: Feeds, wanted: Sequence[str] | None = None) -> dict[str, Any]:
        """Feeds for all inputs; the same arrays for the same feeds.

        Raises:
            GraphoptError: as for `check_feeds`, or the model with the defaults is missing.
        """
        if self._defaults is None:
            self._defaults = _defaults(self._folder, self._plan.defaults)
        out = {**self._defaults, **feeds}
        check_feeds(out, self._plan.inputs, self._plan.outputs, wanted)
        return out


def _defaults(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    from graphopt.frontends.onnx import load
    from graphopt.targets.tvm.plan import MODEL

    if not names:
        return {}
    there = load(folder / MODEL).graph.initializers
    tensors = {name: there[name].const_value for name in names if name in there}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}


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
