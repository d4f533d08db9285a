"""Static quantization in QDQ form: float ops between Dequantize and Quantize, which runtimes fuse into int8 kernels.

Lives here: options, and carrying decisions out node by node. Which nodes and scales: _static_plan.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import GraphoptError
from graphopt.ir import sites
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_array, const_tensor
from graphopt.ir.rewrite_log import StopRewriting
from graphopt.manager.plan import PlanPass
from graphopt.passes.quantize._kinds import data_slots, kind_of
from graphopt.passes.quantize._qdq_opsets import PER_TENSOR, check_type
from graphopt.passes.quantize._saturation import Saturation, note_unknown, wants_safe
from graphopt.passes.quantize._static_entries import read
from graphopt.passes.quantize._weights8 import Ranges, bias_codes, codes_of
from graphopt.quantization.affine import INT32, QParams, qtype, quantize, storage

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._static_plan import Choices


@dataclass(frozen=True)
class QuantizeStatic(PlanPass):
    """f(x, w) -> Dequantize(Quantize(f(Dequantize(Quantize(x)), Dequantize(codes of w)))), with scales from samples.

    Options:
        activation: type of the codes of activations.
        weight: type of the codes of weights, always symmetric.
        method: how a range is taken from what calibration saw: `minmax`, `moving-average`, `sigma`, `percentile`,
            `entropy`, `mse`, with their options: `"percentile{p=99.9}"`; `auto` tries some of them value by value and
            takes what changes the model's outputs least.
        weight_ranges: `max` spans the largest weight, `mse` clips where that lowers the squared error.
        symmetric: zero in the middle of the activations' codes.
        per_channel: one weight scale per output channel.
        power_of_two: scales are powers of two (fixed point).
        saturation: `safe` makes weights that cannot saturate the 16-bit sums of CPUs without VNNI, `ignore` does not;
            `auto` asks the target, and is `safe` without one.
        skip: sites, op types or regular expressions of nodes that stay float.
        ops: op types with work that are quantized.

    Convolutions, and products with constant weights, run in int8, and with them the ops between them that have an int8
    kernel or only move data. What is between other ops stays float. Biases are int32. Decisions: see _static_plan.py.
    """

    name: ClassVar[str] = "quantize-static"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    calibrated: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("equalize-layers", "smooth-quant")
    tolerance = "lossy"
    activation: Literal["uint8", "int8", "uint16", "int16"] = "uint8"
    weight: Literal["int8", "int4", "int16"] = "int8"
    method: str = "auto"
    weight_ranges: Ranges = "max"
    symmetric: bool = False
    per_channel: bool = True
    power_of_two: bool = False
    saturation: Saturation = "auto"
    skip: tuple[str, ...] = ()
    ops: tuple[Literal["Conv", "MatMul", "Gemm"], ...] = ("Conv", "MatMul", "Gemm")

    def check(self) -> None:
        from graphopt.quantization.ranges import parse_method

        if self.method != "auto":
            parse_method(self.method)

    def plan(self, model: ir.Model, ctx: Context) -> Mapping[str, Any]:
        from graphopt.passes.quantize._static_plan import Planner

        return Planner(model, ctx, self.choices(ctx), self.name).go()

    def _safe(self, ctx: Context) -> bool:
        if self.saturation == "auto" and self.weight != "int8":
            return False
        return wants_safe(self.saturation, ctx)

    def choices(self, ctx: Context) -> Choices:
        """The options, with what `auto` stands for on the target.

        Raises:
            GraphoptError: the model's opset has no codes of these types.
        """
        from graphopt.passes.quantize._static_plan import Choices
        from graphopt.quantization.ranges import parse_method

        opset = ctx.rewriter.opset("")
        if opset >= PER_TENSOR:  # below, nothing is quantized, and every node has that reason
            check_type(f"pass {self.name!r}: activation={self.activation}", self.activation, opset)
            check_type(f"pass {self.name!r}: weight={self.weight}", self.weight, opset)
        return Choices(
            activation=qtype(self.activation),
            weight=qtype(self.weight),
            method=None if self.method == "auto" else parse_method(self.method),
            weight_ranges=self.weight_ranges,
            symmetric=self.symmetric,
            per_channel=self.per_channel,
            power_of_two=self.power_of_two,
            safe=self._safe(ctx),
            skip=self.skip,
            ops=self.ops,
        )

    def apply(self, model: ir.Model, ctx: Context, decisions: Mapping[str, Any]) -> None:
        by_site = {ctx.rewriter.site(node): node for node in model.graph}
        values = read(ctx, decisions, by_site)
        stay = self._say_kept(model, ctx, decisions["kept"])
        if decisions["nodes"]:
            ctx.floats = model.clone()
        work = _Quantization(ctx, values)
        done: Counter[str] = Counter()
        for site, node in by_site.items():  # in the order of the graph: what is shared is made where it is first read
            if site in decisions["nodes"] and work.attempt(node, decisions["nodes"][site]):
                done["work" if kind_of(node) == "compute" else "other"] += 1
        if any(data.get("safe") for node in decisions["nodes"].values() for data in node["constants"].values()):
            note_unknown(self.saturation, ctx)
        if done:
            ctx.note(
                f"{done['work']} nodes with work run in {self.weight}, and {done['other']} around them; "
                f"{stay} nodes with work stay float; calibrated on {decisions['origin']}"
            )

    def _say_kept(self, model: ir.Model, ctx: Context, kept: Mapping[str, str]) -> int:
        """Remark on the nodes that are not quantized; returns how many of them are float."""
        from graphopt.passes.quantize._static_plan import ALREADY

        ops = {ctx.rewriter.site(node): node.op_type for node in sites.all_nodes(model)}
        for site, reason in kept.items():
            ctx.remarks.missed(
                self.name, site, ops.get(site, ""), reason if reason == ALREADY else f"stays float: {reason}"
            )
        done = sum(reason == ALREADY for reason in kept.values())
        if done:
            ctx.note(f"{done} nodes with work are quantized already and stay as they are")
        return len(kept) - done


class _Quantization:
    """Rewrites planned nodes one by one; after each the model is legal, so that bisecting can stop anywhere."""

    def __init__(self, ctx: Context, values: Mapping[str, QParams]) -> None:
        self.ctx = ctx
        self.values = values
        self._pairs: dict[ir.Value, ir.Value] = {}  # float value -> behind Quantize and Dequantize

    def attempt(self, node: ir.Node, decision: Mapping[str, Any]) -> bool:
        """Rewrite one node in one transaction."""
        rewriter, remarks, name = self.ctx.rewriter, self.ctx.remarks, self.ctx.pass_name
        site, op = rewriter.site(node), rewriter.builder(node)
        made: dict[ir.Value, ir.Value] = {}
        try:
            rewriter.replace(node, self._quantized(op, node, decision, made), op)
        except NoMatch as why:
            op.discard()
            remarks.missed(name, site, node.op_type, str(why))
            return False
        except StopRewriting:
            op.discard()
            raise
        self._pairs.update(made)
        remarks.applied(name, site, node.op_type, f"runs in {', '.join(_types(decision)) or 'the codes of its input'}")
        return True

    def _quantized(
        self, op: Builder, node: ir.Node, decision: Mapping[str, Any], made: dict[ir.Value, ir.Value]
    ) -> list[ir.Value | None]:
        inputs = list(node.inputs)
        constants = {int(slot): data for slot, data in decision["constants"].items()}
        for slot in data_slots(node) if kind_of(node) != "clips" else ():
            value = node.inputs[slot]
            if value is not None and const_tensor(value) is None and slot not in constants:
                inputs[slot] = self._pair(op, value, made)
        for slot, data in constants.items():
            inputs[slot] = self._constant(op, node, slot, data)
        if kind_of(node) == "compute" and len(node.inputs) > 2 and node.inputs[2] is not None:
            inputs[2] = self._bias(op, node, _params(constants[1]))
        results = op.clone(node, inputs)
        outputs: list[ir.Value | None] = list(results) if isinstance(results, tuple) else [results]
        for index in decision["rounded"]:
            params, out = self._params_of(node.outputs[index]), outputs[index]
            assert out is not None
            outputs[index] = _round_trip(op, out, params, str(node.outputs[index].name))
        return outputs

    def _pair(self, op: Builder, value: ir.Value, made: dict[ir.Value, ir.Value]) -> ir.Value:
        """The value behind a Quantize and a Dequantize: where it comes from, or made here and shared."""
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            return value
        known = made.get(value) or self._pairs.get(value)
        if known is None or (known is not made.get(value) and known.graph is None):
            known = made[value] = _round_trip(op, value, self._params_of(value), str(value.name))
        return known

    def _params_of(self, value: ir.Value) -> QParams:
        if value.name not in self.values:
            raise GraphoptError(f"the plan of {self.ctx.pass_name!r} has no scale for value {value.name!r}")
        return self.values[str(value.name)]

    def _constant(self, op: Builder, node: ir.Node, slot: int, data: Mapping[str, Any]) -> ir.Value:
        value = node.inputs[slot]
        array = const_array(value, self.ctx.max_bytes)
        assert value is not None and array is not None
        params = _params(data)
        codes = codes_of(node, array, params, data["safe"]) if "safe" in data else quantize(array, params)
        return _dequantized(op, codes, params, f"{value.name}_quantized")

    def _bias(self, op: Builder, node: ir.Node, weights: QParams) -> ir.Value:
        import numpy as np

        source, value = node.inputs[0], node.inputs[2]
        array = const_array(value, self.ctx.max_bytes)
        assert source is not None and value is not None and array is not None
        scale = (weights.scale * self._params_of(source).scale).astype(np.float32)
        params = QParams(INT32, scale, np.zeros(scale.shape, np.int64), None if scale.ndim == 0 else 0)
        return _dequantized(op, bias_codes(array, scale), params, f"{value.name}_quantized")


def _round_trip(op: Builder, value: ir.Value, params: QParams, name: str) -> ir.Value:
    scale, zero = _scale_and_zero(op, params, name)
    codes = op.QuantizeLinear(value, scale, zero)
    restored: ir.Value = op.DequantizeLinear(codes, scale, zero)
    restored.shape = value.shape if restored.shape is None else restored.shape
    return restored


def _dequantized(op: Builder, codes: np.ndarray, params: QParams, name: str) -> ir.Value:
    scale, zero = _scale_and_zero(op, params, name)
    value: ir.Value = op.DequantizeLinear(_codes(op, codes, params, name), scale, zero, axis=params.axis)
    return value


def _scale_and_zero(op: Builder, params: QParams, name: str) -> tuple[ir.Value, ir.Value]:
    import numpy as np

    zero = np.broadcast_to(params.zero_point, params.scale.shape)
    return op.const(params.scale, f"{name}_scale"), _codes(op, zero, params, f"{name}_zero_point")


def _codes(op: Builder, codes: np.ndarray, params: QParams, name: str) -> ir.Value:
    from graphopt import ir

    return op.const(codes.astype(storage(params.type)), name, dtype=ir.DataType[params.type.name.upper()])


def _params(data: Mapping[str, Any]) -> QParams:
    """Read what the plan holds; see _static_plan."""
    import numpy as np

    scale = np.asarray(data["scale"], np.float32)
    zero = np.broadcast_to(np.asarray(data["zero_point"], np.int64), scale.shape)
    return QParams(qtype(data["type"]), scale, zero, data["axis"])


def _types(decision: Mapping[str, Any]) -> list[str]:
    return [data["type"] for data in decision["constants"].values()]
