"""Inputs that are legal for a graph, made from how it uses them (inputuse.py); user data is read by feedfiles.py.

    for binding in default_bindings(model):             # two, with unequal sizes of 2 or more
        for variant in range(variant_count(model)):     # masks full, partly and fully masked; conditions both ways
            feeds = make_feeds(model, seed=0, bindings=binding, variant=variant)

Values depend on seed, variant and the input's name. `find_bindings` asks the model which sizes it really takes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.environment import physical_bytes
from graphopt.errors import GraphoptError, RuntimeDied, did_you_mean
from graphopt.feedfiles import check_feeds, load_feeds
from graphopt.inputsizes import (
    complete,
    default_bindings,
    find_bindings,
    is_unnamed,
    placeholder,
    required_inputs,
    size_of,
    sums,
)
from graphopt.inputuse import InputUse, input_use

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.target import Runner

__all__ = [
    "bindings_of",
    "check_feeds",
    "default_bindings",
    "find_bindings",
    "load_feeds",
    "make_feeds",
    "variant_count",
]

_WORDS = ("graph", "pass", "fuse", "Conv", "", "naïve", "0", "model 7")


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
        GraphoptError: an unknown symbol in `bindings`, an input without type or rank, or sizes beyond the memory.
    """
    first = default_bindings(model)[0]
    if bindings is not None:
        for symbol in bindings:
            if symbol not in first:
                raise GraphoptError(f"no input has a dim {symbol!r}{did_you_mean(symbol, first)}")
    given = bindings or {}
    sizes = {**complete({**first, **given}, sums(set(first))), **given}
    try:
        return {value.name or "": _make(model, value, seed, sizes, variant) for value in required_inputs(model)}
    except MemoryError as error:
        raise GraphoptError(f"the inputs do not fit into memory ({error}); give smaller sizes") from None


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
    _check_memory(value, shape)
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


def _check_memory(value: ir.Value, shape: tuple[int, ...]) -> None:
    """Values are made in float64: this many bytes must be there."""
    needed, there = 8 * math.prod(shape), physical_bytes()
    if needed > there:
        raise GraphoptError(
            f"input {value.name!r} of shape {list(shape)}: making it takes {needed} bytes, there are {there}; "
            "give smaller sizes"
        )


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

    bounds = [size for bound in use.bounds if (size := size_of(bound, sizes)) is not None]
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
        size = sizes.get(placeholder(value, use, axis)) if is_unnamed(dim) else size_of(dim, sizes)
        if size is None or size < 0:
            raise GraphoptError(
                f"input {value.name!r}: dim {axis} ({dim}) does not follow from {dict(sizes)}; give --data"
            )
        out.append(size)
    return tuple(out)


def _reshape_target(node: ir.Node, count: int, sizes: Mapping[str, int]) -> np.ndarray:
    """A target of `count` dims: the declared result where it is known, else all in the last dim."""
    import numpy as np

    declared = node.outputs[0].shape
    if declared is not None and len(declared) == count:
        known = [size_of(dim, sizes) for dim in declared]
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
    return size_of(data.shape[axis], sizes) or 1


def _total_keys(node: ir.Node, sizes: Mapping[str, int]) -> int:
    query, past = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
    current = size_of(query.shape[1], sizes) if query is not None and query.shape is not None else None
    before = size_of(past.shape[2], sizes) if past is not None and past.shape is not None else 0
    return max(1, (current or 1) + (before or 0))


def bindings_of(model: ir.Model, runner: Runner, seed: int = 0) -> tuple[list[dict[str, int]], list[str]]:
    """`find_bindings` asking a runner of the model; also what the runtime said of the assignments that it refused.

    Raises:
        RuntimeDied: it crashed or hung on one.
    """
    refused: list[str] = []

    def accepts(binding: dict[str, int]) -> bool:
        try:
            runner.run(make_feeds(model, seed, binding))
        except RuntimeDied:
            raise
        except GraphoptError as error:
            refused.append(str(error))
            return False
        return True

    return find_bindings(model, accepts), refused
