"""Products with dequantized 4-bit constants become products with the codes; other dequantized constants become floats.

    matmul(x, dequantize(codes, scale, zero))  ->  four_bit_matmul(x, packed codes, scale[, zero])

Not here: the kernel (rules/four_bits.py), and what writes `dequantize` (targets/tvm/lowering/four_bits.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.targets.tvm.cpu.rules import four_bits
from graphopt.targets.tvm.lowering.four_bits import BLOCK
from graphopt.targets.tvm.machine import Machine
from graphopt.targets.tvm.mutating import mutated

# TVM's kind of function that elementwise consumers may join.
_FUSES_ELEMENTWISE = 4


def use_codes(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """The module with products of codes."""
    return mutated(_UseCodes(module, machine), module)


@dataclass(frozen=True)
class _Weights:
    """Constant weights [K, N] by code, scale and zero point per block of `rows`; read as they are or transposed."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    rows: int
    transposed: bool = False

    def floats(self) -> np.ndarray:
        scale, zero = (np.repeat(values, self.rows, axis=0)[: len(self.codes)] for values in (self.scale, self.zero))
        wide = (self.codes - zero) * scale
        return np.ascontiguousarray(wide.T) if self.transposed else wide


@relax.expr_functor.mutator
class _UseCodes(relax.PyExprMutator):  # type: ignore[misc]
    """Takes dequantizations out and remembers what they stand for, by variable."""

    def __init__(self, module: Any, machine: Machine) -> None:
        super().__init__(module)
        self.module = module
        self.machine = machine
        self.known: dict[Any, _Weights] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        found = self._weights(binding.value)
        if found is None:
            super().visit_var_binding_(binding)
        else:
            self.known[binding.var] = found

    def visit_var_(self, var: Any) -> Any:
        return self._floats(var) or super().visit_var_(var)

    def visit_dataflow_var_(self, var: Any) -> Any:
        return self._floats(var) or super().visit_dataflow_var_(var)

    def visit_call_(self, call: Any) -> Any:
        product = self._product(call) if getattr(call.op, "name", "") == "relax.matmul" else None
        return super().visit_call_(call) if product is None else product

    def _weights(self, value: Any) -> _Weights | None:
        """What a value stands for, if it is dequantized."""
        name = getattr(getattr(value, "op", None), "name", "")
        if name == "relax.permute_dims" and value.args[0] in self.known:
            inner = self.known[value.args[0]]
            axes = value.attrs.axes
            swapped = axes is None or [int(axis) for axis in axes] == [1, 0]
            return replace(inner, transposed=inner.transposed != swapped)
        if name != "relax.call_tir":
            return None
        attributes = self.module[value.args[0]].attrs
        if attributes is None or BLOCK not in attributes:
            return None
        codes, scale, zero = (argument.value.numpy() for argument in value.args[1].fields)
        return _Weights(codes, scale, zero, int(attributes[BLOCK]))

    def _floats(self, var: Any) -> Any | None:
        return relax.const(self.known[var].floats()) if var in self.known else None

    def _product(self, call: Any) -> Any | None:
        weights, shape = self.known.get(call.args[1]), call.args[0].ty.shape
        if weights is None or shape is None or len(shape) < 2 or not _is_static(shape):
            return None
        if weights.transposed or not four_bits.fits(weights.codes, weights.rows):
            return None
        left = [int(dim) for dim in shape]
        operands = four_bits.pack(left, weights.codes, weights.scale, weights.zero, self.machine)
        return self.builder_.call_te(
            four_bits.define(weights.rows, weights.codes.shape[1]),
            self.visit_expr(call.args[0]),
            *map(relax.const, operands),
            primfunc_name_hint=four_bits.NAME,
            primfunc_attrs={"op_pattern": _FUSES_ELEMENTWISE},
        )


def _is_static(shape: Any) -> bool:
    return all(isinstance(dim, tvm.tirx.IntImm) for dim in shape)
