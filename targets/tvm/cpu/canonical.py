"""Relax graph clean-up before layouts: moves of constants done with numpy, and calls raised.

The ONNX importer leaves reshapes and transposes of weights in the graph. Not here: what is raised (raising.py), and the
folding of everything else, which graphopt's passes do before the import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.targets.tvm.cpu.raising import RAISES, Rule, normalization
from graphopt.targets.tvm.mutating import mutated


def _axes(call: Any, rank: int) -> tuple[int, ...]:
    axes = call.attrs.axes
    return tuple(int(axis) for axis in axes) if axes is not None else tuple(reversed(range(rank)))


def _squeeze(call: Any, x: np.ndarray) -> np.ndarray:
    axis = call.attrs.axis
    return np.squeeze(x, None if axis is None else tuple(int(a) for a in axis))


# What operators do to constant arguments; shapes come from the call's type.
_FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "relax.permute_dims": lambda call, x: np.transpose(x, _axes(call, x.ndim)),
    "relax.reshape": lambda call, x: np.reshape(x, _shape(call)),
    "relax.expand_dims": lambda call, x: np.reshape(x, _shape(call)),
    "relax.squeeze": _squeeze,
    "relax.astype": lambda call, x: x.astype(str(call.attrs.dtype)),
    "relax.full": lambda call, x: np.broadcast_to(x, _shape(call)),
    "relax.broadcast_to": lambda call, x: np.broadcast_to(x, _shape(call)),
    "relax.isnan": lambda call, x: np.isnan(x),
    "relax.where": lambda call, c, x, y: np.asarray(np.where(c, x, y)),
}


def _is_static(call: Any) -> bool:
    return call.ty.shape is not None and all(isinstance(dim, tvm.tirx.IntImm) for dim in call.ty.shape)


def _shape(call: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in call.ty.shape)


@relax.expr_functor.mutator
class _Canonical(relax.PyExprMutator):  # type: ignore[misc]
    """Folds and raises call by call; folded bindings are remembered by variable."""

    def __init__(self, module: Any, rules: Sequence[Rule]) -> None:
        super().__init__(module)
        self.module = module
        self.rules = rules
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
        for rule in self.rules:
            raised = rule(call, self.builder_, self.module)
            if raised is not None:
                return raised
        return call

    def visit_tuple_getitem_(self, item: Any) -> Any:
        item = super().visit_tuple_getitem_(item)
        raised = normalization(item, self.builder_)
        return item if raised is None else raised

    def _argument(self, arg: Any) -> Any:
        return self.known.get(arg, arg) if isinstance(arg, relax.Var) else arg

    def _fold(self, call: Any, args: list[Any]) -> Any | None:
        fold = _FOLDS.get(getattr(call.op, "name", ""))
        if fold is None:
            return None
        values = [arg for arg in args if not isinstance(arg, relax.ShapeExpr)]
        if not all(isinstance(value, tvm.ir.GenericConst) for value in values) or not _is_static(call):
            return None
        out = np.ascontiguousarray(fold(call, *(value.value.numpy() for value in values)))
        return relax.const(out.reshape(_shape(call)), str(call.ty.dtype))


def canonicalize(module: tvm.IRModule, rules: Sequence[Rule] = RAISES) -> tvm.IRModule:
    """Fold moves of constants and raise calls by the rules, in every Relax function."""
    return mutated(_Canonical(module, rules), module)
