"""Why a pass does or does not apply: its remarks on a model, and the deepest near miss of its pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.manager.context import Context
from graphopt.manager.pattern import RewritePass
from graphopt.manager.pipeline import Pipeline
from graphopt.manager.remarks import Remark
from graphopt.manager.runner import run

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.base import Pass
    from graphopt.manager.pipeline import Fix
    from graphopt.target import Target


@dataclass(frozen=True)
class Explanation:
    """What one pass does to a model: sites where it applied or was missed, and the nearest miss of its pattern."""

    pass_name: str
    before: str
    applied: tuple[Remark, ...]
    missed: tuple[Remark, ...]
    nearest: Remark | None
    nearest_depth: int

    def as_json(self) -> dict[str, Any]:
        return {
            "pass": self.pass_name,
            "after_pipeline": self.before,
            "applied": [remark.as_json() for remark in self.applied],
            "missed": [remark.as_json() for remark in self.missed],
            "nearest": {**self.nearest.as_json(), "matched_nodes": self.nearest_depth} if self.nearest else None,
        }


def explain(
    model: ir.Model, item: Pass, pipeline: Pipeline, target: Target | None = None, evaluate: Any = None
) -> Explanation:
    """Run `pipeline` up to the first occurrence of the pass, then the pass alone, and collect its remarks.

    Args:
        model: The model; it is changed.
        item: The pass to explain.
        pipeline: What comes before it; without the pass in it, nothing is run first.
        target: Whose ops may be emitted.
        evaluate: The folding evaluator, see manager.context.
    """
    before = _prefix(pipeline, item.name)
    ctx = Context(model, target=target, evaluate=evaluate)
    run(model, before, ctx)
    nearest, depth = _nearest(item, ctx)
    run(model, Pipeline((item,)), ctx)
    mine = [remark for remark in ctx.remarks if remark.pass_name == item.name]
    applied = tuple(remark for remark in mine if remark.status == "applied")
    missed = tuple(remark for remark in mine if remark.status == "missed")
    return Explanation(item.name, str(before), applied, missed, None if applied else nearest, depth)


def _prefix(pipeline: Pipeline, name: str) -> Pipeline:
    items: list[Pass | Fix] = []
    for item in pipeline.items:
        if any(inner.name == name for inner in Pipeline((item,)).passes()):
            return Pipeline(tuple(items))
        items.append(item)
    return Pipeline()


def _nearest(item: Pass, ctx: Context) -> tuple[Remark | None, int]:
    if not isinstance(item, RewritePass):
        return None, 0
    best, depth = None, 0
    for node in ctx.rewriter.index.of(item.domain, *item.anchors()):
        miss = item.near_miss(node)
        if miss is not None and miss.depth > depth:
            best, depth = Remark(item.name, "missed", ctx.rewriter.site(node), node.op_type, miss.reason), miss.depth
    return best, depth
