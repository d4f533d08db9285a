"""A node as a rule reads it: attributes with defaults, constant operands, shapes and element types. Knows no TVM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.constants import const_array

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shapes import Shapes

MAX_OPERAND = 1 << 20
"""Bytes of an operand that is read as numbers (axes, pads, scales); larger ones are data."""


@dataclass(frozen=True)
class View:
    """One node; `version` is the opset of its domain."""

    node: ir.Node
    shapes: Shapes
    version: int

    @property
    def op(self) -> str:
        return self.node.op_type

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value; strings as str, lists as tuples."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        return tuple(found.value) if isinstance(found.value, list | tuple) else found.value

    def value(self, index: int) -> ir.Value | None:
        """An operand; None when it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def has(self, index: int) -> bool:
        return self.value(index) is not None

    def wants(self, index: int) -> bool:
        """Whether an output is read by anything."""
        if index >= len(self.node.outputs):
            return False
        out = self.node.outputs[index]
        return bool(out.name) and (bool(out.uses()) or out.is_graph_output())

    def const(self, index: int, max_bytes: int = MAX_OPERAND) -> np.ndarray | None:
        """The contents of a constant operand; None when it is no constant, absent, or larger than `max_bytes`."""
        return const_array(self.value(index), max_bytes)

    def dims(self, index: int) -> tuple[Dim, ...] | None:
        """Dims of an operand; None when the rank is unknown."""
        return self.shapes.dims(self.value(index))

    def out_dims(self, index: int = 0) -> tuple[Dim, ...] | None:
        return self.shapes.dims(self.node.outputs[index])

    def static(self, index: int) -> tuple[int, ...] | None:
        """Dims of an operand when all are numbers."""
        return self.shapes.static(self.value(index))

    def rank(self, index: int) -> int:
        """Rank of an operand.

        Raises:
            ValueError: it is unknown; `why_not` refuses such nodes before.
        """
        dims = self.dims(index)
        if dims is None:
            raise ValueError(f"the rank of operand {index} of {self.op} is unknown")
        return len(dims)

    def dtype(self, index: int) -> str:
        """Element type of an operand as numpy spells it; "" when it is unknown or no tensor."""
        return dtype_name(self.value(index))

    def out_dtype(self, index: int = 0) -> str:
        return dtype_name(self.node.outputs[index])

    def axis(self, default: int, of: int = 0) -> int:
        """The attribute `axis`, counted from the front of an operand."""
        axis = int(self.attr("axis", default))
        return axis + self.rank(of) if axis < 0 else axis

    def ints(self, index: int, name: str) -> tuple[int, ...] | None:
        """Integers that are an operand in newer opsets and the attribute `name` in older ones; None when not known."""
        if name in self.node.attributes:
            return tuple(int(item) for item in self.attr(name))
        return self.shapes.ints(self.value(index))

    def elements(self, index: int) -> tuple[Dim, ...] | None:
        """The elements of a small integer operand, numbers or symbols."""
        return self.shapes.values(self.value(index))


def dtype_name(value: ir.Value | None) -> str:
    """Element type as numpy (or ml_dtypes) spells it, "" when unknown."""
    dtype = value.dtype if value is not None else None
    if dtype is None or dtype.name in ("UNDEFINED", "STRING"):
        return "string" if dtype is not None and dtype.name == "STRING" else ""
    return str(dtype.numpy().name)
