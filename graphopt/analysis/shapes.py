"""Shapes, element types and small integer contents of every value, with symbolic dimensions.

Driven per node: own rules (`shape_rules`, `shape_control`) where soundness or values need them, the package
`onnx-shape-inference` (`shape_package`) for all other ops; what neither can do is listed in `blocked`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graphopt.analysis import dims
from graphopt.analysis.binding import bind_dims, set_input_shapes
from graphopt.analysis.shape_result import UNDETERMINED, Blocked, Result
from graphopt.analysis.shape_symbols import Symbols
from graphopt.analysis.shape_values import wraps
from graphopt.ir.constants import const_tensor
from graphopt.ir.sites import subgraphs

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim

__all__ = ["Blocked", "Result", "Shapes", "bind_dims", "set_input_shapes"]

# Longer integer tensors are data, not shape arithmetic.
MAX_VALUES = 64

# Marks a model object whose inner shapes were all put there by inference, so that they may refine a later one.
MARK = "graphopt.analysis.shapes"

_MAX_NESTING = 100


class Shapes:
    """Shape analysis of one model. Results stand on the values themselves (`value.shape`, `value.dtype`).

    The declared types of graph inputs and outputs are never changed: `dims` has what was inferred for an output.
    Declared shapes of inner values are replaced by inferred ones, and kept only behind ops that nothing is known of.
    """

    blocked: list[Blocked]

    def __init__(self, model: ir.Model) -> None:
        from graphopt.analysis.shape_package import infer_by_package
        from graphopt.analysis.shape_quantized import MICROSOFT_RULES
        from graphopt.analysis.shape_rules import RULES

        self._rules: dict[str, Mapping[str, Any]] = {"": RULES, "com.microsoft": MICROSOFT_RULES}
        self._by_package = infer_by_package
        self.model = model
        self.blocked = []
        self.opsets: dict[str, int] = dict(model.opset_imports)
        self.symbols = Symbols()
        self.override = 0
        self.nesting = 0
        self._outputs: set[ir.Value] = set()
        self._trusted = False
        self._seen: dict[ir.Value, tuple[object, tuple[Dim, ...] | None]] = {}
        self._values: dict[ir.Value, tuple[Dim, ...] | None] = {}
        self._broadcasts: dict[tuple[str, str], Dim] = {}
        self._parts: dict[str, tuple[Dim, Dim]] = {}
        self._learn_interface()

    # ---- running ---------------------------------------------------------------------------------------------------

    def infer(self) -> Shapes:
        """Infer the whole model, subgraphs and functions included; return self. Ops that fail are in `blocked`."""
        from graphopt.analysis.shape_functions import FunctionCalls

        self.blocked.clear()
        self._values.clear()
        self._seen.clear()
        self._learn_interface()
        self.functions = FunctionCalls(self)
        self._trusted = bool(self.model.meta.get(MARK))
        self.graph(self.model.graph)
        self.functions.finish()
        self._trusted = True
        self.model.meta[MARK] = True
        return self

    def infer_node(self, node: ir.Node) -> None:
        """Infer one node whose inputs are known; what its outputs have already is kept where it says more."""
        self._trusted = True
        self._node(node)
        self.functions.finish()

    def graph(self, graph: ir.Graph | ir.Function) -> None:
        """Infer the nodes of one graph in their order (a topological one)."""
        from graphopt import ir

        if self.nesting >= _MAX_NESTING:
            return
        self.nesting += 1
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                self._initializer(value)
        for node in graph:
            self._node(node)
        self.nesting -= 1

    def _node(self, node: ir.Node) -> None:
        results: Sequence[Result] | None = None
        reason = ""
        try:
            rule = self._rules[node.domain].get(node.op_type) if node.domain in self._rules else None
            if rule is not None:
                results = rule(self, node)
            elif self.functions.is_call(node):
                results = self.functions.call(node)
            elif node.attributes:
                for _, graph in subgraphs(node):
                    self.graph(graph)
            if results is None:
                results = self._by_package(self, node)
        except Exception as error:  # a rule may raise anything on a malformed node; the node is reported
            reason = " ".join(str(error).split()) or type(error).__name__
            results = ()
        if results is None:
            self._keep_declared(node)
            return
        if reason:
            self.block(node, reason)
        blank = Result()
        for index, output in enumerate(node.outputs):
            result = results[index] if index < len(results) else blank
            if result.dims is None and result.type is None and not reason and output.name:
                self._undetermined(node)
            self.publish(output, result)

    def _undetermined(self, node: ir.Node) -> None:
        """Note a node that loses the rank although the ranks of all its inputs are known."""
        if all(value is None or self.dims(value) is not None for value in node.inputs):
            self.block(node, UNDETERMINED)

    def block(self, node: ir.Node, reason: str) -> None:
        """Note that a node could not be inferred."""
        self.blocked.append(Blocked(node, node.domain, node.op_type, reason))

    def _keep_declared(self, node: ir.Node) -> None:
        """An op that nothing is known of: what the model declares for its outputs stands."""
        if any(output.shape is None for output in node.outputs if output.name):
            self.block(node, "no shape inference is registered for this op, and the model declares no shape")
        for output in node.outputs:
            self._values[output] = None

    # ---- reading ---------------------------------------------------------------------------------------------------

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Inferred dimensions, each an int or a named symbol; None when the rank is unknown."""
        if value is None:
            return None
        shape = value.shape
        seen = self._seen.get(value)
        # A value that became a graph output has the declared shape now; what was inferred for it still holds.
        if seen is not None and (seen[0] is shape or value.is_graph_output()):
            return seen[1]
        if shape is None:
            return None
        named = tuple(dim if isinstance(dim, int) and dim >= 0 else self.symbols.name(dim) for dim in shape)
        self._seen[value] = (shape, named)
        return named

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type, None when it is unknown or the value is no tensor."""
        return value.dtype if value is not None else None

    def values(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The elements of an integer or bool tensor of rank 0 or 1 (bools as 0 and 1), as far as known.

        Each is an int or a symbol; a symbol that is no size starts with `_v` and may be negative. None when nothing
        is known or the tensor has over 64 elements. A scalar gives one element: its `dims` are ().
        """
        if value is None:
            return None
        if value in self._values:
            return self._values[value]
        known = self.constant_values(value)
        self._values[value] = known
        return known

    def ints(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The elements when all of them are numbers."""
        known = self.values(value)
        if known is None:
            return None
        numbers = tuple(element for element in known if isinstance(element, int))
        return numbers if len(numbers) == len(known) else None

    def equal(self, a: Dim | None, b: Dim | None) -> bool:
        """Whether two dimensions are the same for every binding; an unknown one equals nothing, not even itself."""
        if a is None or b is None:
            return False
        return dims.equal(self.symbols.known_name(a), self.symbols.known_name(b))

    def evaluate(self, dim: Dim, bindings: Mapping[str, int]) -> int | None:
        """The number of a dimension under bindings of the model's symbols; None when one is missing."""
        names = dims.symbols(dim)
        inner = {name: self._evaluate_parts(name, bindings) for name in names if name in self._parts}
        return dims.evaluate(dim, {**bindings, **{name: size for name, size in inner.items() if size is not None}})

    def broadcast_of(self, name: str) -> tuple[Dim, Dim] | None:
        """The two dims whose broadcast a symbol stands for; None for other symbols."""
        return self._parts.get(name)

    def _evaluate_parts(self, name: str, bindings: Mapping[str, int]) -> int | None:
        a, b = (self.evaluate(part, bindings) for part in self._parts[name])
        return b if a == 1 or a == b else a if b == 1 else None

    def same_shape(self, a: ir.Value | None, b: ir.Value | None) -> bool:
        """Whether both ranks are known and all dimensions equal."""
        left, right = self.dims(a), self.dims(b)
        if left is None or right is None or len(left) != len(right):
            return False
        return all(dims.equal(x, y) for x, y in zip(left, right, strict=True))

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape when every dimension is a number."""
        known = self.dims(value)
        if known is None:
            return None
        numbers = tuple(dim for dim in known if isinstance(dim, int))
        return numbers if len(numbers) == len(known) else None

    def numel(self, value: ir.Value | None) -> Dim | None:
        """The number of elements, an int or an expression; None when the rank is unknown."""
        known = self.dims(value)
        return None if known is None else dims.product(known)

    def broadcasts_to(self, a: ir.Value | None, b: ir.Value | None) -> bool:
        """Whether `a` provably broadcasts to exactly the shape of `b` (b's shape is the result)."""
        left, right = self.dims(a), self.dims(b)
        if left is None or right is None or len(left) > len(right):
            return False
        pairs = zip(left, right[len(right) - len(left) :], strict=True)
        return all(x == 1 or dims.equal(x, y) for x, y in pairs)

    # ---- for the rules ---------------------------------------------------------------------------------------------

    def fresh(self, prefix: str = "_d") -> Dim:
        """A new symbol, for a dimension of which nothing is known."""
        return self.symbols.fresh(prefix)

    def fresh_data(self) -> Dim:
        """A new symbol for an unknown element of an integer tensor, which may be negative."""
        return self.fresh(dims.DATA_PREFIX)

    def as_dim(self, element: Dim) -> Dim:
        """A tensor element used as a dimension: itself when provably not negative, else a new symbol."""
        return element if dims.nonnegative(element) else self.fresh()

    def known(self, dim: Dim) -> Dim:
        """The dimension in canonical text, a new symbol in place of an unknown one."""
        if isinstance(dim, int):
            return dim
        canonical = dims.canonical(dim)
        return self.fresh() if dims.is_unknown(canonical) else canonical

    def broadcast(self, a: Dim, b: Dim) -> Dim:
        """The broadcast of two dimensions. Different symbols give one new symbol per pair: either may be 1."""
        if a == 1 or dims.equal(a, b):
            return b
        if b == 1 or (isinstance(a, int) and not isinstance(b, int)):
            return a
        if isinstance(b, int):
            if isinstance(a, int):
                raise ValueError(f"dimensions {a} and {b} do not broadcast")
            return b
        for small, large in ((a, b), (b, a)):
            if _broadcasts_to_larger(small, large):
                return large
        key = (str(a), str(b)) if str(a) < str(b) else (str(b), str(a))
        symbol = self._broadcasts.get(key)
        if symbol is None:
            symbol = self._broadcasts[key] = self.fresh()
            self._parts[str(symbol)] = (a, b)
        return symbol

    def broadcast_shapes(self, shapes: Sequence[Sequence[Dim] | None]) -> list[Dim] | None:
        """The broadcast of several shapes, None when one has unknown rank."""
        out: list[Dim] = []
        for shape in shapes:
            if shape is None:
                return None
            out[:0] = [1] * (len(shape) - len(out))
            first = len(out) - len(shape)
            for index, dim in enumerate(shape, first):
                out[index] = dim if out[index] == 1 else self.broadcast(out[index], dim)
        return out

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Within, inferred shapes replace what values have: for bodies that are inferred more than once."""
        self.override += 1
        try:
            yield
        finally:
            self.override -= 1

    def publish(self, value: ir.Value, result: Result) -> None:
        """Put a result on a value; on a graph output it is only remembered."""
        from graphopt import ir

        self._set_type(value, result)
        interface = value in self._outputs
        if result.dims is not None:
            new = tuple(dim if isinstance(dim, int) else self.known(dim) for dim in result.dims)
            new = self._refined(value, new)
            if interface:
                self._seen[value] = (value.shape, new)
            else:
                if value.shape is None or value.shape.dims != new:
                    value.shape = ir.Shape(new)
                self._seen[value] = (value.shape, new)
        elif interface:
            self._seen[value] = (value.shape, None)
        elif self.override or not self._trusted:
            value.shape = None
        elements = result.values
        if elements is not None and len(elements) <= MAX_VALUES:
            self._values[value] = tuple(
                self.fresh_data() if dims.is_unknown(e) or wraps(e, value.dtype) else e for e in elements
            )
        else:
            self._values[value] = None

    def _refined(self, value: ir.Value, new: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """`new`, with the dimensions that the value knows better from earlier inference."""
        if self.override or not self._trusted or value in self._outputs:
            return new
        old = self.dims(value)
        if old is None or len(old) != len(new) or old == new:
            return new
        return tuple(self._better(o, n) for o, n in zip(old, new, strict=True))

    def _better(self, old: Dim, new: Dim) -> Dim:
        """The earlier dimension where the new one is a symbol made just now, or a symbol in place of a number."""
        if isinstance(new, int) or not (isinstance(old, int) or new.value in self.symbols.minted):
            return new
        parts = self._parts.get(str(new))
        if parts is not None and not isinstance(old, int) and str(old) not in self._parts:
            # The symbol of this broadcast from an earlier inference goes on standing for it.
            a, b = map(str, parts)
            self._broadcasts[(a, b) if a < b else (b, a)] = old
            self._parts[str(old)] = parts
        return old

    def _set_type(self, value: ir.Value, result: Result) -> None:
        from graphopt import ir

        if result.type is not None:
            if value.type is None or (value not in self._outputs and value.type != result.type):
                value.type = result.type
        elif (
            result.dtype is not None
            and value.dtype is not result.dtype
            and (value.type is None or value not in self._outputs)
        ):
            # A type object may be shared between values, so it is replaced, never written to.
            value.type = ir.TensorType(result.dtype)

    # ---- names and constants ---------------------------------------------------------------------------------------

    def _learn_interface(self) -> None:
        from graphopt.analysis.shape_functions import FunctionCalls

        self.functions = FunctionCalls(self)
        self._outputs = {*self.model.graph.outputs}
        self.symbols.learn(self.model)

    def _initializer(self, value: ir.Value) -> None:
        """The tensor is the truth about an initializer, whatever is declared."""
        from graphopt import ir

        tensor = value.const_value
        if tensor is None or value.is_graph_input():
            return
        size = tensor.shape.numpy()
        if value.shape is None or value.shape.dims != size:
            value.shape = ir.Shape(size)
        if value.dtype is not tensor.dtype:
            value.type = ir.TensorType(tensor.dtype)

    def constant_values(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """The elements of a small integer or bool constant."""
        from graphopt import ir

        tensor = const_tensor(value)
        if tensor is None or len(tensor.shape) > 1 or tensor.size > MAX_VALUES:
            return None
        if not (tensor.dtype.is_integer() or tensor.dtype == ir.DataType.BOOL):
            return None
        return tuple(int(element) for element in tensor.numpy().reshape(-1))


def _broadcasts_to_larger(small: Dim, large: Dim) -> bool:
    """Whether two symbolic dimensions can only broadcast to the larger one, as `min(128, n)` and `n`.

    They broadcast where they are equal or one of them is 1; a larger one of 1 leaves the smaller one 1 too.
    """
    name = "" if isinstance(large, int) else large.value or ""
    return (
        name.isidentifier() and dims.equal(dims.minimum(small, large), small) and dims.evaluate(small, {name: 1}) == 1
    )
