"""Specialising graph inputs: symbols bound to numbers, or whole input shapes given.

Inner shapes that mention a bound symbol are rewritten with it; the rest is left to the next inference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from graphopt.analysis import dims
from graphopt.errors import GraphoptError, did_you_mean
from graphopt.ir.sites import scopes

if TYPE_CHECKING:
    from graphopt import ir

_LARGEST = (1 << 63) - 1


def bind_dims(model: ir.Model, bindings: Mapping[str, int]) -> int:
    """Replace named dimensions of the graph inputs by numbers, everywhere; return how many values changed.

    Raises:
        GraphoptError: a name that no graph input has, or a negative number.
    """
    names = [
        dim.value or ""
        for value in model.graph.inputs
        for dim in value.shape or ()
        if not isinstance(dim, int) and not dims.is_unknown(dim)
    ]
    known = {*names, *(symbol for name in names for symbol in dims.symbols(dims.symbol(name)))}
    for name, number in bindings.items():
        if name not in known:
            raise GraphoptError(_no_such("dimension", name, known))
        if not 0 <= number <= _LARGEST:
            raise GraphoptError(f"dimension {name!r} cannot be {number}: sizes are 0 to {_LARGEST}")
    return _substitute(model, bindings)


def set_input_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int | str]]) -> int:
    """Give graph inputs shapes; symbols that get a number are bound everywhere. Return how many values changed.

    A word leaves a dimension symbolic: the symbol it has, or a name for one that has none.

    Raises:
        GraphoptError: an unknown input, another rank, a number or word that contradicts the declared dimension, or one
            symbol that would get two numbers.
    """
    from graphopt import ir

    inputs = {value.name or "": value for value in model.graph.inputs}
    bindings: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise GraphoptError(_no_such("input", name, inputs))
        _match(name, inputs[name].shape, shape, bindings)
    changed = _substitute(model, bindings)
    for name, shape in shapes.items():
        value, wanted = inputs[name], ir.Shape(tuple(shape))
        if value.shape is None or value.shape.dims != wanted.dims:
            value.shape = wanted
            changed += 1
    return changed


def _match(name: str, declared: ir.Shape | None, shape: Sequence[int | str], bindings: dict[str, int]) -> None:
    """Check one requested shape against the declared one and note which symbols it binds."""
    if any(isinstance(number, int) and not 0 <= number <= _LARGEST for number in shape):
        raise GraphoptError(f"input {name!r} cannot have shape {_print(shape)}: sizes are 0 to {_LARGEST}")
    if declared is None:
        return
    if len(shape) != declared.rank():
        raise GraphoptError(
            f"input {name!r} has rank {declared.rank()} ({_print(declared)}), but shape {_print(shape)} was asked for"
        )
    for axis, (dim, number) in enumerate(zip(declared, shape, strict=True)):
        if isinstance(dim, int):
            if 0 <= dim != number:
                raise GraphoptError(
                    f"input {name!r} is {_print(declared)}: dimension {axis} is fixed at {dim} and cannot be {number}"
                )
        elif isinstance(number, str):
            if not dims.is_unknown(dim) and dim.value != number:
                raise GraphoptError(
                    f"input {name!r} is {_print(declared)}: dimension {axis} is called {dim.value!r}, not {number!r}"
                )
        elif not dims.is_unknown(dim) and bindings.setdefault(dim.value or "", number) != number:
            raise GraphoptError(
                f"dimension {dim.value!r} would be both {bindings[dim.value or '']} and {number} (input {name!r})"
            )


def _substitute(model: ir.Model, bindings: Mapping[str, int]) -> int:
    from graphopt import ir

    changed = 0
    for scope in scopes(model):
        groups: list[Iterable[ir.Value]] = [scope.graph.inputs, scope.graph.outputs]
        groups.extend(node.outputs for node in scope.graph)
        for value in (value for group in groups for value in group):
            if value.shape is None or all(isinstance(dim, int) for dim in value.shape):
                continue
            new = tuple(dims.substitute(dim, bindings) for dim in value.shape)
            if new != value.shape.dims:
                value.shape = ir.Shape(new)
                changed += 1
    return changed


def _no_such(kind: str, name: str, known: Iterable[str]) -> str:
    if not known:
        return f"there is no {kind} {name!r}: the graph inputs have no named dimensions"
    return f"there is no {kind} {name!r} among the graph inputs{did_you_mean(name, known)}"


def _print(shape: Iterable[object]) -> str:
    return f"[{', '.join(str(dim) for dim in shape)}]"
