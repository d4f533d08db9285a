"""Dynamic quantization: int8 weights, and activations whose scale is taken from each input as it comes.

Lives here: options, plan, and the rewrite of single sites. Codes of the weights come from _weights8.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import GraphoptError
from graphopt.ir import sites
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import nbytes
from graphopt.manager.plan import PlanPass
from graphopt.manager.plan_entries import Entry, is_bool
from graphopt.passes.quantize._dynamic_forms import INTEGER, emit, integer_weight, quantized_input
from graphopt.passes.quantize._dynamic_lstm import emit_lstm, find_lstm
from graphopt.passes.quantize._saturation import Saturation, note_unknown, wants_safe
from graphopt.passes.quantize._selectors import select
from graphopt.passes.quantize._weight_plan import drop_shared
from graphopt.passes.quantize._weight_sites import ALREADY, DONE, Weight, find_weight
from graphopt.passes.quantize._weights8 import Ranges

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context


@dataclass(frozen=True)
class QuantizeDynamic(PlanPass):
    """MatMul(x, w) -> Cast(MatMulInteger(DynamicQuantizeLinear(x), q)) * (x_scale * scale); Gemm and Conv likewise

    Options:
        ops: MatMul, Gemm, LSTM (where the target has DynamicQuantizeLSTM), and on request Conv.
        skip: sites, op types or regular expressions of sites that stay in float.
        ranges: `max` spans the largest weight of an output channel, `mse` clips where that lowers the squared error.
        saturation: `safe` makes weights that cannot saturate the 16-bit sums of CPUs without VNNI, `ignore` does not;
            `auto` asks the target, and is `safe` without one.

    Weights are symmetric, with a scale per output channel. ONNX Runtime fuses the group, and the Add of a bias behind
    it, into DynamicQuantizeMatMul, or into MatMulIntegerToFloat where several products read one quantized input. The
    plan is {"sites": {site: {"safe": bool}}}.
    """

    name: ClassVar[str] = "quantize-dynamic"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    tolerance = "lossy"

    ops: tuple[Literal["MatMul", "Gemm", "LSTM", "Conv"], ...] = ("MatMul", "Gemm", "LSTM")
    skip: tuple[str, ...] = ()
    ranges: Ranges = "max"
    saturation: Saturation = "auto"

    def plan(self, model: ir.Model, ctx: Context) -> Mapping[str, Any]:
        safe = wants_safe(self.saturation, ctx)
        there = {ctx.rewriter.site(node): node for node in sites.all_nodes(model)}
        skip = select(self.skip, there, f"pass {self.name!r}: skip")
        chosen: dict[ir.Node, dict[str, bool]] = {}
        weights: dict[ir.Node, Weight] = {}
        missed: dict[ir.Node, str] = {}
        for node in there.values():
            if node.op_type in DONE:
                missed[node] = ALREADY
            if node.domain != "" or node.op_type not in self.ops:
                continue
            try:
                if node in skip:
                    raise NoMatch("asked for by skip")
                if node.op_type == "LSTM":
                    find_lstm(node, ctx)
                else:
                    weights[node] = _find(node, ctx, safe)
                chosen[node] = {"safe": safe}
            except NoMatch as reason:
                missed[node] = str(reason)
        products = {node: entry for node, entry in chosen.items() if node in weights}
        drop_shared(products, weights, missed, ctx)
        for node, why in missed.items():
            ctx.remarks.missed(self.name, ctx.rewriter.site(node), node.op_type, why)
        return {"sites": {ctx.rewriter.site(node): entry for node, entry in chosen.items() if node not in missed}}

    def apply(self, model: ir.Model, ctx: Context, decisions: Mapping[str, Any]) -> None:
        there = {ctx.rewriter.site(node): node for node in sites.all_nodes(model)}
        entries = {}
        for site, entry in Entry(f"the plan of {self.name!r}", decisions).entries("sites"):
            if site not in there or there[site].domain or there[site].op_type not in (*INTEGER, "LSTM"):
                raise GraphoptError(f"the plan of {self.name!r}: there is no MatMul, Gemm, Conv or LSTM {site!r}")
            entry.only("safe")
            entries[site] = entry.get("safe", "true or false", is_bool)
        if any(entries.values()):
            note_unknown(self.saturation, ctx)
        work = _Work(ctx, self.ranges)
        for site, node in there.items():
            if site in entries:
                work.attempt(node, entries[site])


def _find(node: ir.Node, ctx: Context, safe: bool) -> Weight:
    """The weight of a node that can be quantized.

    Raises:
        NoMatch: why it stays in float.
    """
    weight = find_weight(node, ctx)
    integer = INTEGER[node.op_type]
    if weight.tensor.dtype.name != "FLOAT":
        raise NoMatch(f"its weight is {weight.tensor.dtype.name.lower()}; DynamicQuantizeLinear takes float")
    transposed = node.attributes.get("transA")
    if transposed is not None and transposed.as_int():
        raise NoMatch(f"{integer} does not transpose its input")
    if node.op_type == "Conv" and safe:
        raise NoMatch("nothing is known of the order in which ConvInteger adds, so saturation is not ruled out")
    if ctx.rewriter.opset("", node) < 11:
        raise NoMatch("DynamicQuantizeLinear exists from opset 11 on")
    for reason in (ctx.supports("DynamicQuantizeLinear"), ctx.supports(integer, "", "UINT8")):
        if reason is not None:
            raise NoMatch(reason)
    if nbytes(weight.tensor) > ctx.max_bytes:
        raise NoMatch(f"its weight has {nbytes(weight.tensor)} bytes, over the limit of {ctx.max_bytes}")
    return weight


class _Work:
    """Rewrites sites one by one; products of one value share its quantized form, readers of one weight its codes."""

    def __init__(self, ctx: Context, ranges: Ranges) -> None:
        self.ctx, self.ranges = ctx, ranges
        self._inputs: dict[tuple[ir.Value, ir.Graph], tuple[ir.Value, ...]] = {}
        self._weights: dict[tuple[Any, ...], tuple[ir.Value, ...]] = {}

    def attempt(self, node: ir.Node, safe: bool) -> None:
        """Rewrite one node in one transaction."""
        ctx, rewriter = self.ctx, self.ctx.rewriter
        site, op_type = rewriter.site(node), node.op_type
        op = rewriter.builder(node)
        try:
            if op_type == "LSTM":
                find_lstm(node, ctx)
                rewriter.replace(node, emit_lstm(op, node, safe), op)
            else:
                self._product(op, node, safe)
        except NoMatch as reason:
            op.discard()
            ctx.remarks.missed(ctx.pass_name, site, op_type, str(reason))
            return
        except BaseException:
            op.discard()
            raise
        how = " that cannot saturate" if safe else ""
        ctx.remarks.applied(ctx.pass_name, site, op_type, f"int8 weights{how}, its input quantized on each run")

    def _product(self, op: Builder, node: ir.Node, safe: bool) -> None:
        source, graph = node.inputs[0], node.graph
        assert source is not None and graph is not None
        weight = _find(node, self.ctx, safe)
        activation = _alive(self._inputs.get((source, graph))) or quantized_input(op, source)
        constants = self._constants(op, weight, safe)
        key = _key(weight, safe)
        self.ctx.rewriter.replace(node, emit(op, weight, activation, constants), op)
        self._inputs[source, graph] = activation
        self._weights[key] = constants

    def _constants(self, op: Builder, weight: Weight, safe: bool) -> tuple[ir.Value, ...]:
        """Codes and scales, in the graph of the original, where all its readers see them."""
        known = _alive(self._weights.get(_key(weight, safe)))
        if known is not None:
            return known
        codes, scale = integer_weight(weight, self.ranges, safe)
        producer = weight.value.producer()
        home = producer.graph if producer is not None else weight.value.graph
        assert home is not None
        maker = op if home is op.anchor.graph else self.ctx.rewriter.builder(next(iter(home)))
        made = (maker.const(codes, f"{weight.value.name}_codes"), maker.const(scale, f"{weight.value.name}_scale"))
        if maker is not op:
            op.constants += maker.constants
        return made


def _key(weight: Weight, safe: bool) -> tuple[Any, ...]:
    alpha = weight.node.attributes.get("alpha")
    return weight.value, weight.across, None if alpha is None else alpha.as_float(), safe, weight.node.op_type == "Conv"


def _alive(values: tuple[ir.Value, ...] | None) -> tuple[ir.Value, ...] | None:
    """Values made for an earlier site, while they are part of the graph."""
    if values is None:
        return None
    producers = (value.producer() for value in values)
    there = all(
        (producer.graph if producer is not None else value.graph) is not None
        for value, producer in zip(values, producers, strict=True)
    )
    return values if there else None
