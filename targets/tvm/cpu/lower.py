"""Relax operators that have a rule become anchors: calls of TIR functions that say which rule is meant for them.

Weights that are constants are packed here, once, at compile time. What has no rule is left to TVM's own legalization.
Not here: the rules, and layouts (canonical.py, and relax.transform.ConvertLayout in pipeline.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.targets.tvm.cpu import anchors
from graphopt.targets.tvm.cpu.choices import Pick, Workload
from graphopt.targets.tvm.cpu.rules import conv2d, transposed
from graphopt.targets.tvm.machine import Machine

# AnnotateTIROpPattern's kOutEWiseFusable: elementwise consumers may join.
_FUSES_ELEMENTWISE = 4


def legalizations(machine: Machine, pick: Pick) -> dict[str, Callable[[Any, Any], Any]]:
    """The map for relax.transform.LegalizeOps; `pick` is asked for every anchor."""
    return {
        "relax.nn.conv2d": lambda builder, call: _conv2d(builder, call, machine, pick),
        "relax.nn.conv2d_transpose": lambda builder, call: _conv2d_transpose(builder, call, machine, pick),
        "relax.matmul": lambda builder, call: _matmul(builder, call, machine, pick),
    }


def anchor(builder: Any, define: Callable[..., Any], *args: Any, name: str) -> Any:
    """The call of a new TIR function that says which rule schedules it."""
    return builder.call_te(define, *args, primfunc_name_hint=name, primfunc_attrs={"op_pattern": _FUSES_ELEMENTWISE})


def _default(builder: Any, call: Any) -> Any:
    return call.op.get_attr("FLegalize")(builder, call)


def _shape(value: Any) -> tuple[int, ...] | None:
    """The static shape of a float32 tensor."""
    if value.ty.shape is None or str(value.ty.dtype) != "float32":
        return None
    dims = list(value.ty.shape)
    return tuple(int(dim) for dim in dims) if all(isinstance(dim, tvm.tirx.IntImm) for dim in dims) else None


def _conv2d(builder: Any, call: Any, machine: Machine, pick: Pick) -> Any:
    x, weight = call.args
    window = window_of(call)
    if _shape(x) is None or window is None or not isinstance(weight, tvm.ir.GenericConst):
        return _default(builder, call)
    return _convolution(builder, x, weight.value.numpy().transpose(0, 3, 1, 2), window, machine, pick)


def window_of(call: Any) -> conv2d.Window | None:
    """The window of a conv2d; None in other layouts than those of the rules."""
    attrs = call.attrs
    if (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) != ("NHWC", "OHWI", "NHWC"):
        return None
    strides, dilations = (tuple(int(i) for i in ints) for ints in (attrs.strides, attrs.dilation))
    padding = tuple(int(i) for i in attrs.padding)
    return conv2d.Window(
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (padding[0], padding[1], padding[2], padding[3]),
        int(attrs.groups),
    )


def _convolution(builder: Any, x: Any, weights: np.ndarray, window: conv2d.Window, machine: Machine, pick: Pick) -> Any:
    """The anchor for an NHWC input and constant OIHW weights."""
    shape = tuple(int(dim) for dim in x.ty.shape)
    choice = pick(Workload("conv2d", shape, weights.shape, tuple(window.ints())))
    found = anchors.convolution(shape, weights.shape, window, machine, choice)
    return anchor(builder, found.define, x, relax.const(found.pack(weights)), name=found.name)


def takes_transposed(call: Any) -> bool:
    """Whether a transposed convolution, in whatever layout, is lowered here."""
    attrs = call.attrs
    plain = int(attrs.groups) == 1 and [int(i) for i in attrs.dilation] == [1, 1]
    return plain and _shape(call.args[0]) is not None and isinstance(call.args[1], tvm.ir.GenericConst)


def _conv2d_transpose(builder: Any, call: Any, machine: Machine, pick: Pick) -> Any:
    x, weight = call.args
    attrs = call.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    if not takes_transposed(call) or layouts != ("NHWC", "IOHW", "NHWC"):
        return _default(builder, call)
    strides, before = [int(i) for i in attrs.strides], [int(i) for i in list(attrs.padding)[:2]]
    size, outputs = [int(dim) for dim in list(x.ty.shape)[1:3]], [int(dim) for dim in list(call.ty.shape)[1:3]]
    weights = weight.value.numpy()
    channels = weights.shape[1]
    window = transposed.window(size, outputs, weights.shape[2:], strides, before)
    everything = builder.emit(_convolution(builder, x, transposed.phases(weights, strides), window, machine, pick))
    return builder.call_te(
        lambda a: transposed.shuffle(a, outputs, channels, strides, before), everything, primfunc_name_hint="shuffle"
    )


def _matmul(builder: Any, call: Any, machine: Machine, pick: Pick) -> Any:
    x, y = call.args
    left, right = _shape(x), _shape(y)
    if right is None or len(right) < 2 or x.ty.shape is None or len(x.ty.shape) < 2 or str(x.ty.dtype) != "float32":
        return _default(builder, call)
    if len(right) == 2 and isinstance(y, tvm.ir.GenericConst):
        # Rows count through the batch.
        known = None if left is None else Workload("matmul", (math.prod(left[:-1]), left[-1]), right)
        found = anchors.product(tuple(x.ty.shape), right[1], machine, None if known is None else pick(known))
        return anchor(builder, found.define, x, relax.const(found.pack(y.value.numpy())), name=found.name)
    if left is not None and left[:-2] == right[:-2]:
        found = anchors.batched_product(pick(Workload("batch_matmul", left, right)))
        return anchor(builder, found.define, x, y, name=found.name)
    return _default(builder, call)
