"""The table of ops: who lowers an op, for which element types, and what a single node may not ask for.

    @lowers("Selu", dtypes=FLOATS)
    def selu(c: Lowering, n: View) -> Expr: ...

    why_not(View(node, shapes, version))        # None, or the reason for which the node cannot be lowered

Answers need no TVM. An op that is not in the table is unsupported.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.analysis import dims as dim_math

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shapes import Shapes
    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Emit = Callable[[Lowering, View], Any]
    Check = Callable[[View], str | None]

FLOATS = frozenset({"float32", "float64", "float16"})
INTS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"})
NUMBERS = FLOATS | INTS
ALL = NUMBERS | {"bool"}
MOVES_DATA = ALL

_FAMILIES = ("elementwise", "linear", "pooling", "reduction", "normalization", "movement", "indexing", "quantized",
             "recurrent", "control", "resize", "four_bits", "attention")  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """How one op is lowered.

    Attributes:
        emit: returns a Relax expression, or one per output (None for outputs that nobody reads).
        dtypes: element types that the first tensor operand (or output) may have.
        check: None when this node can be lowered, else why not, from attributes, constants and shapes.
        data: operand whose element type counts.
        domain: of the op; "" is the standard one.
    """

    emit: Emit
    dtypes: frozenset[str]
    check: Check | None = None
    data: int = 0
    domain: str = ""


_RULES: dict[str, Rule] = {}


def lowers(
    *ops: str, dtypes: frozenset[str] = ALL, check: Check | None = None, data: int = 0, domain: str = ""
) -> Callable[[Emit], Emit]:
    """Put a function into the table as the rule of these ops."""

    def add(emit: Emit) -> Emit:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"two rules lower {op}")
            _RULES[op] = Rule(emit, dtypes, check, data, domain)
        return emit

    return add


@functools.cache
def rules() -> dict[str, Rule]:
    """Every rule by op type; no two domains have a rule for the same one."""
    for family in _FAMILIES:
        importlib.import_module(f"graphopt.targets.tvm.lowering.{family}")
    return _RULES


def why_not_op(domain: str, op_type: str, dtype: str | None = None) -> str | None:
    """None when some node of this op (and element type, e.g. "FLOAT16") can be lowered; else why none can."""
    rule, domain = rules().get(op_type), "" if domain == "ai.onnx" else domain
    if domain and (rule is None or rule.domain != domain):
        return f"TVM's lowering does not know {op_type} of domain {domain}"
    if rule is None or rule.domain != domain:
        return f"{op_type} has no lowering to TVM"
    if dtype is not None and _spelling(dtype) not in rule.dtypes:
        return f"{op_type} on {_spelling(dtype)} has no lowering to TVM"
    return None


def why_not(n: View) -> str | None:
    """None when this node can be lowered; else why not, in one line."""
    if known_elements(n) is not None:
        return None
    missing = why_not_op(n.node.domain, n.op)
    if missing is not None:
        return missing
    rule = rules()[n.op]
    dtype = n.dtype(rule.data) if n.has(rule.data) else n.out_dtype()
    if dtype not in rule.dtypes:
        return f"{n.op} on {dtype or 'a value that is no tensor'} has no lowering to TVM"
    return _unknown_shape(n) or (rule.check(n) if rule.check is not None else None)


def known_elements(n: View) -> tuple[Any, ...] | None:
    """Elements of an integer output that shape analysis knows, numbers or sizes; None when some are not known."""
    if len(n.node.outputs) != 1 or n.out_dtype() not in ("int64", "int32") or n.out_dims() is None:
        return None
    elements = n.shapes.values(n.node.outputs[0])
    if elements is None or len(n.out_dims() or ()) > 1:
        return None
    for item in elements:
        if not isinstance(item, int) and (dim_math.is_unknown(item) or not dim_math.nonnegative(item)):
            return None
    return elements if elements else None


def _unknown_shape(n: View) -> str | None:
    for kind, values in (("input", n.node.inputs), ("output", n.node.outputs)):
        for value in values:
            if value is None or not value.name:
                continue
            dims = n.shapes.dims(value)
            if dims is None:
                return f"the rank of {kind} {value.name!r} is not known; fix the input sizes with --input-shapes"
            if any(dim_math.is_unknown(dim) for dim in dims):
                return f"a dim of {kind} {value.name!r} is not known; fix the input sizes with --input-shapes"
            if 0 in dims and n.op != "Resize":  # its empty operands are not read
                return f"{kind} {value.name!r} has no elements, which TVM does not take"
            if any(not symbols_of(n.shapes, dim) <= _defined(n.shapes) for dim in dims):
                return f"a dim of {kind} {value.name!r} does not follow from the input sizes"
    return None


def symbols_of(shapes: Shapes, dim: Dim) -> frozenset[str]:
    """Symbols that a dim is computed from; the broadcast of two dims is computed from the first."""
    found: set[str] = set()
    for name in dim_math.symbols(dim):
        both = shapes.broadcast_of(name)
        found |= {name} if both is None else symbols_of(shapes, both[0])
    return frozenset(found)


def broadcasts(shapes: Shapes, value: ir.Value | None) -> set[tuple[Dim, Dim]]:
    """Pairs of dims whose broadcast is a dim of a value."""
    names = {name for dim in shapes.dims(value) or () for name in dim_math.symbols(dim)}
    return {both for name in names if (both := shapes.broadcast_of(name)) is not None}


@functools.lru_cache(maxsize=4)
def _defined(shapes: Shapes) -> frozenset[str]:
    """Symbols that are a dim of an input of the model."""
    return defined_by(shapes, shapes.model.graph.inputs)


def defined_by(shapes: Shapes, values: Iterable[ir.Value]) -> frozenset[str]:
    """Symbols that are by themselves a dim of one of the values."""
    dims = [dim for value in values for dim in shapes.dims(value) or ()]
    return frozenset(name for dim in dims if dim_math.symbols(dim) == {name := str(getattr(dim, "value", ""))})


_SPELLINGS = {"FLOAT": "float32", "DOUBLE": "float64"}


def _spelling(dtype: str) -> str:
    """ONNX's name of an element type as numpy spells it."""
    return _SPELLINGS.get(dtype, dtype.lower())
