"""Relax graph clean-up before layouts: moves of constants done with numpy, and clips said as maximum and minimum.

The ONNX importer leaves reshapes and transposes of weights in the graph and spells Clip as calls of TIR functions,
through which layouts do not propagate. Not here: folding of arithmetic, which graphopt's passes do before the import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx


def _axes(call: Any, rank: int) -> tuple[int, ...]:
    axes = call.attrs.axes
    return tuple(int(axis) for axis in axes) if axes is not None else tuple(reversed(range(rank)))


def _squeeze(call: Any, x: np.ndarray) -> np.ndarray:
    axis = call.attrs.axis
    return np.squeeze(x, None if axis is None else tuple(int(a) for a in axis))


# What an operator does to constant arguments; shapes come from the call's type.
_FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "relax.permute_dims": lambda call, x: np.transpose(x, _axes(call, x.ndim)),
    "relax.reshape": lambda call, x: np.reshape(x, _shape(call)),
    "relax.expand_dims": lambda call, x: np.reshape(x, _shape(call)),
    "relax.squeeze": _squeeze,
    "relax.isnan": lambda call, x: np.isnan(x),
    "relax.where": lambda call, c, x, y: np.asarray(np.where(c, x, y)),
    "relax.full": lambda call, x: np.broadcast_to(x, _shape(call)),
    "relax.broadcast_to": lambda call, x: np.broadcast_to(x, _shape(call)),
    "relax.astype": lambda call, x: x.astype(str(call.attrs.dtype)),
}


def _shape(call: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in call.ty.shape)


@relax.expr_functor.mutator
class _Canonical(relax.PyExprMutator):  # type: ignore[misc]
    """Folds and raises call by call; folded bindings are remembered by variable."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.module = module
        self.known: dict[Any, Any] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        value = binding.value
        if isinstance(value, relax.Call):
            args = [self._argument(arg) for arg in value.args]
            folded = self._fold(value, args)
            if folded is not None and isinstance(binding.var, relax.DataflowVar):
                self.known[binding.var] = folded
                return
        super().visit_var_binding_(binding)

    def visit_var_(self, var: Any) -> Any:
        return self.known.get(var) or super().visit_var_(var)

    def visit_dataflow_var_(self, var: Any) -> Any:
        return self.known.get(var) or super().visit_dataflow_var_(var)

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        raised = self._raise_clip(call)
        return call if raised is None else raised

    def _argument(self, arg: Any) -> Any:
        return self.known.get(arg, arg) if isinstance(arg, relax.Var) else arg

    def _fold(self, call: Any, args: list[Any]) -> Any | None:
        fold = _FOLDS.get(getattr(call.op, "name", ""))
        if fold is None:
            return None
        values = [arg for arg in args if not isinstance(arg, relax.ShapeExpr)]
        if not all(isinstance(value, tvm.ir.GenericConst) for value in values):
            return None
        out = np.ascontiguousarray(fold(call, *(value.value.numpy() for value in values)))
        return relax.const(out.reshape(_shape(call)), str(call.ty.dtype))

    def _raise_clip(self, call: Any) -> Any | None:
        """`call_tir(maximum, (x, scalar))` as relax.maximum, and minimum likewise."""
        if getattr(call.op, "name", "") != "relax.call_tir":
            return None
        _, arguments = call.args[0], call.args[1]
        if not isinstance(arguments, relax.Tuple) or len(arguments.fields) != 2:
            return None
        x, bound = arguments.fields
        if not isinstance(bound, tvm.ir.GenericConst) or tuple(bound.value.shape):
            return None
        body = _single_store(self.module[call.args[0]])
        ops = {tirx.Max: relax.op.maximum, tirx.Min: relax.op.minimum}
        make = ops.get(type(body.value)) if body is not None else None
        return None if make is None else make(x, bound)


def _single_store(function: Any) -> Any | None:
    """The store of a function that is one elementwise block."""
    body = function.body.block.body
    while isinstance(body, tirx.For):
        body = body.body
    block = getattr(body, "block", None)
    return block.body if block is not None and isinstance(block.body, tirx.BufferStore) else None


def canonicalize(module: tvm.IRModule) -> tvm.IRModule:
    """Fold moves of constants and raise clips, in every Relax function."""
    mutator = _Canonical(module)
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            mutator.builder_.update_func(name, mutator.visit_expr(function))
    return relax.transform.DeadCodeElimination()(mutator.builder_.get())
