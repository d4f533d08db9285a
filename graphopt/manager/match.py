"""`m`: what a rule sees of the place it matched. Every question that has no answer raises NoMatch with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_scalar, const_tensor, nbytes

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context


class Match:
    """One place in the model: the root node, the nodes named in the pattern, and questions about values."""

    def __init__(self, ctx: Context, root: ir.Node) -> None:
        self.ctx = ctx
        self.root = root
        self.named: dict[str, ir.Node] = {}
        self.interior: list[ir.Node] = []
        """Matched nodes other than the root that the rewrite stands for."""

    def __getitem__(self, name: str) -> ir.Node:
        return self.named[name]

    def has(self, name: str) -> bool:
        """True when the pattern node of that name was matched (in an alternative or optional part)."""
        return name in self.named

    def require(self, condition: object, reason: str) -> None:
        """Raise NoMatch with the reason unless the condition holds."""
        if not condition:
            raise NoMatch(reason)

    # -- constants ----------------------------------------------------------------------------------------------

    def is_const(self, value: ir.Value | None) -> bool:
        return const_tensor(value) is not None

    def const(self, value: ir.Value | None) -> np.ndarray:
        """The constant's contents."""
        tensor = const_tensor(value)
        if tensor is None:
            raise NoMatch(f"{_name(value)} is not constant")
        if nbytes(tensor) > self.ctx.max_bytes:
            raise NoMatch(f"{_name(value)} has {nbytes(tensor)} bytes, over the limit of {self.ctx.max_bytes}")
        array = const_array(value, self.ctx.max_bytes)
        assert array is not None
        return array

    def scalar(self, value: ir.Value | None) -> Any:
        """The one element of a constant of one element, of any rank."""
        element = const_scalar(value)
        if element is None:
            raise NoMatch(f"{_name(value)} is not a constant scalar")
        return element

    def ints(self, value: ir.Value | None) -> tuple[int, ...]:
        """The elements of an integer tensor of rank 0 or 1 that is constant or known from shape arithmetic."""
        if value is None:
            raise NoMatch("an input is absent")
        known = self.ctx.shapes.values(value)
        if known is None:
            raise NoMatch(f"the elements of {_name(value)} are not known")
        if not all(isinstance(item, int) for item in known):
            raise NoMatch(f"some elements of {_name(value)} are symbolic")
        return tuple(int(item) for item in known)  # type: ignore[arg-type]

    # -- types and shapes ---------------------------------------------------------------------------------------

    def dims(self, value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...]:
        """The dims, static or symbolic."""
        if value is None or value.shape is None:
            raise NoMatch(f"the rank of {_name(value)} is unknown")
        return tuple(value.shape)

    def rank(self, value: ir.Value | None) -> int:
        return len(self.dims(value))

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The dims when all are static."""
        dims = self.dims(value)
        if not all(isinstance(dim, int) for dim in dims):
            raise NoMatch(f"the shape of {_name(value)} is not static: {list(map(str, dims))}")
        return tuple(int(dim) for dim in dims)  # type: ignore[arg-type]

    def dim(self, value: ir.Value | None, axis: int) -> int:
        """One static dim."""
        dims = self.dims(value)
        if not -len(dims) <= axis < len(dims):
            raise NoMatch(f"{_name(value)} has rank {len(dims)}, no axis {axis}")
        found = dims[axis]
        if not isinstance(found, int):
            raise NoMatch(f"dim {axis} of {_name(value)} is not static: {found}")
        return found

    def dtype(self, value: ir.Value | None) -> ir.DataType:
        if value is None or value.dtype is None:
            raise NoMatch(f"the type of {_name(value)} is unknown")
        return value.dtype

    def is_float(self, value: ir.Value | None) -> bool:
        return self.dtype(value).is_floating_point()

    def equal(self, a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
        """True when two dims are provably equal."""
        return self.ctx.shapes.equal(a, b)

    def same_shape(self, a: ir.Value, b: ir.Value) -> bool:
        """True when two values provably have the same shape."""
        return self.ctx.shapes.same_shape(a, b)

    def axis(self, axis: int, rank: int) -> int:
        """A non-negative axis."""
        if not -rank <= axis < rank:
            raise NoMatch(f"axis {axis} is out of range for rank {rank}")
        return axis % rank

    # -- nodes --------------------------------------------------------------------------------------------------

    def attr(self, node: ir.Node | str, name: str, default: Any = None) -> Any:
        """An attribute's value (str, int, float, tuple, tensor), or the default when it is not set."""
        node = self.named[node] if isinstance(node, str) else node
        attr = node.attributes.get(name)
        if attr is None:
            return default
        if attr.is_ref():
            raise NoMatch(f"attribute {name!r} of {node.name!r} is a function parameter")
        return attr.value

    def axes(self, node: ir.Node, position: int = 1) -> tuple[int, ...] | None:
        """The axes of a reduction, Squeeze or Unsqueeze: from the attribute or the input; None when not given."""
        given = self.attr(node, "axes")
        if given is not None:
            return tuple(given)
        if len(node.inputs) > position and node.inputs[position] is not None:
            return self.ints(node.inputs[position])
        return None

    def input(self, index: int, node: ir.Node | None = None) -> ir.Value | None:
        """An input of the root (or of `node`), None when absent."""
        inputs = (node or self.root).inputs
        return inputs[index] if index < len(inputs) else None

    def producer(self, value: ir.Value | None, *op_types: str) -> ir.Node:
        """The node that makes the value, when it is one of the ops and stands in the root's graph."""
        node = value.producer() if value is not None else None
        if node is None or node.domain != "" or node.op_type not in op_types or node.graph is not self.root.graph:
            raise NoMatch(
                f"{_name(value)} is made by {node.op_type if node else 'no node'}, not {' or '.join(op_types)}"
            )
        return node

    def sole_use(self, value: ir.Value) -> None:
        """Raise unless the value has exactly one use and is no graph output."""
        if len(value.uses()) != 1 or value.is_graph_output():
            raise NoMatch(
                f"multiple-uses: {_name(value)} has {len(value.uses())} uses"
                + (" and is an output" if value.is_graph_output() else "")
            )

    def opset(self, domain: str = "") -> int:
        return self.ctx.rewriter.opset(domain, self.root)

    def supports(self, op_type: str, domain: str = "", like: ir.Value | None = None) -> None:
        """Raise unless the target (or, without one, the standard) offers the op for the element type of `like`."""
        dtype = like.dtype.name if like is not None and like.dtype is not None else None
        reason = self.ctx.supports(op_type, domain, dtype)
        if reason is not None:
            raise NoMatch(reason)

    def not_quantized(self, values: Sequence[ir.Value | None]) -> None:
        """Raise when a value comes from or goes to a quantize/dequantize node: such groups are left as they are."""
        from graphopt.ir.optable import QUANTIZED_OPS

        if not self.ctx.rewriter.index.has(QUANTIZED_OPS):
            return  # a value may have very many uses
        for value in values:
            if value is None:
                continue
            producer = value.producer()
            near = ([producer] if producer is not None else []) + [use.node for use in value.uses()]
            if any(node.op_type in QUANTIZED_OPS for node in near):
                raise NoMatch(f"{_name(value)} belongs to a quantize/dequantize group")


def _name(value: ir.Value | None) -> str:
    return f"value {value.name!r}" if value is not None else "an absent input"
