"""Full integer models: inputs and outputs become codes, for devices that have no floats around the model.

What the codes mean stands in the metadata (graphopt/quantization/interface.py). Not here: the model inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from graphopt.ir.constants import const_scalar
from graphopt.manager.base import Pass, Tolerance
from graphopt.quantization.affine import QParams, params_from_range, qtype, storage
from graphopt.quantization.interface import read_codes, write_codes

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

    Fresh = Callable[[str], str]


_OPSET = 10


@dataclass(frozen=True)
class IntegerIO(Pass):
    """f(x) -> Quantize(f(Dequantize(x))): float32 inputs and outputs become codes of 8 bits under the same names.

    Options:
        type: of the codes where the model itself has none at that place.
        inputs, outputs: which of the two.

    Where the model quantizes an input or dequantizes an output already, these codes are used and both conversions are
    gone; elsewhere the range comes from calibration (min-max). The interface changes; the metadata `graphopt.codes`
    has type, scale and zero point of each.
    """

    name: ClassVar[str] = "integer-io"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    calibrated: ClassVar[bool] = True
    changes_interface: ClassVar[bool] = True
    tolerance: ClassVar[Tolerance] = "lossy"
    after: ClassVar[tuple[str, ...]] = ("quantize-static", "search-precision", "round-weights", "correct-bias")
    scope = "main"

    type: Literal["uint8", "int8"] = "uint8"
    inputs: bool = True
    outputs: bool = True

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.quantization.ranges import parse_method

        if ctx.rewriter.opset("") < _OPSET:
            ctx.note(f"opset {ctx.rewriter.opset('')} has no QuantizeLinear; raise it with convert-opset")
            return
        ends = [value for value in model.graph.inputs if self.inputs] + [v for v in model.graph.outputs if self.outputs]
        wanted = [value for value in ends if self._is_wanted(value, ctx)]
        found = {str(value.name): _own_codes(value) for value in wanted}
        unknown = [name for name, params in found.items() if params is None]
        stats = ctx.need_calibration().statistics(model, unknown) if unknown else {}
        codes = {
            name: params_from_range(
                *parse_method("minmax").choose(stats[name], qtype(self.type), False), qtype(self.type)
            )
            if params is None
            else params
            for name, params in found.items()
        }
        if not codes:
            return
        changed, fresh = model.clone(), ctx.rewriter.fresh_name
        for index, value in enumerate(changed.graph.inputs):
            if self.inputs and value.name in codes:
                _retype_input(changed.graph, index, codes[value.name], fresh)
        for index, value in enumerate(changed.graph.outputs):
            if self.outputs and value.name in codes:
                _retype_output(changed.graph, index, codes[value.name], fresh)
        ctx.rewriter.replace_graph(changed)
        write_codes(model, {**read_codes(model), **codes})
        for name, params in codes.items():
            text = (
                f"{params.type.name} codes, real value = (code - {int(params.zero_point)}) * {float(params.scale):.6g}"
            )
            ctx.remarks.applied(self.name, name, "", text)

    def _is_wanted(self, value: ir.Value, ctx: Context) -> bool:
        from graphopt import ir

        name = str(value.name)
        if value.dtype != ir.DataType.FLOAT:
            if value.dtype is not None and value.dtype.is_floating_point():
                ctx.remarks.missed(self.name, name, "", f"it is {value.dtype.name}, not float32")
            return False
        if value.is_graph_input() and value.is_graph_output():
            ctx.remarks.missed(self.name, name, "", "it is an input and an output")
            return False
        if value.const_value is not None:
            ctx.remarks.missed(self.name, name, "", "it is a constant")
            return False
        return True


def _own_codes(value: ir.Value) -> QParams | None:
    """The codes that the model has at an input or output already."""
    if value.is_graph_input():
        readers = [use.node for use in value.uses() if use.node.op_type == "QuantizeLinear" and use.idx == 0]
        return next((params for params in map(_params, readers) if params is not None), None)
    maker = value.producer()
    return _params(maker) if maker is not None and maker.op_type == "DequantizeLinear" else None


def _params(node: ir.Node) -> QParams | None:
    """Of a Q or DQ with constants per tensor, for codes of 8 bits."""
    import numpy as np

    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    scale, zero = const_scalar(node.inputs[1]), 0
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = const_scalar(node.inputs[2])  # type: ignore[assignment]
    if (
        codes is None
        or codes.dtype is None
        or codes.dtype.name not in ("UINT8", "INT8")
        or scale is None
        or zero is None
    ):
        return None
    return QParams(qtype(codes.dtype.name.lower()), np.array(scale, np.float32), np.array(int(zero), np.int64))


def _same(a: QParams | None, b: QParams) -> bool:
    return a is not None and a.type == b.type and a.scale == b.scale and a.zero_point == b.zero_point


def _retype_input(graph: ir.Graph, index: int, params: QParams, fresh: Fresh) -> None:
    from graphopt import ir

    old = graph.inputs[index]
    name = str(old.name)
    codes = ir.Value(name=name, type=ir.TensorType(ir.DataType[params.type.name.upper()]), shape=old.shape)
    old.name = fresh(f"{name}_real")
    graph.inputs[index] = codes
    for use in list(old.uses()):
        made = use.node.outputs[0]
        reads_codes = use.node.op_type == "QuantizeLinear" and use.idx == 0 and _same(_params(use.node), params)
        if reads_codes and not made.is_graph_output() and use.node.graph is graph:
            made.replace_all_uses_with(codes)
            graph.remove(use.node, safe=True)
    if not old.uses():
        return
    back = ir.node(
        "DequantizeLinear", [codes, *_constants(graph, name, params, fresh)], name=fresh(f"{name}_dequantize")
    )
    real = back.outputs[0]
    real.name, real.shape, real.type = fresh(f"{name}_dequantized"), old.shape, old.type
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, real)
    graph.insert_before(graph[0], back)


def _retype_output(graph: ir.Graph, index: int, params: QParams, fresh: Fresh) -> None:
    from graphopt import ir

    old = graph.outputs[index]
    name, maker = str(old.name), old.producer()
    old.name = fresh(f"{name}_real")
    codes = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else None
    made_here = codes is not None and codes.producer() is not None and not codes.is_graph_output()
    if codes is not None and made_here and maker is not None and _same(_params(maker), params):
        codes.name = name
        graph.outputs[index] = codes
        if not old.uses():
            graph.remove(maker, safe=True)
        return
    node = ir.node("QuantizeLinear", [old, *_constants(graph, name, params, fresh)], name=fresh(f"{name}_quantize"))
    result = node.outputs[0]
    result.name, result.shape = name, old.shape
    result.type = ir.TensorType(ir.DataType[params.type.name.upper()])
    graph.outputs[index] = result
    graph.append(node)


def _constants(graph: ir.Graph, name: str, params: QParams, fresh: Fresh) -> list[ir.Value]:
    import numpy as np

    from graphopt import ir

    arrays = {
        "scale": np.asarray(params.scale, np.float32),
        "zero_point": params.zero_point.astype(storage(params.type)),
    }
    values = []
    for what, array in arrays.items():
        called = fresh(f"{name}_{what}")
        value = ir.Value(name=called, const_value=ir.Tensor(array, name=called))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape([])
        graph.register_initializer(value)
        values.append(value)
    return values
