"""Own rules for ONNX Runtime's quantized ops where the package's answer is wrong: it gives pools and means the shape of
their input, and lets different symbols broadcast to the first. What has no rule here and none that holds is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphopt.analysis.shape_attrs import attr_int
from graphopt.analysis.shape_result import Result

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes


def _binary(s: Shapes, node: ir.Node) -> Sequence[Result]:
    """QLinearAdd, QLinearMul: (A, A scale, A zero point, B, ...)."""
    return [Result(s.dtype(node.inputs[0]), s.broadcast_shapes([s.dims(node.inputs[0]), s.dims(node.inputs[3])]))]


def _global_pool(s: Shapes, node: ir.Node) -> Sequence[Result]:
    size = s.dims(node.inputs[0])
    if size is None:
        return [Result(s.dtype(node.inputs[0]))]
    ones = [1] * (len(size) - 2)
    kept = [size[0], *ones, size[-1]] if attr_int(node, "channels_last", 0) else [*size[:2], *ones]
    return [Result(s.dtype(node.inputs[0]), kept)]


def _unknown(s: Shapes, node: ir.Node) -> Sequence[Result]:
    return [Result(s.dtype(node.inputs[0]))]


MICROSOFT_RULES: dict[str, Callable[[Shapes, ir.Node], Sequence[Result]]] = {
    "QLinearAdd": _binary,
    "QLinearAveragePool": _unknown,
    "QLinearGlobalAveragePool": _global_pool,
    "QLinearMul": _binary,
    "QLinearReduceMean": _unknown,
}
