"""Inputs that are legal for a graph, made from how it uses them (inputuse.py); user data is read by feedfiles.py.

    for binding in default_bindings(model):             # two, with unequal sizes of 2 or more
        for variant in range(variant_count(model)):     # masks full, partly and fully masked; conditions both ways
            feeds = make_feeds(model, seed=0, bindings=binding, variant=variant)

Values depend on seed, variant and the input's name. `find_bindings` asks the model which sizes it really takes.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.feedfiles import check_feeds, load_feeds
from graphopt.inputuse import InputUse, input_use

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir

__all__ = ["check_feeds", "default_bindings", "find_bindings", "load_feeds", "make_feeds", "variant_count"]

# Sizes for symbols, by what they seem to count. Two columns: the two bindings. Images get multiples of 32, since most
# convolutional nets halve their input five times; later rows are tried when a model refuses the first.
_BATCH = ((2, 3), (2, 3), (1, 1))
_LENGTH = ((5, 7), (8, 12), (16, 24), (128, 96))
_IMAGE = ((64, 96), (96, 128), (224, 256), (320, 320))
_SIGNAL = ((512, 768), (1024, 1536), (16000, 8000))
_WORDS = ("graph", "pass", "fuse", "Conv", "", "naïve", "0", "model 7")


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
    derived = _sums(set(base))
    for symbol in base:
        if symbol in derived:
            continue
        sizes = dict.fromkeys(pair[column][symbol] for pair in pairs[:2] for column in (1, 0))
        for size in sizes:
            if size == current[symbol]:
                continue
            tried = _complete({**current, symbol: size}, derived)
            if accepts(tried):
                current = tried
                break
    return current if current != base else None


def _complete(sizes: Mapping[str, int], derived: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    return {**sizes, **{symbol: sum(sizes[part] for part in parts) for symbol, parts in derived.items()}}


def _candidate_pairs(model: ir.Model) -> Iterator[list[dict[str, int]]]:
    """Pairs of assignments in the order worth trying: small ones first, then those that strided models accept."""
    kinds = _symbol_kinds(model)
    if not kinds:
        yield [{}]
        return
    derived = _sums(set(kinds))
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
        yield [_complete(assignment, derived) for assignment in pair]


def variant_count(model: ir.Model) -> int:
    """How many variants of the feeds differ: 3 with masks, 2 with conditions or optional inputs, else 1."""
    from graphopt import ir

    count = 1
    for value in required_inputs(model):
        use = input_use(model, value)
        if _is_mask(value, use):
            return 3
        is_bool = value.dtype == ir.DataType.BOOL
        if is_bool or isinstance(value.type, ir.OptionalType) or _is_switch(value, use):
            count = 2
    return count


def make_feeds(
    model: ir.Model, seed: int = 0, bindings: Mapping[str, int] | None = None, variant: int = 0
) -> dict[str, Any]:
    """Make one legal value for each required input.

    Args:
        model: its graph inputs must have types; shapes may be symbolic.
        seed: of the random values.
        bindings: sizes of symbolic dims; None for the first of `default_bindings`.
        variant: 0 has full masks and true conditions; 1 partly masked rows, false conditions, absent optionals;
            2 has a fully masked row besides.

    Returns:
        Arrays by input name (ml_dtypes for bfloat16, float8, int4); lists for sequences; None for absent optionals.

    Raises:
        GraphoptError: an unknown symbol in `bindings`, or an input without type or rank.
    """
    first = default_bindings(model)[0]
    if bindings is not None:
        for symbol in bindings:
            if symbol not in first:
                raise GraphoptError(f"no input has a dim {symbol!r}{did_you_mean(symbol, first)}")
    given = bindings or {}
    sizes = {**_complete({**first, **given}, _sums(set(first))), **given}
    return {value.name or "": _make(model, value, seed, sizes, variant) for value in required_inputs(model)}


def _make(model: ir.Model, value: ir.Value, seed: int, sizes: Mapping[str, int], variant: int) -> Any:
    import numpy as np

    from graphopt import ir

    kind = value.type
    if kind is None:
        raise GraphoptError(f"input {value.name!r} has no type; feeds cannot be made for it, give --data")
    rng = np.random.default_rng([seed, variant, zlib.crc32((value.name or "").encode())])
    use = input_use(model, value)
    if isinstance(kind, ir.OptionalType):
        if variant == 1:
            return None
        kind = kind.elem_type
    if isinstance(kind, ir.SequenceType):
        return [_tensor(value, kind.dtype, rng, use, sizes, variant) for _ in range(2)]
    return _tensor(value, kind.dtype, rng, use, sizes, variant)


def _tensor(
    value: ir.Value,
    dtype: ir.DataType,
    rng: np.random.Generator,
    use: InputUse,
    sizes: Mapping[str, int],
    variant: int,
) -> np.ndarray:
    import numpy as np

    from graphopt import ir

    shape = _shape(value, use, sizes)
    if dtype == ir.DataType.STRING:
        out = np.empty(int(np.prod(shape)), dtype=object)
        out[:] = [_WORDS[index] for index in rng.integers(0, len(_WORDS), out.size)]
        return out.reshape(shape)
    special = _special(value, use, shape, sizes, variant)
    if special is not None:
        return np.broadcast_to(special, shape).astype(dtype.numpy())
    if dtype == ir.DataType.BOOL:
        if use.roles & {"condition"} or not shape:
            return np.full(shape, variant == 0)
        return _mask(shape, variant) if _is_mask(value, use) else rng.random(shape) < 0.5
    if _is_mask(value, use):
        return _mask(shape, variant).astype(dtype.numpy())
    if dtype.is_integer():
        return _integers(value, dtype, rng, use, shape, sizes)
    return _floats(dtype, rng, use, shape)


def _special(
    value: ir.Value, use: InputUse, shape: tuple[int, ...], sizes: Mapping[str, int], variant: int
) -> np.ndarray | None:
    """Values that a role fixes: lengths, shapes, counts, axes, constants it is compared with. None when none does."""
    import numpy as np

    count = int(np.prod(shape))
    if "reshape" in use.roles:
        node, _ = use.nodes["reshape"]
        return _reshape_target(node, count, sizes)
    fixed = {"ones": 1, "one": 1, "repeats": 2, "sizes": 2, "zero": 0, "count": 2, "trips": 3, "pads": 1, "end": 2}
    for role, number in fixed.items():
        if role in use.roles:
            return np.asarray(number)
    if "axes" in use.roles:
        return np.arange(count).reshape(shape)
    if "scales" in use.roles:
        return np.asarray([1.0] * min(2, count) + [2.0] * (count - 2))
    if "length" in use.roles:
        node, slot = use.nodes["length"]
        longest = _length(node, slot, sizes)
        return np.asarray([max(1, longest - index % max(1, longest)) for index in range(count)]).reshape(shape)
    if use.roles & {"last-key", "total-keys"}:
        node, _ = use.nodes["last-key" if "last-key" in use.roles else "total-keys"]
        total = _total_keys(node, sizes)
        return np.asarray(total - 1 if "last-key" in use.roles else total)
    distinct = sorted(set(use.compared))
    if distinct and _is_switch(value, use):
        # A mode switch such as a sample rate: what it is compared with, then a value that is not.
        return np.asarray([*reversed(distinct), distinct[-1] // 2][variant % (len(distinct) + 1)])
    return None


def _integers(
    value: ir.Value,
    dtype: ir.DataType,
    rng: np.random.Generator,
    use: InputUse,
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
) -> np.ndarray:
    import numpy as np

    bounds = [size for bound in use.bounds if (size := _size(bound, sizes)) is not None]
    span = 2 ** min(8, dtype.bitwidth)
    lowest, highest = (-span // 2, span // 2) if dtype.is_signed() else (0, span)
    if bounds or "index" in use.roles:
        low, high = 0, max(1, min(bounds, default=2))
    elif "divisor" in use.roles:
        low, high = 1, 5
    elif dtype.bitwidth <= 8:
        low, high = lowest, highest  # pixels and quantized activations use their whole range
    elif use.arithmetic:
        low, high = (-8, 9) if dtype.is_signed() else (0, 9)
    else:
        low, high = 0, 2
    return rng.integers(low, high, shape, dtype=np.int64).astype(dtype.numpy())


def _floats(dtype: ir.DataType, rng: np.random.Generator, use: InputUse, shape: tuple[int, ...]) -> np.ndarray:
    import numpy as np

    values = rng.standard_normal(shape)
    if "over-one" in use.roles:
        values = np.abs(values) + 1.0
    elif "unit" in use.roles:
        values = np.tanh(values)
    elif "positive" in use.roles or "divisor" in use.roles:
        values = np.abs(values) + 0.125
    if dtype.name.startswith("COMPLEX"):
        return (values + 1j * rng.standard_normal(shape)).astype(dtype.numpy())
    return np.asarray(values).astype(dtype.numpy())


def _mask(shape: tuple[int, ...], variant: int) -> np.ndarray:
    """Booleans: all true; or row i keeps a shorter prefix of the last axis; or the same with row 0 all false."""
    import numpy as np

    out = np.ones(shape, dtype=bool)
    if variant == 0 or not shape:
        return out
    rows = out.reshape(shape[0], -1, shape[-1]) if len(shape) > 1 else out.reshape(1, 1, -1)
    for index, row in enumerate(rows):
        row[:, max(1, shape[-1] - 1 - index % max(1, shape[-1] - 1)) :] = False
    if variant == 2:
        rows[0] = False
    return rows.reshape(shape)


def _is_switch(value: ir.Value, use: InputUse) -> bool:
    return bool(use.compared) and not use.boolean and not use.bounds and all(dim == 1 for dim in value.shape or ())


def _is_mask(value: ir.Value, use: InputUse) -> bool:
    from graphopt import ir

    if use.bounds or use.roles & {"index", "condition", "length", "reshape"} or value.dtype is None:
        return False
    named = "mask" in (value.name or "").lower()
    if value.shape is None or len(value.shape) == 0:
        return False
    if value.dtype.is_integer():
        return use.boolean or named
    return named or (value.dtype == ir.DataType.BOOL and "boolean" in use.roles)


def _shape(value: ir.Value, use: InputUse, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if value.shape is None:
        raise GraphoptError(f"input {value.name!r} has no declared rank; feeds cannot be made for it, give --data")
    out = []
    for axis, dim in enumerate(value.shape):
        size = sizes.get(_placeholder(value, use, axis)) if _unnamed(dim) else _size(dim, sizes)
        if size is None or size < 0:
            raise GraphoptError(
                f"input {value.name!r}: dim {axis} ({dim}) does not follow from {dict(sizes)}; give --data"
            )
        out.append(size)
    return tuple(out)


def _size(dim: Any, sizes: Mapping[str, int]) -> int | None:
    from graphopt.analysis import dims

    if isinstance(dim, int):
        return dim if dim >= 0 else None
    if _unnamed(dim):
        return None
    return sizes[dim.value] if dim.value in sizes else dims.evaluate(dim, sizes)


def _unnamed(dim: Any) -> bool:
    if isinstance(dim, int):
        return dim < 0
    # Exporters write `?` and -1 for "unknown"; neither says that two such dims are equal.
    return not any(char.isalpha() for char in dim.value or "")


def _reshape_target(node: ir.Node, count: int, sizes: Mapping[str, int]) -> np.ndarray:
    """A target of `count` dims: the declared result where it is known, else all in the last dim."""
    import numpy as np

    declared = node.outputs[0].shape
    if declared is not None and len(declared) == count:
        known = [_size(dim, sizes) for dim in declared]
        if known.count(None) <= 1:
            return np.asarray([-1 if size is None else size for size in known])
    return np.asarray([1] * (count - 1) + [-1])


def _length(node: ir.Node, slot: int, sizes: Mapping[str, int]) -> int:
    data = node.inputs[0]
    name = "time_axis" if node.op_type == "ReverseSequence" else "layout"
    attribute = node.attributes.get(name)
    axis = attribute.as_int() if attribute is not None else 0
    if data is None or data.shape is None:
        return 1
    return _size(data.shape[axis], sizes) or 1


def _total_keys(node: ir.Node, sizes: Mapping[str, int]) -> int:
    query, past = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
    current = _size(query.shape[1], sizes) if query is not None and query.shape is not None else None
    before = _size(past.shape[2], sizes) if past is not None and past.shape is not None else 0
    return max(1, (current or 1) + (before or 0))


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
            if _unnamed(dim):
                kinds.setdefault(_placeholder(value, use, axis), kind)
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


def _placeholder(value: ir.Value, use: InputUse, axis: int) -> str:
    kind = _kind(value, use, axis)
    return "?batch" if kind == "batch" else f"?{kind}{axis}"


def _sums(symbols: set[str]) -> dict[str, tuple[str, ...]]:
    """Symbols that must be the sum of two others: a `total` length beside a `past` one, as in cached attention."""
    past = sorted(name for name in symbols if "past" in name.lower())
    totals = sorted(name for name in symbols if "total" in name.lower() and name not in past)
    current = sorted(name for name in symbols if "seq" in name.lower() and name not in past and name not in totals)
    if len(past) != 1 or not current:
        return {}
    return {name: (past[0], current[0]) for name in totals}
