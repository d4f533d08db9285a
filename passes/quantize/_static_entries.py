"""Reads the decisions of a static quantization: what a plan may say of a model, checked before anything is changed.

Their form is told in _static_plan.py. Not here: carrying them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.ir.codetypes import SINCE
from graphopt.ir.constants import const_array, const_tensor
from graphopt.manager.plan_entries import Entry, is_bool, is_integer, is_scale, is_text
from graphopt.passes.quantize._kinds import data_slots, kind_of, weight_axis
from graphopt.passes.quantize._qdq_opsets import PER_CHANNEL
from graphopt.quantization.affine import QParams, qtype

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
WEIGHTS = ("int8", "int4", "int16")


def read(ctx: Context, decisions: Mapping[str, Any], nodes: Mapping[str, ir.Node]) -> dict[str, QParams]:
    """Check all decisions, and return how float values become codes, by name.

    Args:
        nodes: those of the main graph, by site.

    Raises:
        GraphoptError: names site and field of the first that does not fit the model.
    """
    top, opset = Entry(f"the plan of {ctx.pass_name!r}", decisions), ctx.rewriter.opset("")
    top.get("origin", "a text", is_text)
    kept = top.entry("kept")
    for site in kept.data:
        kept.get(site, "a reason", is_text)
    values = {value: _params(entry, ACTIVATIONS, opset) for value, entry in top.entries("values")}
    for site, entry in top.entries("nodes"):
        if site not in nodes:
            raise GraphoptError(f"{top.where} names no node of this model: {site!r}{did_you_mean(site, nodes)}")
        _check_node(entry, nodes[site], opset, ctx.max_bytes)
    return values


def _check_node(entry: Entry, node: ir.Node, opset: int, max_bytes: int) -> None:
    why = _why_unfit(node, max_bytes)
    if why is not None:
        raise GraphoptError(f"{entry.where}: {why}")
    entry.get("op", f"{node.op_type!r}", lambda op: op == node.op_type)
    outputs = range(len(node.outputs))
    entry.get(
        "rounded",
        f"a list of outputs, 0 to {len(outputs) - 1},",
        lambda given: isinstance(given, list) and all(is_integer(item) and item in outputs for item in given),
    )
    slots = {str(slot): slot for slot in _constant_slots(node)}
    constants = entry.entry("constants")
    constants.only(*slots)
    if kind_of(node) == "compute" and "1" not in constants.data:
        raise GraphoptError(f"{constants.where}: has no '1', its weights")
    for _slot, params in entry.entries("constants"):
        if kind_of(node) == "compute":
            params.get("safe", "true or false", is_bool)
            _params(params, WEIGHTS, opset, node)
        else:
            _params(params, ACTIVATIONS, opset)


def _constant_slots(node: ir.Node) -> list[int]:
    """The inputs that a plan says something of: constant weights and data."""
    if kind_of(node) == "compute":
        return [1] if weight_axis(node) is not None else []
    return [slot for slot in data_slots(node) if const_tensor(node.inputs[slot]) is not None]


def _params(entry: Entry, types: tuple[str, ...], opset: int, node: ir.Node | None = None) -> QParams:
    """A quantizer: one scale, or with the weights of a node one per output channel."""
    import numpy as np

    allowed = [item for item in types if SINCE[item.upper()] <= opset]
    kind = qtype(entry.get("type", f"one of {', '.join(allowed)} (opset {opset})", lambda item: item in allowed))
    channels = weight_axis(node) if node is not None and opset >= PER_CHANNEL else None
    axes = [None] if channels is None else [None, channels]
    wanted = "null" if channels is None else f"null or {channels}"
    axis = entry.get("axis", wanted, lambda item: any(item is known or _same(item, known) for known in axes))
    count = 0 if axis is None or node is None else _size(node, axis)
    scale = entry.get(
        "scale",
        f"a list of {count} positive numbers" if count else "a positive number",
        lambda item: _fits(item, count, is_scale),
    )
    zero = entry.get(
        "zero_point",
        f"an integer from {kind.qmin} to {kind.qmax}" + (f", or a list of {count}," if count else ""),
        lambda item: any(
            _fits(item, n, lambda one: is_integer(one) and kind.qmin <= one <= kind.qmax) for n in {0, count}
        ),
    )
    scales = np.asarray(scale, np.float32)
    return QParams(kind, scales, np.broadcast_to(np.asarray(zero, np.int64), scales.shape), axis)


def _same(item: Any, known: int | None) -> bool:
    return is_integer(item) and item == known


def _fits(item: Any, count: int, fits: Any) -> bool:
    """One value, or with a count a list of so many."""
    if not count:
        return bool(fits(item))
    return isinstance(item, list) and len(item) == count and all(map(fits, item))


def _size(node: ir.Node, axis: int) -> int:
    tensor = const_tensor(node.inputs[1])
    assert tensor is not None
    return int(tensor.shape.numpy()[axis])


def _why_unfit(node: ir.Node, max_bytes: int) -> str | None:
    """Why codes cannot be made around a node, which the planner would have left float; None when they can."""
    import numpy as np

    if kind_of(node) == "float":
        return f"no {node.op_type} runs on codes"
    for slot in data_slots(node):
        value = node.inputs[slot]
        if value is None or value.dtype is None or value.dtype.name != "FLOAT":
            return "its data are not float32"
    if kind_of(node) != "compute":
        return None
    arrays = [const_array(value, max_bytes) for value in node.inputs[1:] if value is not None]
    axis = weight_axis(node)
    if axis is None or any(array is None or not array.size or not np.isfinite(array).all() for array in arrays):
        return "its weights and bias are no finite constants"
    if any(array is not None and array.shape != (_size(node, axis),) for array in arrays[1:]):
        return "its bias has not one element per output channel"
    return None
