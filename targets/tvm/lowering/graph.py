"""The order of things: a model's graphs, branches first, as Relax functions of one module.

module = lower(model)           # one function `main`: inputs in order -> a tuple of the outputs in order
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.analysis.shapes import Shapes
from graphopt.errors import GraphoptError
from graphopt.ir.sites import subgraphs
from graphopt.targets.tvm.lowering.context import Lowering
from graphopt.targets.tvm.lowering.control import captured
from graphopt.targets.tvm.lowering.movement import vector_of
from graphopt.targets.tvm.lowering.table import known_elements, rules, why_not
from graphopt.targets.tvm.lowering.view import View, dtype_name

if TYPE_CHECKING:
    import tvm

    from graphopt import ir


def unsupported(model: ir.Model, shapes: Shapes) -> list[tuple[ir.Node, str]]:
    """Nodes of the main graph that cannot be lowered, with reasons; needs no TVM."""
    version = model.opset_imports.get("", 1)
    found = []
    for node in model.graph:
        if _is_constant(node):
            continue
        reason = why_not(View(node, shapes, version))
        if reason is not None:
            found.append((node, reason))
    return found


def lower(model: ir.Model) -> tvm.IRModule:
    """The model as a Relax module.

    Raises:
        GraphoptError: a node that cannot be lowered, named with the reason.
    """
    shapes = Shapes(model).infer()
    refused = unsupported(model, shapes)
    if refused:
        node, reason = refused[0]
        more = f", and {len(refused) - 1} more nodes" if len(refused) > 1 else ""
        raise GraphoptError(f"node {node.name or node.op_type!r} cannot be compiled by TVM: {reason}{more}")
    version = model.opset_imports.get("", 1)
    module = _Module(shapes, version)
    module.function("main", model.graph, list(model.graph.inputs), private=False)
    return module.builder.finalize()


class _Module:
    def __init__(self, shapes: Shapes, version: int) -> None:
        from tvm import relax

        self.shapes, self.version = shapes, version
        self.builder = relax.BlockBuilder()
        self.functions: dict[ir.Graph, Any] = {}

    def function(self, name: str, graph: ir.Graph, inputs: Sequence[ir.Value], private: bool) -> Any:
        """Lower one graph, its branches before it; return TVM's name of the function."""
        for node in graph:
            for branch, body in subgraphs(node):
                inner = f"{name}_{len(self.functions)}_{branch}"
                self.functions[body] = self.function(inner, body, captured(body), private=True)
        c = Lowering(self.shapes, self.builder)
        c.functions = self.functions
        params = [_parameter(c, value, index) for index, value in enumerate(inputs)]
        with self.builder.function(name, params, private=private):
            for value, param in zip(inputs, params, strict=True):
                c.bind(value, param)
            for node in graph:
                if not _is_constant(node):
                    self._node(c, node)
            outputs = [c.get(value) for value in graph.outputs]
            return self.builder.emit_func_output(c.relax.Tuple(outputs))

    def _node(self, c: Lowering, node: ir.Node) -> None:
        n = View(node, self.shapes, self.version)
        elements = known_elements(n)
        if elements is not None:
            scalar = n.out_dims() == ()
            out: Any = c.cast(vector_of(c, list(elements), scalar), n.out_dtype())
        else:
            out = rules()[node.op_type].emit(c, n)
        results = out if isinstance(out, list) else [out]
        for value, expr in zip(node.outputs, results, strict=False):
            if expr is not None and value.name:
                c.bind(value, _settled(c, node, value, expr))


def _parameter(c: Lowering, value: ir.Value, index: int) -> Any:
    name = "".join(ch if ch.isalnum() else "_" for ch in value.name or "")
    return c.relax.Var(f"x{index}_{name}", c.type_of(value))


def _settled(c: Lowering, node: ir.Node, value: ir.Value, expr: Any) -> Any:
    """The expression in a variable of exactly the type that the shape analysis tells."""
    from tvm_ffi import structural_equal

    out = expr if c.is_const(expr) or isinstance(expr, c.relax.Var) else c.emit(expr)
    wanted, have = c.type_of(value), out.ty
    static = c.shapes.static(value)
    # Passes infer the type of a call_tir anew, and lose dims that its buffers have as expressions.
    held = static is not None or not c.is_call_tir(out)
    if held and structural_equal(wanted.shape, have.shape) and c.dtype_of(out) == dtype_name(value):
        return out
    got = [int(dim) if hasattr(dim, "value") else None for dim in have.shape] if have.shape is not None else None
    wrong_shape = static is not None and got is not None and None not in got and tuple(got) != static
    if wrong_shape or c.dtype_of(out) != dtype_name(value):
        raise GraphoptError(
            f"{node.op_type} {node.name}: lowered to {c.dtype_of(out)}{got}, but its output is "
            f"{dtype_name(value)}{list(static or ())}; this is a bug in the lowering"
        )
    return c.held(out, wanted)


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")
