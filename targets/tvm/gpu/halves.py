"""Convolutions of half-precision operands that lowering widened read the halves again; they are still added in float32.

Products of halves are exact in float32, so nothing changes but the bytes that are read, and tensor cores take them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.targets.tvm.mutating import mutated


@relax.expr_functor.mutator
class _Narrow(relax.PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") != "relax.nn.conv2d" or str(call.ty.dtype) != "float32":
            return call
        x, weight = self._half(call.args[0]), _half_constant(call.args[1])
        if x is None or weight is None:
            return call
        attrs = call.attrs
        return relax.op.nn.conv2d(
            x,
            weight,
            strides=list(attrs.strides),
            padding=list(attrs.padding),
            dilation=list(attrs.dilation),
            groups=int(attrs.groups),
            data_layout=attrs.data_layout,
            kernel_layout=attrs.kernel_layout,
            out_layout=attrs.out_layout,
            out_dtype="float32",
        )

    def _half(self, value: Any) -> Any | None:
        """What was widened to this value."""
        bound = self.builder_.lookup_binding(value) if isinstance(value, relax.Var) else value
        if not isinstance(bound, relax.Call) or getattr(bound.op, "name", "") != "relax.astype":
            return None
        return bound.args[0] if str(bound.args[0].ty.dtype) == "float16" else None


def _half_constant(value: Any) -> Any | None:
    """The constant in half precision, if it is the same there."""
    if not isinstance(value, tvm.ir.GenericConst):
        return None
    wide = value.value.numpy()
    with np.errstate(over="ignore"):
        half = wide.astype("float16")
    return relax.const(half) if np.array_equal(half.astype("float32"), wide) else None


def narrow(module: tvm.IRModule) -> tvm.IRModule:
    """The module with such convolutions on halves."""
    return mutated(_Narrow(module), module)
