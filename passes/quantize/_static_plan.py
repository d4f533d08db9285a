"""Decides how a model is quantized statically: nodes, scales of activations and weights, and why nodes stay float.

    decisions = Planner(model, ctx, choices, name).go()      # JSON values; QuantizeStatic.apply carries them out

`values` {name: {type, scale, zero_point}} are float values that become codes. `nodes` {site: {op, constants, rounded}}
run in int8; `constants` {slot: {type, axis, scale, zero_point, safe}} are their weights, `rounded` the outputs that
become codes. `kept` {site: reason} are nodes with work that stay as they are. `origin` says whence the samples came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir import sites
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_tensor
from graphopt.passes.quantize._flow import Flow, clipped_range, find_flow
from graphopt.passes.quantize._kinds import COMPUTE, FIXED_RANGES, data_slots, kind_of, weight_axis
from graphopt.passes.quantize._qdq_opsets import why_no_scales
from graphopt.passes.quantize._range_choice import AUTOMATIC, choose_ranges
from graphopt.passes.quantize._selectors import select
from graphopt.passes.quantize._weight_codes import refuse_lost
from graphopt.passes.quantize._weight_sites import DONE
from graphopt.passes.quantize._weights8 import Ranges, choose_params, codes_of, fit_to_bias
from graphopt.quantization.affine import QParams, QType, channel_ranges, params_from_range
from graphopt.quantization.weights import lost_weights

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.quantization.ranges import Method

_MOST_LOST = 0.8
"""Share of weights that may round to zero beside larger ones. Layers of MobileNetV2, MiniLM and PP-OCRv4 lose up to
0.29 in int8, 0.71 in int4, and with one scale for all channels 0.74 in int8."""
ALREADY = "it is quantized already"
"""The reason of nodes that are not touched, though they are not float either."""


@dataclass(frozen=True)
class Choices:
    """The options of a static quantization, read and checked.

    Attributes:
        activation, weight: types of the codes.
        method: how a range is taken from what calibration saw; None: per value, whatever harms the outputs least.
        weight_ranges: how weight scales are chosen.
        symmetric: zero in the middle of the activations' codes.
        per_channel: one weight scale per output channel.
        power_of_two: scales are powers of two.
        safe: codes of weights that cannot saturate 16-bit sums.
        skip: selectors of nodes that stay float.
        ops: op types with work that are quantized.
    """

    activation: QType
    weight: QType
    method: Method | None
    weight_ranges: Ranges = "max"
    symmetric: bool = False
    per_channel: bool = True
    power_of_two: bool = False
    safe: bool = False
    skip: tuple[str, ...] = ()
    ops: tuple[str, ...] = ("Conv", "MatMul", "Gemm")


class Planner:
    """Makes the decisions for a main graph; `choose`, `measured_flow`, `values` and `weights` are its steps."""

    def __init__(self, model: ir.Model, ctx: Context, choices: Choices, name: str) -> None:
        self.model, self.ctx, self.choices, self.name = model, ctx, choices, name
        self.graph = model.graph
        self.chosen: dict[ir.Node, None] = {}
        self.kept: dict[str, str] = {}
        self.left: set[ir.Node] = set()
        self._scales: dict[ir.Node, QParams] = {}
        self.no_scales = why_no_scales(ctx.rewriter.opset(""), choices.per_channel)

    def go(self) -> dict[str, Any]:
        """All steps."""
        self.choose()
        if not self.chosen:
            return {"values": {}, "nodes": {}, "kept": self.kept, "origin": ""}
        flow = self.measured_flow()
        return self.decisions(flow, self.values(flow))

    def decisions(self, flow: Flow, values: Mapping[str, QParams]) -> dict[str, Any]:
        """What is decided, as JSON values."""
        return {
            "values": {str(v.name): _to_json(values[str(v.name)]) for v in (*flow.fed, *flow.rounded)},
            "nodes": {self.ctx.rewriter.site(node): self._node(node, flow, values) for node in flow.nodes},
            "kept": self.kept,
            "origin": self.ctx.need_calibration().origin,
        }

    # -- which nodes --------------------------------------------------------------------------------------------

    def choose(self) -> None:
        by_site = {self.ctx.rewriter.site(node): node for node in self.graph}
        self.left = select(self.choices.skip, by_site, f"pass {self.name!r}: skip")
        for scope in sites.scopes(self.model):
            for node in scope.graph:
                site = self.ctx.rewriter.site(node)
                if node.op_type in DONE:
                    self.kept[site] = ALREADY
                if node.op_type not in COMPUTE or node.domain != "":
                    continue
                reason = self._why_not(node, scope.graph)
                if reason is None:
                    self.chosen[node] = None
                else:
                    self.kept[site] = reason
        if self.no_scales is not None and self.no_scales in self.kept.values():
            self.ctx.note(self.no_scales)

    def _why_not(self, node: ir.Node, graph: ir.Graph) -> str | None:
        """Why a node with work stays float; None when it can run in int8."""
        from graphopt import ir

        if node.op_type not in self.choices.ops:
            return f"ops are {', '.join(self.choices.ops)}"
        if node in self.left:
            return "named by skip"
        if graph is not self.graph:
            return "it is in a subgraph or function, whose values cannot be observed"
        if self.no_scales is not None:
            return self.no_scales
        source, weights = node.inputs[0], node.inputs[1]
        if source is None or weights is None or source.dtype != ir.DataType.FLOAT:
            return f"its input is {source.dtype if source is not None else 'absent'}, not float32"
        makers = [value.producer() for value in node.inputs if value is not None]
        if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            return ALREADY
        axis = weight_axis(node)
        if const_tensor(source) is not None or axis is None:
            return (
                "it multiplies two computed values" if const_tensor(weights) is None else "its weights have no matrix"
            )
        return self._why_not_constants(node) or self._why_not_left(node)

    def _why_not_constants(self, node: ir.Node) -> str | None:
        import numpy as np

        weights = const_array(node.inputs[1], self.ctx.max_bytes)
        if weights is None:
            return f"its weights have more than {self.ctx.max_bytes} bytes"
        if weights.size == 0:
            return "its weights are empty"
        if not np.isfinite(weights).all():
            return "its weights hold NaN or infinities"
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return self._why_not_gemm(node)
        bias = const_array(node.inputs[2], self.ctx.max_bytes)
        if bias is None:
            return "its bias is computed"
        if not np.isfinite(bias).all():
            return "its bias holds NaN or infinities"
        axis = weight_axis(node)
        assert axis is not None
        if bias.shape != (weights.shape[axis],):
            return f"its bias has the shape {list(bias.shape)}, not one element per output channel"
        return self._why_not_gemm(node)

    def _why_not_gemm(self, node: ir.Node) -> str | None:
        if node.op_type != "Gemm":
            return None
        for key, plain in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
            attr = node.attributes.get(key)
            if attr is not None and attr.value != plain:
                return f"{key}={attr.value:g} has no int8 kernel"
        return None

    def _why_not_left(self, node: ir.Node) -> str | None:
        """Why too little would be left of its weights."""
        weights = const_array(node.inputs[1], self.ctx.max_bytes)
        assert weights is not None
        codes = codes_of(node, weights, self._own_scales(node), self.choices.safe)
        try:
            refuse_lost(*lost_weights(weights, codes), _MOST_LOST)
        except NoMatch as why:
            return str(why)
        return None

    # -- ranges -------------------------------------------------------------------------------------------------

    def measured_flow(self) -> Flow:
        """The flow around the chosen nodes; it is made anew without those whose values have no usable range."""
        while True:
            flow = find_flow(self.graph, self.chosen, self.left)
            names = [value.name or "" for value in flow.measured() if self._fixed(value) is None]
            self.stats = self.ctx.need_calibration().statistics(self.model, names) if names else {}
            bad = {name: reason for name in names if (reason := _unusable(self.stats[name]))}
            if not bad:
                return flow
            before = len(self.chosen), len(self.left)
            for node in list(flow.nodes):
                read = [node.inputs[slot] for slot in data_slots(node)]
                near = [value.name for value in (*read, *node.outputs) if value is not None and value.name in bad]
                if near and node in self.chosen:
                    self.kept[self.ctx.rewriter.site(node)] = f"value {near[0]!r} {bad[str(near[0])]}"
                    del self.chosen[node]
                elif near:
                    self.left.add(node)
            if before == (len(self.chosen), len(self.left)):
                raise GraphoptError(f"value {next(iter(bad))!r} {next(iter(bad.values()))} on the calibration data")

    def _fixed(self, value: ir.Value) -> tuple[float, float] | None:
        producer = value.producer()
        return FIXED_RANGES.get(producer.op_type) if producer is not None and producer.domain == "" else None

    def _candidates(self, flow: Flow) -> dict[ir.Value, list[QParams]]:
        """Quantizers to choose from, for every value whose range is measured."""
        return {value: [self._params(value, method) for method in AUTOMATIC] for value in flow.measured()}

    def values(self, flow: Flow) -> dict[str, QParams]:
        """How every float value that becomes codes is quantized, by name."""
        chosen = choose_ranges(self.ctx, flow, self._candidates(flow)) if self.choices.method is None else {}
        values: dict[str, QParams] = {}
        for value in (*flow.fed, *flow.rounded):
            source = flow.source(value)
            values[str(value.name)] = chosen.get(source) or self._params(source, self.choices.method or AUTOMATIC[0])
        return values

    def _params(self, value: ir.Value, method: Method) -> QParams:
        fixed = self._fixed(value)
        if fixed is not None:
            low, high = fixed
        else:
            low, high = method.choose(self.stats[str(value.name)], self.choices.activation, self.choices.symmetric)
        low, high = clipped_range(value, low, high)
        return params_from_range(
            low,
            high,
            self.choices.activation,
            symmetric=self.choices.symmetric,
            power_of_two=self.choices.power_of_two,
        )

    # -- nodes --------------------------------------------------------------------------------------------------

    def _node(self, node: ir.Node, flow: Flow, values: Mapping[str, QParams]) -> dict[str, Any]:
        rounded = [index for index, out in enumerate(node.outputs) if out in flow.rounded]
        constants: dict[str, Any] = {}
        if kind_of(node) == "compute":
            constants["1"] = {**_to_json(self.weights(node, values)), "safe": self.choices.safe}
        else:
            for slot in data_slots(node):
                array = const_array(node.inputs[slot], self.ctx.max_bytes)
                if array is not None and kind_of(node) == "own":
                    params = params_from_range(*channel_ranges(array, None), self.choices.activation)
                    constants[str(slot)] = _to_json(params)
        return {"op": node.op_type, "constants": constants, "rounded": rounded}

    def weights(self, node: ir.Node, values: Mapping[str, QParams]) -> QParams:
        """How the weights of a node with work are quantized."""
        weights = const_array(node.inputs[1], self.ctx.max_bytes)
        source = node.inputs[0]
        assert weights is not None and source is not None
        bias: np.ndarray | None = const_array(node.inputs[2]) if len(node.inputs) > 2 else None
        return fit_to_bias(self._own_scales(node), weights, bias, float(values[str(source.name)].scale))

    def _own_scales(self, node: ir.Node) -> QParams:
        """Of its weights, whatever its bias needs."""
        if node not in self._scales:
            weights = const_array(node.inputs[1], self.ctx.max_bytes)
            assert weights is not None
            axis, asked = weight_axis(node) if self.choices.per_channel else None, self.choices
            self._scales[node] = choose_params(node, weights, asked.weight, axis, asked.weight_ranges, asked.safe)
        return self._scales[node]


def _unusable(stats: Any) -> str:
    """Why a value's statistics give no range; '' when they do."""
    if stats.count == 0:
        return "was never computed, or is empty"
    if not stats.finite:
        return f"holds {stats.nan} NaN and {stats.inf} infinities"
    return ""


def _to_json(params: QParams) -> dict[str, Any]:
    return {
        "type": params.type.name,
        "axis": params.axis,
        "scale": params.scale.tolist(),
        "zero_point": params.zero_point.tolist() if params.zero_point.any() else 0,
    }
