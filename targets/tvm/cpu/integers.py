"""Integer convolutions and products of 8-bit codes become anchors; their weights and biases are packed here.

    conv2d(int32(x) - zero, w) + bias, matmul(int32(x) - zero, w) + bias       x: 8-bit, w: int32 constant within int8

Runs before legalization, while it still shows how the operands were made. Other integer products are left to TVM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.targets.tvm.cpu import dots
from graphopt.targets.tvm.cpu.lower import anchor, window_of
from graphopt.targets.tvm.cpu.rules import codes, depthwise
from graphopt.targets.tvm.cpu.rules.conv2d import Window
from graphopt.targets.tvm.machine import Machine
from graphopt.targets.tvm.mutating import mutated

_MOVES = ("relax.expand_dims", "relax.permute_dims", "relax.reshape")


@dataclass(frozen=True, eq=False)
class _Product:
    """x: 8-bit codes; weights: int8, OIHW for a convolution with its window, else [K, N]."""

    x: Any
    zero: int
    weights: np.ndarray
    bias: np.ndarray
    window: Window | None

    def emit(self, builder: Any, machine: Machine) -> Any:
        if self.window is not None and depthwise.takes_codes(self.weights.shape, self.window.groups):
            return self._depthwise(builder, self.window)
        dtype, taps = str(self.x.ty.dtype), dots.of_codes(machine).taps
        shape = tuple(int(dim) for dim in self.x.ty.shape)
        groups = 1 if self.window is None else self.window.groups
        inputs, channels = shape[-1] // groups, self.bias.size
        x = self.x
        if inputs % taps:
            x = builder.emit(
                builder.call_te(lambda a: codes.pad_channels(a, groups, taps), x, primfunc_name_hint="pad_channels")
            )
            shape = (*shape[:-1], groups * math.ceil(inputs / taps) * taps)
        if self.window is None:
            packed = codes.pack_matmul(shape, dtype, self.weights, self.zero, self.bias, machine)
            define: Any = lambda a, w, s: codes.define_matmul(a, w, s, channels, inputs)  # noqa: E731
            name = codes.MATMUL
        else:
            window = self.window
            packed = codes.pack_conv(shape, dtype, self.weights, self.zero, self.bias, window, machine)
            define = lambda a, w, s: codes.define_conv(a, w, s, window, channels, self.zero, inputs)  # noqa: E731
            name = codes.CONV
        return anchor(builder, define, x, relax.const(packed.weights), relax.const(packed.start), name=name)

    def _depthwise(self, builder: Any, window: Window) -> Any:
        weights = relax.const(depthwise.pack(self.weights).astype(np.float32))
        bias = relax.const(self.bias.astype(np.int32))
        define = lambda a, w, b: depthwise.define_codes(a, w, b, window, self.zero)  # noqa: E731
        return anchor(builder, define, self.x, weights, bias, name=depthwise.CODES)


@relax.expr_functor.mutator
class _Integers(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces call by call; a bias that is added makes the anchor anew, with other sums to start with."""

    def __init__(self, module: Any, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine
        self.products: dict[Any, _Product] = {}
        self.found: _Product | None = None

    def visit_var_binding_(self, binding: Any) -> None:
        self.found = None
        super().visit_var_binding_(binding)
        if self.found is not None:
            self.products[binding.var] = self.found

    def visit_call_(self, call: Any) -> Any:
        name = getattr(call.op, "name", "")
        if name == "relax.add":
            self.found = self._biased(call)
        call = super().visit_call_(call)
        if name in ("relax.nn.conv2d", "relax.matmul") and str(call.ty.dtype) == "int32":
            self.found = self._product(call)
        return call if self.found is None else self.found.emit(self.builder_, self.machine)

    def _biased(self, call: Any) -> _Product | None:
        """A product with a constant added, one number per output channel."""
        for one, other in (call.args, reversed(call.args)):
            product = self.products.get(one) if isinstance(one, relax.Var) else None
            if product is not None and isinstance(other, tvm.ir.GenericConst):
                bias = other.value.numpy()
                if bias.size in (1, bias.shape[-1] if bias.ndim else 1):
                    return replace(product, bias=product.bias + bias.reshape(-1).astype(np.int64))
        return None

    def _product(self, call: Any) -> _Product | None:
        x, weight = call.args
        source = self._codes(x)
        if source is None or not isinstance(weight, tvm.ir.GenericConst):
            return None
        weights = weight.value.numpy()
        if weights.size == 0 or weights.min() < -128 or weights.max() > 127:
            return None
        window = None
        if call.op.name == "relax.nn.conv2d":
            window = window_of(call)
            if window is None:
                return None
            weights = weights.transpose(0, 3, 1, 2)
        elif weights.ndim != 2 or len(source[0].ty.shape) < 2:
            return None
        channels = weights.shape[1 if window is None else 0]
        return _Product(*source, weights.astype(np.int8), np.zeros(channels, np.int64), window)

    def _codes(self, x: Any) -> tuple[Any, int] | None:
        """The 8-bit codes and the zero point behind an int32 value of static shape."""
        call = self._bound(x)
        name = getattr(getattr(call, "op", None), "name", "")
        if name in _MOVES:
            inner = self._codes(call.args[0])
            return None if inner is None else (self._moved(call, inner[0]), inner[1])
        zero = 0
        if name == "relax.subtract" and isinstance(call.args[1], tvm.ir.GenericConst):
            if call.args[1].value.numpy().size != 1:
                return None
            zero = int(call.args[1].value.numpy().reshape(()))
            call = self._bound(call.args[0])
            name = getattr(getattr(call, "op", None), "name", "")
        if name != "relax.astype" or str(call.args[0].ty.dtype) not in ("uint8", "int8"):
            return None
        static = all(isinstance(dim, tvm.tirx.IntImm) for dim in call.args[0].ty.shape)
        return (call.args[0], zero) if static else None

    def _moved(self, call: Any, x: Any) -> Any:
        return self.builder_.emit(relax.Call(call.op, [x, *call.args[1:]], call.attrs))

    def _bound(self, value: Any) -> Any:
        return self.lookup_binding(value) if isinstance(value, relax.Var) else value


def anchor_integers(module: tvm.IRModule, machine: Machine) -> tvm.IRModule:
    """Replace the products of codes in every Relax function."""
    return mutated(_Integers(module, machine), module)
