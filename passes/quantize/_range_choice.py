"""Which range each value gets when none is asked for: the one that changes the model's outputs least.

    params = choose_ranges(ctx, flow, {value: [QParams, ...]})      # value -> the best of its candidates

A small error of a value may be a large one of the outputs: outliers of transformers carry more than their share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.passes.quantize._flow import Flow
from graphopt.passes.quantize._probe import Probe, Rounded, samples_for
from graphopt.quantization.affine import QParams
from graphopt.quantization.ranges import parse_method

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

AUTOMATIC = tuple(map(parse_method, ("minmax", "mse", "percentile{p=99.99}")))
"""The methods that are tried."""
_ALIKE = 0.05
"""Scales that differ by less than this part are one question."""


def choose_ranges(
    ctx: Context, flow: Flow, candidates: Mapping[ir.Value, Sequence[QParams]]
) -> dict[ir.Value, QParams]:
    """Per value, of its candidates the one with which the outputs change least when it alone is rounded."""
    kinds = {value: different(params) for value, params in candidates.items()}
    asked = {value: params for value, params in kinds.items() if len(params) > 1}
    chosen = {value: params[0] for value, params in kinds.items()}
    if not asked:
        return chosen
    readers = {str(value.name): Rounded(params[0].type, readers_of(flow, value)) for value, params in asked.items()}
    samples = samples_for(macs_of(ctx), sum(map(len, asked.values())))
    with Probe(ctx, readers, {}, samples) as probe:
        for value, params in asked.items():
            errors = [probe.error({str(value.name): item}) for item in params]
            chosen[value] = params[errors.index(min(errors))]
    return chosen


def different(params: Sequence[QParams]) -> list[QParams]:
    """Without those that are much like an earlier one."""
    kept: list[QParams] = []
    for item in params:
        near = [abs(float(item.scale) / float(other.scale) - 1) < _ALIKE for other in kept]
        same = [int(item.zero_point) == int(other.zero_point) for other in kept]
        if not any(a and b for a, b in zip(near, same, strict=True)):
            kept.append(item)
    return kept


def readers_of(flow: Flow, value: ir.Value) -> frozenset[str]:
    """Names of the nodes that see the codes of a value: all, or only int8 nodes where it is not rounded for all."""
    users = [use.node for use in value.uses()]
    return frozenset(str(node.name) for node in users if value in flow.rounded or node in flow.nodes)


def sizes_of(ctx: Context) -> tuple[dict[str, int], int]:
    """What the symbolic dims of the inputs are on the samples, and how many samples a batch has."""
    feeds: Mapping[str, Any] = next(iter(ctx.need_calibration().batches(1)), {})
    sizes: dict[str, int] = {}
    batch = 1
    for value in ctx.model.graph.inputs:
        array = feeds.get(str(value.name))
        if value.shape is None or array is None:
            continue
        batch = max(batch, array.shape[0] if array.ndim else 1)
        sizes.update({str(d.value): n for d, n in zip(value.shape, array.shape, strict=True) if not isinstance(d, int)})
    return sizes, batch


def macs_of(ctx: Context) -> int | None:
    """Multiply-accumulates of one sample, as far as they are known."""
    from graphopt.analysis.cost import model_cost

    sizes, batch = sizes_of(ctx)
    return model_cost(ctx.model, ctx.shapes, sizes).known_macs // batch
