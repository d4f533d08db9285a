"""Static quantization of as much work as a bound on the error allows: the most sensitive nodes stay float.

Lives here: the search. How nodes are quantized is quantize-static's; what they cost the outputs is asked of _probe.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.errors import GraphoptError
from graphopt.ir.constants import const_array
from graphopt.passes.quantize._kinds import kind_of
from graphopt.passes.quantize.quantize_static import QuantizeStatic
from graphopt.quantization.affine import QParams, dequantize

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._flow import Flow
    from graphopt.passes.quantize._static_plan import Planner


@dataclass(frozen=True)
class SearchPrecision(QuantizeStatic):
    """quantize-static for the most work with which the outputs keep a signal-to-noise ratio on the samples.

    Options:
        sqnr: decibels that the outputs must keep: 10 log10(sum y^2 / sum (y - y')^2), mean over the outputs.
        others: those of quantize-static.

    Each node with work is rounded alone, and what that costs the outputs is measured, without labels. To leave out the
    least work for the most error is a knapsack; it is filled by error per multiply-accumulate, the sum of the errors is
    checked with all the rest rounded together, repaired until it holds, and what was left out needlessly is taken back.
    The plan has `sensitivity` {site: relative squared error} besides what quantize-static decides.
    """

    name: ClassVar[str] = "search-precision"
    sqnr: float = 20.0

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
        with _Search(ctx, planner, flow, values, 10 ** (-self.sqnr / 10)) as search:
            left = search.run()
            found = {
                "sensitivity": {ctx.rewriter.site(node): error for node, error in search.alone.items()},
                "error": search.reached,
            }
        for node in left:
            del planner.chosen[node]
            planner.left.add(node)
            planner.kept[ctx.rewriter.site(node)] = self._why(search, node)
        # With the ranges that were searched with: chosen anew, they would be others than those whose error is known.
        return {**planner.decisions(planner.measured_flow(), values), **found}

    def _why(self, search: _Search, node: ir.Node) -> str:
        return f"alone it costs the outputs {search.alone[node]:.2g} of their power, for {search.work[node]} products"


class _Search:
    """The nodes to leave float, for a bound on the relative squared error of the outputs."""

    def __init__(self, ctx: Context, planner: Planner, flow: Flow, values: Mapping[str, QParams], bound: float) -> None:
        from graphopt.analysis.cost import node_cost
        from graphopt.passes.quantize._probe import Probe, Rounded, samples_for
        from graphopt.passes.quantize._range_choice import macs_of, readers_of, sizes_of

        self.ctx, self.planner, self.flow, self.bound = ctx, planner, flow, bound
        self.values = {str(value.name): values[str(value.name)] for value in flow.measured()}
        self.nodes = [node for node in flow.nodes if kind_of(node) == "compute"]
        sizes = sizes_of(ctx)[0]
        self.work = {node: node_cost(node, ctx.shapes, sizes).macs or 1 for node in self.nodes}
        self.alone: dict[ir.Node, float] = {}
        self.reached = 0.0
        weights = {str(node.name): self._rounded(node, values) for node in self.nodes}
        readers = {
            str(value.name): Rounded(self.values[str(value.name)].type, readers_of(flow, value))
            for value in flow.measured()
        }
        self.probe = Probe(ctx, readers, weights, samples_for(macs_of(ctx), 2 * len(self.nodes)))

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, *exc: object) -> None:
        self.probe.__exit__()

    def run(self) -> list[ir.Node]:
        """The nodes that stay float, in the order of the graph."""
        for node in self.nodes:
            near = [value for value in (*node.inputs[:1], *node.outputs) if value is not None]
            mine = {str(value.name): self.values[str(value.name)] for value in near if value.name in self.values}
            self.alone[node] = self.probe.error(mine, [str(node.name)])
        ranked = sorted(self.nodes, key=lambda node: self.alone[node] / self.work[node], reverse=True)
        left: list[ir.Node] = []
        while (now := self._together(left)) > self.bound and len(left) < len(ranked):
            # As many as the sum of the single errors says are too many, and one at least.
            excess, count = now - self.bound, len(left)
            for node in ranked[count:]:
                left.append(node)
                excess -= self.alone[node]
                if excess <= 0:
                    break
        for node in sorted(left, key=lambda node: self.work[node], reverse=True):
            without = [other for other in left if other is not node]
            if (now := self._together(without)) <= self.bound:
                left = without
        self.reached = self._together(left)
        return [node for node in self.nodes if node in left]

    def _together(self, left: list[ir.Node]) -> float:
        """The error with all but these rounded."""
        from graphopt.passes.quantize._flow import find_flow

        chosen = {node: None for node in self.planner.chosen if node not in left}
        flow = find_flow(self.ctx.model.graph, chosen, {*self.planner.left, *left})
        names = {str(value.name) for value in flow.measured()}
        rounded = {name: params for name, params in self.values.items() if name in names}
        return self.probe.error(rounded, [str(node.name) for node in flow.nodes if node in self.work])

    def _rounded(self, node: ir.Node, values: Mapping[str, QParams]) -> Any:
        from graphopt.passes.quantize._weights8 import codes_of

        weights = const_array(node.inputs[1], self.ctx.max_bytes)
        assert weights is not None
        params = self.planner.weights(node, values)
        return dequantize(codes_of(node, weights, params, self.planner.choices.safe), params)
