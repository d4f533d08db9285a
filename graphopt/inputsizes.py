"""Sizes for the symbolic dims of a model's inputs: two bindings to check it at, chosen by what the dims seem to count.

`default_bindings` looks at the graph only; `find_bindings` asks the model which sizes it takes. feeds.py makes values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graphopt.inputuse import InputUse, input_use

if TYPE_CHECKING:
    from graphopt import ir

# Sizes for symbols, by what they seem to count. Two columns: the two bindings. Images get multiples of 32, since most
# convolutional nets halve their input five times; later rows are tried when a model refuses the first.
_BATCH = ((2, 3), (2, 3), (1, 1))
_LENGTH = ((5, 7), (8, 12), (16, 24), (128, 96))
_IMAGE = ((64, 96), (96, 128), (224, 256), (320, 320))
_SIGNAL = ((512, 768), (1024, 1536), (16000, 8000))


def required_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller must feed: those without an initializer of the same name."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def default_bindings(model: ir.Model) -> list[dict[str, int]]:
    """Two assignments of the symbolic dims of the inputs, unequal and of 2 or more; an empty one if all is static.

    Dims without a name get one by what they seem to count (`?batch`, `?image2`). Expressions such as `past + current`
    follow from their symbols, and so does a `total` beside a `past`.
    """
    return next(_candidate_pairs(model))


def find_bindings(model: ir.Model, accepts: Callable[[dict[str, int]], bool]) -> list[dict[str, int]]:
    """Up to two assignments that the model really takes, as different as it allows.

    Declared shapes say less than a model demands (a height that must be 48, a multiple of 32), so `accepts` runs it.
    First `default_bindings`, then other sizes; when only one assignment works, its symbols are changed one by one.

    Args:
        accepts: whether the model runs on `make_feeds(model, bindings=...)` for the given assignment.

    Returns:
        Two assignments; one when no other is accepted; none when nothing is.
    """
    pairs = list(_candidate_pairs(model))
    for pair in pairs:
        for index, base in enumerate(pair):
            if not accepts(base):
                continue
            others = pair[index + 1 :]
            for other in others:
                if accepts(other):
                    return [base, other]
            second = _vary(base, pairs, accepts)
            return [base] if second is None else [base, second]
    return []


def _vary(
    base: dict[str, int], pairs: list[list[dict[str, int]]], accepts: Callable[[dict[str, int]], bool]
) -> dict[str, int] | None:
    """Change each symbol of `base` in turn to the first other size that is accepted; None when none is."""
    current = dict(base)
    derived = sums(set(base))
    for symbol in base:
        if symbol in derived:
            continue
        sizes = dict.fromkeys(pair[column][symbol] for pair in pairs[:2] for column in (1, 0))
        for size in sizes:
            if size == current[symbol]:
                continue
            tried = complete({**current, symbol: size}, derived)
            if accepts(tried):
                current = tried
                break
    return current if current != base else None


def complete(sizes: Mapping[str, int], derived: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    return {**sizes, **{symbol: sum(sizes[part] for part in parts) for symbol, parts in derived.items()}}


def _candidate_pairs(model: ir.Model) -> Iterator[list[dict[str, int]]]:
    """Pairs of assignments in the order worth trying: small ones first, then those that strided models accept."""
    kinds = _symbol_kinds(model)
    if not kinds:
        yield [{}]
        return
    derived = sums(set(kinds))
    tables = {"batch": _BATCH, "image": _IMAGE, "signal": _SIGNAL, "length": _LENGTH}
    for row in range(max(len(table) for table in tables.values())):
        pair: list[dict[str, int]] = [{}, {}]
        counts: Counter[str] = Counter()
        for symbol, kind in kinds.items():
            sizes = tables[kind][min(row, len(tables[kind]) - 1)]
            for column in (0, 1):
                # Unequal symbols of one kind get unequal sizes, so that a mix-up of axes changes the result.
                pair[column][symbol] = sizes[column] + (32 if kind == "image" else 1) * counts[kind]
            counts[kind] += 1
        yield [complete(assignment, derived) for assignment in pair]


def size_of(dim: Any, sizes: Mapping[str, int]) -> int | None:
    from graphopt.analysis import dims

    if isinstance(dim, int):
        return dim if dim >= 0 else None
    if is_unnamed(dim):
        return None
    return sizes[dim.value] if dim.value in sizes else dims.evaluate(dim, sizes)


def is_unnamed(dim: Any) -> bool:
    if isinstance(dim, int):
        return dim < 0
    # Exporters write `?` and -1 for "unknown"; neither says that two such dims are equal.
    return not any(char.isalpha() for char in dim.value or "")


def _symbol_kinds(model: ir.Model) -> dict[str, str]:
    """Each symbol of the inputs' shapes with what it seems to count: batch, image, signal or length."""
    from graphopt.analysis import dims

    kinds: dict[str, str] = {}
    for value in required_inputs(model):
        use = input_use(model, value)
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int) and dim >= 0:
                continue
            kind = _kind(value, use, axis)
            if is_unnamed(dim):
                kinds.setdefault(placeholder(value, use, axis), kind)
                continue
            name = str(dim)
            for symbol in [name] if name.isidentifier() else sorted(dims.symbols(dim)) or [name]:
                kinds.setdefault(symbol, "batch" if "batch" in symbol.lower() else kind)
    return kinds


def _kind(value: ir.Value, use: InputUse, axis: int) -> str:
    rank = len(value.shape or ())
    if (axis == 0 and rank > 1) or ("state" in use.roles and axis == rank - 2):
        return "batch"
    if use.convolved and value.dtype is not None and value.dtype.is_floating_point():
        return "image" if rank >= 4 and axis >= 2 else "signal"
    return "length"


def placeholder(value: ir.Value, use: InputUse, axis: int) -> str:
    kind = _kind(value, use, axis)
    return "?batch" if kind == "batch" else f"?{kind}{axis}"


def sums(symbols: set[str]) -> dict[str, tuple[str, ...]]:
    """Symbols that must be the sum of two others: a `total` length beside a `past` one, as in cached attention."""
    past = sorted(name for name in symbols if "past" in name.lower())
    totals = sorted(name for name in symbols if "total" in name.lower() and name not in past)
    current = sorted(name for name in symbols if "seq" in name.lower() and name not in past and name not in totals)
    if len(past) != 1 or not current:
        return {}
    return {name: (past[0], current[0]) for name in totals}
