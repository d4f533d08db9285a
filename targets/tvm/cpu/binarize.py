"""Convolutions and products whose both sides are +-1 become packed ones: bits in, exclusive or, counts of ones.

    conv2d(where(x >= 0, 1, -1), w of +-a)  ->  a * binary_conv2d(pack_bits(where(x >= 0, 1, -1)), packed w, base)

Values are followed as finite sets: a comparison is {0, 1}, twice it minus one is {-1, 1}, Sign is {-1, 0, 1}, and the
sign of Sign plus 0.1 is {-1, 1} again, as Larq writes it. What has +-1 weights and an input that is not proven to be
+-1 stays as it is and is noted with the reason. Not here: the kernels (rules/binary.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.targets.tvm.cpu import NOTES
from graphopt.targets.tvm.cpu.rules import binary
from graphopt.targets.tvm.cpu.rules.conv2d import Window
from graphopt.targets.tvm.machine import Machine
from graphopt.targets.tvm.mutating import mutated

# Most values that a set may have.
_MOST = 16
# TVM's kinds of functions: one that elementwise ops and moves are fused with, and one that takes consumers in.
_INJECTIVE, _FUSES_ELEMENTWISE = 2, 4

_MOVES = ("permute_dims", "reshape", "expand_dims", "squeeze", "broadcast_to", "strided_slice", "flatten")
_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {"negative": np.negative, "abs": np.abs, "sign": np.sign}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip


class _Unknown(Exception):
    """A value may be more than a few numbers; the message says where it comes from."""


def binarize(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """The module with packed convolutions (NHWC, OHWI) and products where both sides are +-1."""
    mutator = _Binarize(module, machine)
    out = mutated(mutator, module)
    return out.with_attr(NOTES, mutator.notes) if mutator.notes else out


@relax.expr_functor.mutator
class _Binarize(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine
        self.notes: list[str] = []
        self.sets: dict[Any, np.ndarray | str] = {}
        self.packed: dict[Any, Any] = {}

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        rule = {"relax.nn.conv2d": self._conv2d, "relax.matmul": self._matmul}.get(getattr(call.op, "name", ""))
        if rule is None or not isinstance(call.args[1], tvm.ir.GenericConst) or not _is_static(call.args[0]):
            return call
        packed = rule(call, call.args[0], call.args[1].value.numpy())
        return call if packed is None else packed

    def _conv2d(self, call: Any, x: Any, weights: np.ndarray) -> Any | None:
        attrs = call.attrs
        if (attrs.data_layout, attrs.kernel_layout, int(attrs.groups)) != ("NHWC", "OHWI", 1):
            return None
        weights = weights.transpose(0, 3, 1, 2)
        scale = self._scale(x, weights.reshape(weights.shape[0], -1).T, weights.shape[1], f"Conv {weights.shape}")
        if scale is None:
            return None
        a, b, c, d, *padding = (int(i) for i in (*attrs.strides, *attrs.dilation, *attrs.padding))
        window = Window((a, b), (c, d), (padding[0], padding[1], padding[2], padding[3]), 1)
        shape = [int(dim) for dim in x.ty.shape]
        operands = [relax.const(value) for value in binary.conv_operands(shape, weights, window, self.machine)]
        channels = weights.shape[0]

        def define(bits: Any, w: Any, base: Any) -> Any:
            return binary.define_conv(bits, w, base, window, channels)

        return self._scaled(define, self._bits(x), operands, scale, binary.CONV)

    def _matmul(self, call: Any, x: Any, weights: np.ndarray) -> Any | None:
        if weights.ndim != 2 or len(x.ty.shape) < 2:
            return None
        scale = self._scale(x, weights, weights.shape[0], f"MatMul {weights.shape}")
        if scale is None:
            return None
        signs, channels = weights.shape
        operand = relax.const(binary.product_operand([int(dim) for dim in x.ty.shape], weights, self.machine))

        def define(bits: Any, w: Any) -> Any:
            return binary.define_product(bits, w, signs, channels)

        return self._scaled(define, self._bits(x), [operand], scale, binary.PRODUCT)

    def _scale(self, x: Any, weights: np.ndarray, inputs: int, what: str) -> np.ndarray | None:
        """What a product of signs is multiplied with, per column of weights [taps, channels]; None: not binary."""
        size = np.abs(weights).max(axis=0)
        if weights.dtype != np.float32 or binary.packing(inputs, self.machine) is None or not (size > 0).all():
            return None
        if not (np.isfinite(size).all() and (np.abs(weights) == size).all()):
            return None
        try:
            values = self._values(x)
        except _Unknown as unknown:
            self.notes.append(f"{what} has weights of +-1 but is computed in floats: its input comes from {unknown}")
            return None
        if values.size != 2 or values[0] != -values[1]:
            shown = ", ".join(f"{value:g}" for value in values)
            self.notes.append(f"{what} has weights of +-1 but is computed in floats: its input may be {shown}")
            return None
        return size * values[1]

    def _bits(self, x: Any) -> Any:
        if x not in self.packed:
            packing = binary.packing(int(x.ty.shape[-1]), self.machine)
            assert packing is not None
            made = self._call(lambda a: binary.define_pack(a, packing), [x], "pack_bits", _INJECTIVE)
            bits = self.builder_.emit(made)
            if not isinstance(x, relax.DataflowVar):
                return bits  # other blocks may read x, and do not see this block's variables
            self.packed[x] = bits
        return self.packed[x]

    def _scaled(self, define: Any, bits: Any, operands: Sequence[Any], scale: np.ndarray, name: str) -> Any:
        out = self._call(define, [bits, *operands], name, _FUSES_ELEMENTWISE)
        return out if (scale == 1).all() else relax.op.multiply(self.builder_.emit(out), relax.const(scale))

    def _call(self, define: Any, arguments: Sequence[Any], name: str, pattern: int) -> Any:
        """A call; emitted, it would be another name of the call's own variable, which fusion does not see through."""
        attributes = {"op_pattern": pattern}
        return self.builder_.call_te(define, *arguments, primfunc_name_hint=name, primfunc_attrs=attributes)

    # ---- sets of values --------------------------------------------------------------------------------------------

    def _values(self, expr: Any) -> np.ndarray:
        """The few numbers, ascending, that elements of a value may be.

        Raises:
            _Unknown: they may be others.
        """
        if not isinstance(expr, relax.Var):
            return self._set(expr)
        if expr not in self.sets:
            try:
                self.sets[expr] = self._set(self.builder_.lookup_binding(expr))
            except _Unknown as unknown:
                self.sets[expr] = str(unknown)
        found = self.sets[expr]
        if isinstance(found, str):
            raise _Unknown(found)
        return found

    def _set(self, value: Any) -> np.ndarray:
        if isinstance(value, tvm.ir.GenericConst):
            return _few(value.value.numpy())
        if not isinstance(value, relax.Call):
            raise _Unknown("an input of the model" if value is None else "an op that is followed by no rule")
        name = getattr(value.op, "name", "").removeprefix("relax.")
        if str(value.ty.dtype) == "bool":
            return np.array([False, True])
        if name in _MOVES:
            return self._values(value.args[0])
        if name == "concat" and isinstance(value.args[0], relax.Tuple):
            return _few(np.concatenate([self._values(field) for field in value.args[0].fields]))
        if name == "where":
            return _few(np.concatenate([self._values(side) for side in value.args[1:]]))
        if name == "astype":
            return _few(self._values(value.args[0]).astype(str(value.attrs.dtype)))
        if name == "sign":
            return self._sign(value)
        if name in _UNARY:
            return _few(_UNARY[name](self._values(value.args[0])))
        if name in _BINARY:
            left, right = (self._values(side) for side in value.args)
            return _few(_BINARY[name](left[:, None], right))
        raise _Unknown(name)

    def _sign(self, call: Any) -> np.ndarray:
        try:
            return _few(np.sign(self._values(call.args[0])))
        except _Unknown:
            return np.array([-1, 0, 1], str(call.ty.dtype))


def _is_static(value: Any) -> bool:
    shape = value.ty.shape
    return shape is not None and all(isinstance(dim, tvm.tirx.IntImm) for dim in shape)


def _few(values: np.ndarray) -> np.ndarray:
    found = np.unique(values)
    if found.size > _MOST or not np.isfinite(found).all():
        raise _Unknown("more than a few values")
    return found
