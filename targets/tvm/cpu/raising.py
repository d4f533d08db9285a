"""Calls that the ONNX importer spells in a way that layouts and rules do not see through, said again as one operator.

Each rule takes a call, the builder that knows what variables are bound to, and the module; None is "not this one".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

Rule = Callable[[Any, Any, Any], Any | None]


def clip(call: Any, builder: Any, module: Any) -> Any | None:
    """`call_tir(maximum, (x, scalar))` is relax.maximum, and minimum likewise."""
    if _name(call) != "relax.call_tir":
        return None
    function, arguments = call.args[0], call.args[1]
    if not isinstance(arguments, relax.Tuple) or len(arguments.fields) != 2:
        return None
    x, bound = arguments.fields
    if not isinstance(bound, tvm.ir.GenericConst) or tuple(bound.value.shape):
        return None
    body = _single_store(module[function])
    ops = {tirx.Max: relax.op.maximum, tirx.Min: relax.op.minimum}
    make = ops.get(type(body.value)) if body is not None else None
    return None if make is None else make(x, bound)


def sum_of_stack(call: Any, builder: Any, module: Any) -> Any | None:
    """sum(stack(x, y, ..., axis=0), axis=0) is x + y + ...; ConvertLayout fails on stack."""
    if _name(call) != "relax.sum" or call.attrs.keepdims or [int(a) for a in call.attrs.axis or ()] != [0]:
        return None
    stack = _bound(call.args[0], builder)
    if _name(stack) != "relax.stack" or int(stack.attrs.axis or 0) != 0 or not isinstance(stack.args[0], relax.Tuple):
        return None
    total, *others = stack.args[0].fields
    for other in others:
        total = builder.emit(relax.op.add(total, other))
    return total


def conv1d(call: Any, builder: Any, module: Any) -> Any | None:
    """conv1d is conv2d of one row."""
    attrs = call.attrs
    if _name(call) != "relax.nn.conv1d" or (attrs.data_layout, attrs.kernel_layout) != ("NCW", "OIW"):
        return None
    x, weight = call.args
    if not isinstance(weight, tvm.ir.GenericConst):
        return None
    left, right = (int(i) for i in attrs.padding)
    rows = builder.emit(
        relax.op.nn.conv2d(
            builder.emit(relax.op.expand_dims(x, 2)),
            relax.const(weight.value.numpy()[:, :, None, :]),
            strides=(1, int(attrs.strides[0])),
            padding=(0, left, 0, right),
            dilation=(1, int(attrs.dilation[0])),
            groups=int(attrs.groups),
        )
    )
    return relax.op.squeeze(rows, [2])


def sums_of_halves(call: Any, builder: Any, module: Any) -> Any | None:
    """Sums of half precision are made in float32: in halves their rounding grows with the number of addends."""
    if _name(call) not in _SUMS or str(call.args[0].ty.dtype) != "float16":
        return None
    wide = builder.emit(relax.op.astype(call.args[0], "float32"))
    return relax.op.astype(builder.emit(relax.Call(call.op, [wide], call.attrs)), "float16")


def normalization(item: Any, builder: Any) -> Any | None:
    """The first result of a batch normalization with constant parameters is x * scale + shift."""
    call = _bound(item.tuple_value, builder)
    if isinstance(call, relax.Tuple):
        return call.fields[item.index]
    if _name(call) != "relax.nn.batch_norm" or item.index != 0 or call.attrs.training:
        return None
    x, *parameters = call.args
    if not all(isinstance(parameter, tvm.ir.GenericConst) for parameter in parameters):
        return None
    gain, bias, mean, variance = (parameter.value.numpy().astype("float64") for parameter in parameters)
    scale = (gain if call.attrs.scale else 1.0) / np.sqrt(variance + float(call.attrs.epsilon))
    shift = (bias if call.attrs.center else 0.0) - mean * scale
    shape = [1] * len(x.ty.shape)
    shape[int(call.attrs.axis)] = -1
    dtype = str(x.ty.dtype)
    scaled = builder.emit(relax.op.multiply(x, relax.const(scale.reshape(shape).astype(dtype))))
    return relax.op.add(scaled, relax.const(shift.reshape(shape).astype(dtype)))


def _name(call: Any) -> str:
    return getattr(call.op, "name", "") if isinstance(call, relax.Call) else ""


def _bound(value: Any, builder: Any) -> Any:
    return builder.lookup_binding(value) if isinstance(value, relax.Var) else value


def _single_store(function: Any) -> Any | None:
    """The store of a function that is one elementwise block."""
    body = function.body.block.body
    while isinstance(body, tirx.For):
        body = body.body
    block = getattr(body, "block", None)
    return block.body if block is not None and isinstance(block.body, tirx.BufferStore) else None


_SUMS = ("relax.sum", "relax.mean", "relax.nn.softmax", "relax.nn.log_softmax")
RAISES: tuple[Rule, ...] = (clip, sum_of_stack, conv1d)
