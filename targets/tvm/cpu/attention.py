"""Matrix product, softmax, matrix product: one call of the attention kernel.

    permute(matmul(guard(softmax(matmul(q, k) * scale + mask)), v))  ->  attention(q, k, v[, mask])

Transposes of q, k and v before it, and of the result behind it, become the order in which the kernel reads and writes.
Not here: the kernel (rules/attention.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from graphopt.targets.tvm.cpu.rules import attention
from graphopt.targets.tvm.machine import Machine
from graphopt.targets.tvm.mutating import mutated

# TVM's kind of function that is fused with nothing.
_OPAQUE = 8
_SAME, _TURNED = (0, 1, 2, 3), (0, 2, 1, 3)


def fuse_attention(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """The module with attention as single calls."""
    return mutated(_Attention(module, machine), module)


@dataclass(frozen=True)
class _Scores:
    """q k^T * scale + mask, with rows without a number at 0 if `guarded`."""

    q: Any
    k: Any
    scale: float
    mask: Any
    guarded: bool


@relax.expr_functor.mutator
class _Attention(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine
        self.bound: dict[Any, Any] = {}
        self.users: dict[Any, list[Any]] = {}
        self.known: dict[Any, Any] = {}

    def visit_dataflow_block_(self, block: Any) -> Any:
        self.bound = {binding.var: binding.value for binding in block.bindings}
        self.users = {}
        for binding in block.bindings:
            for var in relax.analysis.free_vars(binding.value):
                self.users.setdefault(var, []).append(binding.var)
        return super().visit_dataflow_block_(block)

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self.known:  # the transpose behind attention that is written in its order
            return
        made = self._attention(binding.var) if _name(binding.value) == "matmul" else None
        if made is None:
            super().visit_var_binding_(binding)
        else:
            self.known[made[0]] = self.builder_.emit(made[1])

    def visit_var_(self, var: Any) -> Any:
        return self.known[var] if var in self.known else super().visit_var_(var)

    def visit_dataflow_var_(self, var: Any) -> Any:
        return self.known[var] if var in self.known else super().visit_dataflow_var_(var)

    def _attention(self, result: Any) -> tuple[Any, Any] | None:
        """The variable that a call of the kernel computes, and the call, if a product is the second of attention."""
        weights, v = self.bound[result].args
        scores = self._scores(weights)
        if scores is None or not isinstance(result, relax.DataflowVar):
            return None
        shapes = [shape for shape in map(_shape, (scores.q, scores.k, v)) if shape is not None and len(shape) == 4]
        if len(shapes) < 3:
            return None
        (b, h, length, depth), k, (vb, vh, keys, _) = shapes
        if k != (b, h, depth, keys) or (vb, vh) != (b, h) or attention.queries(length, keys, self.machine) is None:
            return None
        if scores.mask is not None and not _broadcasts(_shape(scores.mask), (b, h, length, keys)):
            return None
        then = self._only_user(result)
        turned = then is not None and isinstance(then, relax.DataflowVar) and self._axes(then) == _TURNED
        (q, q_axes), (k, k_axes), (v, v_axes) = (self._source(value) for value in (scores.q, scores.k, v))
        form = attention.Form(q_axes, k_axes, v_axes, turned, scores.guarded, scores.scale)
        operands = [q, k, v] + ([] if scores.mask is None else [scores.mask])
        call = self.builder_.call_te(
            attention.define(form),
            *(self.visit_expr(operand) for operand in operands),
            primfunc_name_hint=attention.NAME,
            primfunc_attrs={"op_pattern": _OPAQUE},
        )
        return (then if turned else result), call

    def _scores(self, weights: Any) -> _Scores | None:
        """What a value is, if it is the softmax of scores that nothing else reads."""
        softmax, guarded = weights, False
        if self._op(weights) == "where":
            condition, zero, softmax = self.bound[weights].args
            guarded = self._op(condition) == "isnan" and self.bound[condition].args[0].same_as(softmax)
            alone = self.users[softmax] == [condition, weights] and self._only_user(condition) is not None
            if not guarded or _scalar(zero) != 0 or not alone:
                return None
        elif self._only_user(softmax) is None:
            return None
        if self._op(softmax) != "nn.softmax" or int(self.bound[softmax].attrs.axis) not in (-1, 3):
            return None
        value, mask, scale = self.bound[softmax].args[0], None, 1.0
        if self._op(value) == "add" and self._only_user(value) is not None:
            sides = list(self.bound[value].args)
            inner = next((side for side in sides if self._op(side) in ("matmul", "multiply", "divide")), None)
            if inner is None:
                return None
            value, mask = inner, sides[1 - sides.index(inner)]
        if self._op(value) in ("multiply", "divide") and self._only_user(value) is not None:
            op, (value, factor) = self._op(value), self.bound[value].args
            number = _scalar(factor)
            if not number:
                return None
            scale = number if op == "multiply" else 1.0 / number
        if self._op(value) != "matmul" or self._only_user(value) is None:
            return None
        q, k = self.bound[value].args
        return _Scores(q, k, scale, mask, guarded)

    def _source(self, value: Any) -> tuple[Any, tuple[int, ...]]:
        """The value before a transpose, and which of its axes are those of the value."""
        axes = self._axes(value)
        return (value, _SAME) if axes is None else (self.bound[value].args[0], axes)

    def _axes(self, var: Any) -> tuple[int, ...] | None:
        """The axes of a transpose."""
        if self._op(var) != "permute_dims" or self.bound[var].attrs.axes is None:
            return None
        return tuple(int(axis) for axis in self.bound[var].attrs.axes)

    def _op(self, var: Any) -> str:
        return _name(self.bound.get(var)) if isinstance(var, relax.Var) else ""

    def _only_user(self, var: Any) -> Any | None:
        """The only variable that is computed from a variable of the block; None if there are others."""
        users = self.users.get(var, [])
        return users[0] if len(users) == 1 and isinstance(var, relax.DataflowVar) else None


def _name(call: Any) -> str:
    return getattr(getattr(call, "op", None), "name", "").removeprefix("relax.")


def _scalar(value: Any) -> float | None:
    """A constant of one element."""
    if not isinstance(value, tvm.ir.GenericConst):
        return None
    array = value.value.numpy()
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def _shape(value: Any) -> tuple[int, ...] | None:
    """The static shape of a float32 tensor."""
    shape = value.ty.shape
    if shape is None or str(value.ty.dtype) != "float32":
        return None
    return tuple(int(dim) for dim in shape) if all(isinstance(dim, tvm.tirx.IntImm) for dim in shape) else None


def _broadcasts(shape: tuple[int, ...] | None, to: tuple[int, ...]) -> bool:
    if shape is None or len(shape) > len(to):
        return False
    return all(dim in (1, full) for dim, full in zip(reversed(shape), reversed(to), strict=False))
