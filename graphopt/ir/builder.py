"""`op.Conv(x, w, group=2)`: makes new nodes for a rewrite, typed and shape-inferred, not yet in any graph.

The Rewriter inserts them when the rewrite is committed and takes them back when it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import PassError
from graphopt.ir import optable

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.rewriter import Rewriter

    Operand = "ir.Value | None | int | float | bool | Sequence[int] | np.ndarray"


class NoMatch(Exception):
    """A rule does not apply here; the message is the reason that remarks and `explain` print."""


class Builder:
    """Creates nodes on behalf of one rewrite at `anchor`, whose graph they will join."""

    def __init__(self, rewriter: Rewriter, anchor: ir.Node) -> None:
        self._rewriter = rewriter
        self.anchor = anchor
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: Any, **attributes: Any) -> Any:
            return self.node(op_type, *inputs, **attributes)

        return make

    def node(self, op_type: str, *inputs: Any, _domain: str = "", _outputs: int = 1, **attributes: Any) -> Any:
        """Add a node. Inputs are Values, None (absent), or numpy arrays / numbers that become constants.

        Returns:
            The output Value, or a tuple of them when `_outputs` > 1.

        Raises:
            NoMatch: the op does not exist in the model's opset.
            PassError: unknown attribute or too many inputs: a mistake in the pass.
        """
        from graphopt import ir

        opset = self._rewriter.opset(_domain, self.anchor)
        schema = optable.schema(_domain, op_type, opset)
        if schema is None:
            raise NoMatch(f"{op_type} does not exist in opset {opset} of domain {_domain or 'ai.onnx'!r}")
        if schema.max_inputs >= 0 and len(inputs) > schema.max_inputs:
            raise PassError(f"{op_type} takes at most {schema.max_inputs} inputs in opset {opset}, {len(inputs)} given")
        values = [self._operand(item, inputs) for item in inputs]
        while values and values[-1] is None and len(values) > schema.min_inputs:
            values.pop()
        node = ir.Node(
            _domain,
            op_type,
            values,
            attributes=[_attribute(schema, key, value) for key, value in attributes.items() if value is not None],
            num_outputs=_outputs,
        )
        self.nodes.append(node)
        for output in node.outputs:
            output.name = self._rewriter.fresh_name(f"{self.anchor.name or self.anchor.op_type}_{op_type}")
        self._rewriter.infer(node)
        return node.outputs[0] if _outputs == 1 else tuple(node.outputs)

    def clone(self, node: ir.Node, inputs: Sequence[ir.Value | None], **attributes: Any) -> Any:
        """The same op with other inputs; attributes are kept unless given anew."""
        kept = {name: attr for name, attr in node.attributes.items() if name not in attributes}
        made = self.node(node.op_type, *inputs, _domain=node.domain, _outputs=len(node.outputs), **kept, **attributes)
        return made

    def const(self, array: Any, hint: str = "const", dtype: ir.DataType | None = None) -> ir.Value:
        """A new initializer holding `array` (numpy array, number or list), named after `hint`."""
        from graphopt import ir

        # Not isinstance: a check against the runtime protocol takes 0.1 ms.
        if isinstance(getattr(array, "dtype", None), ir.DataType):
            tensor = array
        else:
            tensor = ir.Tensor(_contiguous(array)) if dtype is None else ir.tensor(_contiguous(array), dtype=dtype)
        if self._rewriter.in_function(self.anchor):  # a function body has no initializers
            return self.node("Constant", value=ir.Attr("value", ir.AttributeType.TENSOR, tensor))
        value = ir.Value(name=self._rewriter.fresh_name(hint), const_value=tensor)
        value.shape = ir.Shape(tensor.shape.numpy())
        value.type = ir.TensorType(tensor.dtype)
        self.constants.append(value)
        # Registered at once so that shape inference of the nodes made next sees a constant.
        graph = self.anchor.graph
        assert graph is not None
        graph.register_initializer(value)
        return value

    def _operand(self, item: Any, inputs: Sequence[Any]) -> ir.Value | None:
        from graphopt import ir

        if item is None or isinstance(item, ir.Value):
            return item
        if isinstance(item, int | float) and not isinstance(item, bool):
            import numpy as np

            like = next((v for v in inputs if isinstance(v, ir.Value) and v.dtype is not None), None)
            if like is None or like.dtype is None:
                raise PassError("a bare number needs a typed Value beside it; pass a numpy array")
            return self.const(np.asarray(item, dtype=like.dtype.numpy()))
        return self.const(item)

    def discard(self) -> None:
        """Take back everything made: the rewrite was not committed."""
        for node in reversed(self.nodes):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        for value in self.constants:
            graph = value.graph
            if graph is not None and value.name is not None:
                graph.initializers.pop(value.name, None)
        self.nodes.clear()
        self.constants.clear()


def _contiguous(array: Any) -> Any:
    import numpy as np

    if isinstance(array, np.ndarray | np.generic):
        return np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
    return np.asarray(array, dtype=np.int64) if _all_ints(array) else np.asarray(array, dtype=np.float32)


def _all_ints(array: Any) -> bool:
    items = array if isinstance(array, list | tuple) else [array]
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)


def _attribute(schema: optable.OpSchema, key: str, value: Any) -> ir.Attr:
    from graphopt import ir

    kind = schema.attributes.get(key)
    if isinstance(value, ir.Attr):
        return value if value.name == key else ir.Attr(key, value.type, value.value)
    if kind is None:
        raise PassError(f"{schema.name} has no attribute {key!r} in opset {schema.since}+")
    convert: dict[str, Callable[[Any], Any]] = {
        "FLOAT": float,
        "INT": int,
        "STRING": str,
        "FLOATS": lambda v: [float(x) for x in v],
        "INTS": lambda v: [int(x) for x in v],
        "STRINGS": lambda v: [str(x) for x in v],
    }
    return ir.Attr(key, ir.AttributeType[kind], convert.get(kind, lambda v: v)(value))
