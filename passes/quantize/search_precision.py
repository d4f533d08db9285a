"""Static quantization within a bound on the error: nodes stay float where int8 saves least for the error it makes.

Lives here: the search. How nodes are quantized is quantize-static's; what they cost the outputs is asked of _probe.py,
and what int8 saves of _savings.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import GraphoptError
from graphopt.ir.constants import const_array
from graphopt.passes.quantize._flow import Flow, find_flow
from graphopt.passes.quantize._kinds import kind_of
from graphopt.passes.quantize.quantize_static import QuantizeStatic
from graphopt.quantization.affine import QParams, dequantize

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._savings import Measure
    from graphopt.passes.quantize._static_plan import Planner


@dataclass(frozen=True)
class SearchPrecision(QuantizeStatic):
    """quantize-static where it saves most, with outputs that keep a signal-to-noise ratio on the samples.

    Options:
        sqnr: decibels that the outputs must keep: 10 log10(sum y^2 / sum (y - y')^2), mean over the outputs.
        by: what int8 is to save: `time` measured on this machine, `bytes` of weights, or `work` (multiply-accumulates
            in float). `auto` is time where the target runs here and times nodes, else work; a remark says which.
        others: those of quantize-static.

    Nodes that int8 saves nothing at stay float. Each other node with work is rounded alone, and what that costs the
    outputs is measured, without labels. To give up least for the most error is a knapsack; it is filled by error over
    what int8 saves beside the neighbours as they are by then, the sum of the errors is checked with all the rest
    rounded together, repaired until it holds, and what was left out needlessly is taken back. The plan has
    `sensitivity` {site: relative squared error}, `by`, and with time `seconds` {site: {float, int8}} besides what
    quantize-static decides. Measured times differ from run to run; a plan that is given is carried out as it stands.
    """

    name: ClassVar[str] = "search-precision"
    sqnr: float = 20.0
    by: Literal["auto", "time", "bytes", "work"] = "auto"

    def check(self) -> None:
        super().check()
        if not 0 < self.sqnr < 200:
            raise GraphoptError(f"pass {self.name!r}: sqnr={self.sqnr:g} is no ratio in decibels between 0 and 200")

    def plan(self, model: ir.Model, ctx: Context) -> Mapping[str, Any]:
        from graphopt.passes.quantize._static_plan import Planner

        planner = Planner(model, ctx, self.choices(ctx), self.name)
        planner.choose()
        if not planner.chosen:
            return planner.go()
        flow = planner.measured_flow()
        values = planner.values(flow)
        nodes = [node for node in flow.nodes if kind_of(node) == "compute"]
        measure = self._measure(ctx, planner, flow, values, nodes)
        # What only clips is part of the node before it.
        planner.left.update(node for node in measure.useless if kind_of(node) in ("own", "moves"))
        with _Search(ctx, planner, values, nodes, measure, 10 ** (-self.sqnr / 10)) as search:
            left = search.run()
            found = {
                "sensitivity": {ctx.rewriter.site(node): error for node, error in search.alone.items()},
                "error": search.reached,
                **measure.record(),
            }
        for node, why in left.items():
            del planner.chosen[node]
            planner.left.add(node)
            planner.kept[ctx.rewriter.site(node)] = why
        # With the ranges that were searched with: chosen anew, they would be others than those whose error is known.
        return {**planner.decisions(planner.measured_flow(), values), **found}

    def _measure(
        self, ctx: Context, planner: Planner, flow: Flow, values: Mapping[str, QParams], nodes: list[ir.Node]
    ) -> Measure:
        from graphopt.analysis.cost import node_cost
        from graphopt.passes.quantize._range_choice import sizes_of
        from graphopt.passes.quantize._savings import Bytes, Time, Work

        if self.by == "bytes":
            return Bytes(ctx, planner, nodes, values)
        sizes = sizes_of(ctx)[0]
        macs = {node: node_cost(node, ctx.shapes, sizes).macs or 1 for node in nodes}
        if self.by == "work":
            return Work(macs)
        try:
            if ctx.timer is None:
                raise GraphoptError("nodes cannot be timed: no target is set")
            decisions = planner.decisions(flow, values)
            seconds = ctx.timer(ctx.model, self._quantized(ctx, decisions), decisions["nodes"].keys())
            measure = Time(seconds, ctx, flow, macs)
        except GraphoptError as why:
            if self.by == "time":
                raise GraphoptError(f"pass {self.name!r}: by=time: {why}") from None
            ctx.note(f"weighs error against multiply-accumulates, as {why}")
            return Work(macs)
        ctx.note(f"weighs error against time: {measure.summary()}; only --plan repeats the choice for sure")
        return measure

    def _quantized(self, ctx: Context, decisions: Mapping[str, Any]) -> ir.Model:
        """A copy of the model in which these decisions are carried out."""
        from graphopt.manager.context import Context

        copy = ctx.model.clone()
        inner = Context(copy, target=ctx.target, calibration=ctx.calibration, max_bytes=ctx.max_bytes)
        inner.rewriter.pass_name = inner.pass_name = self.name
        self.apply(copy, inner, decisions)
        return copy


class _Search:
    """The nodes to leave float, for a bound on the relative squared error of the outputs."""

    def __init__(
        self,
        ctx: Context,
        planner: Planner,
        values: Mapping[str, QParams],
        nodes: list[ir.Node],
        measure: Measure,
        bound: float,
    ) -> None:
        from graphopt.passes.quantize._probe import Probe, Rounded, samples_for
        from graphopt.passes.quantize._range_choice import macs_of, readers_of

        self.ctx, self.planner, self.nodes, self.measure, self.bound = ctx, planner, nodes, measure, bound
        self.left = {node: why for node in nodes if (why := measure.useless.get(node)) is not None}
        flow = self._flow(self.left)
        self.values = {str(value.name): values[str(value.name)] for value in flow.measured()}
        self.alone: dict[ir.Node, float] = {}
        self.reached = 0.0
        asked = [node for node in nodes if node not in self.left]
        weights = {str(node.name): self._rounded(node, values) for node in asked}
        readers = {
            str(value.name): Rounded(self.values[str(value.name)].type, readers_of(flow, value))
            for value in flow.measured()
        }
        self.probe = Probe(ctx, readers, weights, samples_for(macs_of(ctx), 2 * len(asked)))

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, *exc: object) -> None:
        self.probe.__exit__()

    def run(self) -> dict[ir.Node, str]:
        """The nodes that stay float and why, in the order of the graph."""
        self._leave_unpaid()
        for node in self._rest():
            near = [value for value in (*node.inputs[:1], *node.outputs) if value is not None]
            mine = {str(value.name): self.values[str(value.name)] for value in near if value.name in self.values}
            self.alone[node] = self.probe.error(mine, [str(node.name)])
        given_up: list[ir.Node] = []
        while (now := self._together(self.left)) > self.bound and self._rest():
            given_up += self._leave_noisy(now - self.bound)
            self._leave_unpaid()
        for node in sorted(given_up, key=self._regained, reverse=True):
            without = {other: why for other, why in self.left.items() if other is not node}
            if self._regained(node) > 0 and self._together(without) <= self.bound:
                self.left = without
        self.reached = self._together(self.left)
        return {node: self.left[node] for node in self.nodes if node in self.left}

    def _rest(self) -> list[ir.Node]:
        return [node for node in self.nodes if node not in self.left]

    def _leave_noisy(self, excess: float) -> list[ir.Node]:
        """Leave nodes of the most error for what they save: as many as the sum of single errors says are too many."""
        lost = {node: self._cost({*self.left, node}) - self._cost(self.left) for node in self._rest()}
        ranked = sorted(lost, key=lambda node: self.alone[node] / lost[node], reverse=True)
        left = []
        for node in ranked:
            error, saved = self.alone[node], self.measure.text(lost[node])
            self.left[node] = f"alone it costs the outputs {error:.2g} of their power, and int8 saves {saved}"
            left.append(node)
            excess -= error
            if excess <= 0:
                break
        return left

    def _leave_unpaid(self) -> None:
        """Leave nodes that int8 saves nothing at any more, now that their neighbours are float."""
        while True:
            now = self._cost(self.left)
            unpaid = {node: lost for node in self._rest() if (lost := self._cost({*self.left, node}) - now) <= 0}
            if not unpaid:
                return
            # One at a time: what is left out changes what its neighbours save.
            node = min(unpaid, key=unpaid.__getitem__)
            self.left[node] = f"beside what stays float int8 saves {self.measure.text(0)}"

    def _regained(self, node: ir.Node) -> float:
        return self._cost(self.left) - self._cost(self.left.keys() - {node})

    def _cost(self, left: Collection[ir.Node]) -> float:
        return self.measure.cost(self._flow(left))

    def _flow(self, left: Collection[ir.Node]) -> Flow:
        """What runs in int8 with these nodes left out."""
        chosen = {node: None for node in self.planner.chosen if node not in left}
        return find_flow(self.ctx.model.graph, chosen, {*self.planner.left, *left})

    def _together(self, left: Collection[ir.Node]) -> float:
        """The error with all but these rounded."""
        flow = self._flow(left)
        names = {str(value.name) for value in flow.measured()}
        rounded = {name: params for name, params in self.values.items() if name in names}
        return self.probe.error(rounded, [str(node.name) for node in flow.nodes if kind_of(node) == "compute"])

    def _rounded(self, node: ir.Node, values: Mapping[str, QParams]) -> Any:
        from graphopt.passes.quantize._weights8 import codes_of

        weights = const_array(node.inputs[1], self.ctx.max_bytes)
        assert weights is not None
        params = self.planner.weights(node, values)
        return dequantize(codes_of(node, weights, params, self.planner.choices.safe), params)
