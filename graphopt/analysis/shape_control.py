"""Inference of If, Loop and Scan: bodies are inferred until what a loop carries no longer changes.

A dimension that changes between iterations becomes a new symbol; what leaves a branch or a body keeps only what holds
on every path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.analysis import dims
from graphopt.analysis.shape_result import Result

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shapes import Shapes

# Loops deeper than this take what they carry as unknown at once: each level multiplies the work of the inner ones.
_MAX_ROUND_DEPTH = 3

Carried = list[tuple["Dim", ...] | None]


def join(s: Shapes, a: Sequence[Dim] | None, b: Sequence[Dim] | None) -> tuple[Dim, ...] | None:
    """What holds on both paths: equal dimensions stay, others become new symbols, different ranks give None."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if dims.equal(x, y) else s.fresh() for x, y in zip(a, b, strict=True))


def _without_local(s: Shapes, size: Sequence[Dim] | None, mark: int) -> tuple[Dim, ...] | None:
    """Dimensions as seen outside a body: symbols made inside since `mark` become new ones."""
    if size is None:
        return None
    return tuple(s.fresh() if s.symbols.minted_since(mark, dims.symbols(dim)) else dim for dim in size)


def _kind(value: ir.Value) -> ir.TypeProtocol | None:
    """The type of a sequence, optional or map; None for tensors."""
    from graphopt import ir

    return None if value.type is None or isinstance(value.type, ir.TensorType) else value.type


def infer_if(s: Shapes, node: ir.Node) -> Sequence[Result]:
    """Both branches, then what they agree on."""
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        s.graph(branch)
    results = []
    for index in range(len(node.outputs)):
        a, b = (branch.outputs[index] for branch in branches)
        kind = _kind(a) or _kind(b)
        if kind is not None:
            results.append(Result(type=kind))
            continue
        x, y = s.values(a), s.values(b)
        values = x if x is not None and y is not None and len(x) == len(y) and all(map(dims.equal, x, y)) else None
        results.append(Result(a.dtype or b.dtype, join(s, s.dims(a), s.dims(b)), values))
    return results


def infer_loop(s: Shapes, node: ir.Node) -> Sequence[Result]:
    """Inputs (trip count, condition, carried...); outputs (carried..., scans...).

    The body maps (iteration, condition, carried...) to (condition, carried..., scans...).
    """
    from graphopt import ir

    body = node.attributes["body"].as_graph()
    start = list(node.inputs[2:])
    mark = s.symbols.counter
    with s.replacing():
        for value, dtype in zip(body.inputs[:2], (ir.DataType.INT64, ir.DataType.BOOL), strict=False):
            s.publish(value, Result(dtype, ()))
        carried = _fixpoint(s, body, start, body.inputs[2:], body.outputs[1 : 1 + len(start)])
    results = [
        _outside(s, value, size, mark) for value, size in zip(body.outputs[1 : 1 + len(start)], carried, strict=True)
    ]
    trips: Dim = s.fresh()
    limit = s.values(node.inputs[0])
    if limit is not None and _never_stops(s, node, body) and dims.nonnegative(limit[0]):
        trips = limit[0]
    for value in body.outputs[1 + len(start) :]:
        size = _without_local(s, s.dims(value), mark)
        results.append(Result(value.dtype, None if size is None else (trips, *size)))
    return results


def _never_stops(s: Shapes, node: ir.Node, body: ir.Graph) -> bool:
    """Whether the loop runs its full trip count: the condition starts true and stays so."""
    begin = node.inputs[1]
    if begin is not None and s.ints(begin) != (1,):
        return False
    goes_on = body.outputs[0]
    while (producer := goes_on.producer()) is not None and producer.op_type == "Identity" and producer.inputs[0]:
        goes_on = producer.inputs[0]
    return goes_on is body.inputs[1] or s.ints(goes_on) == (1,)


def _outside(s: Shapes, value: ir.Value, size: Sequence[Dim] | None, mark: int) -> Result:
    kind = _kind(value)
    return Result(type=kind) if kind is not None else Result(value.dtype, _without_local(s, size, mark))


def _fixpoint(
    s: Shapes,
    body: ir.Graph,
    start: Sequence[ir.Value | None],
    inside: Sequence[ir.Value],
    back: Sequence[ir.Value],
) -> Carried:
    """Infer the body with carried shapes that hold in every iteration; return these shapes."""
    carried: Carried = [s.dims(value) for value in start]
    if s.override > _MAX_ROUND_DEPTH:
        carried = [None] * len(start)
    free: set[Dim] = set()
    while True:
        for value, first, size in zip(inside, start, carried, strict=True):
            kind = _kind(first) if first is not None else None
            s.publish(value, Result(s.dtype(first), size) if kind is None else Result(type=kind))
        s.graph(body)
        after = [_widened(s, old, s.dims(new), free) for old, new in zip(carried, back, strict=True)]
        if after == carried:
            return carried
        carried = after


def _widened(s: Shapes, old: Sequence[Dim] | None, new: Sequence[Dim] | None, free: set[Dim]) -> tuple[Dim, ...] | None:
    """A carried shape after one more round. Each dimension widens at most once, to a symbol kept in `free`."""
    if old is None or new is None or len(old) != len(new):
        return None
    out: list[Dim] = []
    for before, after in zip(old, new, strict=True):
        if before not in free and not dims.equal(before, after):
            before = s.fresh()
            free.add(before)
        out.append(before)
    return tuple(out)


def infer_scan(s: Shapes, node: ir.Node) -> Sequence[Result] | None:
    """Inputs (states..., scanned...), body (states..., slices...) -> (states..., scans...). Opset 8: the package."""
    if s.opsets.get("", 1) < 9:
        return None
    body = node.attributes["body"].as_graph()
    scanned = node.attributes["num_scan_inputs"].as_int()
    states = len(node.inputs) - scanned
    in_axes = node.attributes.get("scan_input_axes")
    axes = list(in_axes.as_ints()) if in_axes is not None else [0] * scanned
    mark = s.symbols.counter
    length: Dim | None = None
    with s.replacing():
        for value, source, axis in zip(body.inputs[states:], node.inputs[states:], axes, strict=True):
            size = s.dims(source)
            if size is not None:
                axis %= len(size)
                length = size[axis] if length is None or isinstance(size[axis], int) else length
                size = (*size[:axis], *size[axis + 1 :])
            s.publish(value, Result(s.dtype(source), size))
        carried = _fixpoint(s, body, node.inputs[:states], body.inputs[:states], body.outputs[:states])
    results = [_outside(s, value, size, mark) for value, size in zip(body.outputs[:states], carried, strict=True)]
    out_axes = node.attributes.get("scan_output_axes")
    places = list(out_axes.as_ints()) if out_axes is not None else [0] * (len(node.outputs) - states)
    for value, place in zip(body.outputs[states:], places, strict=True):
        size = _without_local(s, s.dims(value), mark)
        if size is not None:
            place %= len(size) + 1
            size = (*size[:place], s.fresh() if length is None else length, *size[place:])
        results.append(Result(value.dtype, size))
    return results
