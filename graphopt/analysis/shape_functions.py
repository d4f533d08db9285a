"""Inference through the model's own functions: a call infers the body with the shapes of its arguments.

One body serves many calls. Results are kept per distinct signature, and a body that was called with several ends up
with the shapes that hold for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graphopt.analysis import dims
from graphopt.analysis.shape_control import join
from graphopt.analysis.shape_result import Result
from graphopt.ir.sites import subgraphs

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes

_Key = tuple[str, str, str]


class FunctionCalls:
    """The calls seen so far: results by signature, and per function the arguments that hold for every call."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.results: dict[Any, tuple[list[Result], int]] = {}
        self.arguments: dict[_Key, list[Result]] = {}
        self.calls: dict[_Key, int] = {}
        self.stale: list[_Key] = []
        self.active: set[_Key] = set()
        self.done = False

    def is_call(self, node: ir.Node) -> bool:
        """Whether the node calls a function of the model."""
        return bool(self.shapes.model.functions) and node.op_identifier() in self.shapes.model.functions

    def call(self, node: ir.Node) -> Sequence[Result] | None:
        """Results of a call, None for a recursive one (which ONNX forbids)."""
        s = self.shapes
        key: _Key = node.op_identifier()
        if key in self.active:
            return None
        function = s.model.functions[key]
        arguments = [Result(s.dtype(v), s.dims(v), s.values(v), v.type if v is not None else None) for v in node.inputs]
        arguments += [Result()] * (len(function.inputs) - len(arguments))
        signature = (key, tuple(map(_print, arguments)), str([(a.name, a.value) for a in node.attributes.values()]))
        if signature not in self.results:
            mark = s.symbols.counter
            self._note(key, arguments)
            results = self._body(key, function, arguments, node)
            self.results[signature] = (results, mark)
            return results
        results, mark = self.results[signature]
        return [self._renewed(result, mark) for result in results]

    def finish(self) -> None:
        """Leave every body with shapes that hold for all its calls; infer bodies that nothing calls."""
        for key, function in self.shapes.model.functions.items():
            if key not in self.calls and not self.done:
                self.calls[key] = 0
                self._body(key, function, [Result()] * len(function.inputs), None)
        self.done = True
        while self.stale:
            key = self.stale.pop(0)
            self._body(key, self.shapes.model.functions[key], self.arguments[key], None)

    def _note(self, key: _Key, arguments: list[Result]) -> None:
        """Join the arguments of one more distinct call with those of the earlier ones."""
        self.calls[key] = self.calls.get(key, 0) + 1
        seen = self.arguments.get(key)
        if seen is None:
            self.arguments[key] = [argument._replace(values=None) for argument in arguments]
            return
        self.arguments[key] = [
            Result(a.dtype if a.dtype == b.dtype else None, join(self.shapes, a.dims, b.dims), None, a.type)
            for a, b in zip(seen, arguments, strict=True)
        ]
        if key not in self.stale:
            self.stale.append(key)

    def _body(self, key: _Key, function: ir.Function, arguments: list[Result], call: ir.Node | None) -> list[Result]:
        from graphopt import ir

        s = self.shapes
        outer_opsets, s.opsets = s.opsets, {**s.opsets, **function.opset_imports}
        self.active.add(key)
        try:
            with s.replacing(), _resolved(function, call):
                for value, argument in zip(function.inputs, arguments, strict=True):
                    tensor = argument.type is None or isinstance(argument.type, ir.TensorType)
                    s.publish(value, argument._replace(type=None) if tensor else Result(type=argument.type))
                s.graph(function)
            return [
                Result(v.dtype, s.dims(v), s.values(v))
                if v.type is None or isinstance(v.type, ir.TensorType)
                else Result(type=v.type)
                for v in function.outputs
            ]
        finally:
            s.opsets = outer_opsets
            self.active.discard(key)

    def _renewed(self, result: Result, mark: int) -> Result:
        """A kept result for another call: what the body made up is made up anew."""
        s = self.shapes
        if result.dims is None:
            return result
        fresh = tuple(s.fresh() if s.symbols.minted_since(mark, dims.symbols(dim)) else dim for dim in result.dims)
        values = result.values
        if values is not None and any(s.symbols.minted_since(mark, dims.symbols(element)) for element in values):
            values = None
        return result._replace(dims=fresh, values=values)


def _print(result: Result) -> str:
    size = None if result.dims is None else [str(dim) for dim in result.dims]
    values = None if result.values is None else [str(element) for element in result.values]
    return f"{result.dtype}{size}{values}{result.type}"


@contextmanager
def _resolved(function: ir.Function, call: ir.Node | None) -> Iterator[None]:
    """Within, attributes of body nodes that refer to the function's attributes have the values of this call."""
    from graphopt import ir

    replaced: list[tuple[ir.Node, str, ir.Attr]] = []
    given = {} if call is None else call.attributes
    try:
        for node in _nodes(function):
            for name, attr in list(node.attributes.items()):
                if not attr.is_ref():
                    continue
                actual = given.get(attr.ref_attr_name or "") or function.attributes.get(attr.ref_attr_name or "")
                replaced.append((node, name, attr))
                if actual is not None and actual.value is not None:
                    node.attributes[name] = ir.Attr(name, actual.type, actual.value)
        yield
    finally:
        for node, name, attr in replaced:
            node.attributes[name] = attr


def _nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    stack: list[ir.Graph | ir.Function] = [graph]
    while stack:
        for node in stack.pop():
            yield node
            if node.attributes:
                stack.extend(inner for _, inner in subgraphs(node))
