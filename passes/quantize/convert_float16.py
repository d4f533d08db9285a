"""Half precision: the nodes that gain from it compute in float16, the interface and what is unsafe stay float32.

Lives here: options and the rewrite of single nodes. Which nodes is decided in _half_plan.py, why not in _half_rules.py.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.ir import optable, sites
from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor, model_bytes
from graphopt.ir.rewrite_log import StopRewriting
from graphopt.ir.typetable import operands
from graphopt.manager.base import Pass
from graphopt.passes.quantize._half_constants import LARGEST, narrowed
from graphopt.passes.quantize._half_plan import ALONE, READERS, Limits, Plan, is_float, make_plan, slots

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context

    _Made = tuple[dict[tuple[ir.Value, ir.Graph], ir.Value], dict[tuple[ir.Value, float | None], ir.Value]]


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """f(x) -> Cast(f(Cast(x, float16)), float): weights and inner values become float16 where it is safe and pays.

    Options:
        keep: op types or sites (`scope/node`) that stay in float32.
        max: the largest magnitude that may become float16.
        ranges: JSON file {value name: [min, max]} of values as observed on data; nodes beyond `max` stay in float32.
            Without it and with calibration data, the values of the main graph are observed on that.

    Inputs and outputs of the model, of subgraphs and bodies of functions stay as they are; so do quantized groups, ops
    that overflow by nature, ops that schema or target do not offer in float16, and ops whose constants overflow or
    vanish. Without data only constants are guarded against overflow, not activations.

    A mask like -3.4e38 that is only ever added before a Softmax is cut at -32752, which gives the weight 0 as well; a
    row that is masked altogether keeps finite weights, but they may be others.
    """

    name: ClassVar[str] = "convert-float16"
    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    tolerance = "lossy"
    keep: tuple[str, ...] = ()
    max: float = LARGEST
    ranges: str | None = None

    def check(self) -> None:
        if not 0 < self.max <= LARGEST:
            raise GraphoptError(f"pass {self.name!r}: max={self.max:g} is not above 0 and at most {LARGEST:g}")

    def run(self, model: ir.Model, ctx: Context) -> None:
        if self.ranges is not None:
            observed = _read_ranges(self.name, Path(self.ranges), model)
        else:
            observed = _observe(model, ctx)
        self._check_keep(model, ctx)
        limits = Limits("FLOAT16", self.max, frozenset(self.keep), observed)
        plan = make_plan(model, ctx, limits)
        before = model_bytes(model)
        cut = [node.inputs[slot] for node, slot in plan.saturated if node.op_type != "Clip"]
        masks = {value.name: None for value in cut if value is not None}
        work = _Conversion(ctx, limits, plan)
        try:
            work.go()
        finally:
            self._report(ctx, plan, work.done, before - model_bytes(model), list(masks))

    def _check_keep(self, model: ir.Model, ctx: Context) -> None:
        known = {ctx.rewriter.site(node) for node in sites.all_nodes(model)} if self.keep else set()
        for text in self.keep:
            if text not in known and text not in optable.op_names() | optable.op_names("com.microsoft"):
                near = did_you_mean(text, known | optable.op_names())
                raise GraphoptError(f"pass {self.name!r}: keep={text} is neither an op nor a node of the model{near}")

    def _report(self, ctx: Context, plan: Plan, done: int, saved: int, masks: list[str | None]) -> None:
        reasons: Counter[str] = Counter()
        for node, why in plan.kept.items():
            if node.graph is None or (node.op_type in READERS and node.domain == ""):
                continue
            ctx.remarks.missed(self.name, ctx.rewriter.site(node), node.op_type, f"stays in float32: {why}")
            if why != ALONE:
                reasons[f"{node.op_type}: {why}"] += 1
        if not done:
            return
        left = "; ".join(f"{count} x {text}" for text, count in reasons.most_common(6))
        more = f"; and {len(reasons) - 6} more reasons" if len(reasons) > 6 else ""
        kept = sum(reasons.values())
        ctx.note(f"{done} nodes run in float16, {kept} stay in float32; {saved} bytes of weights saved")
        if left:
            ctx.note(f"left in float32: {left}{more}")
        if masks:
            names = ", ".join(f"{name!r}" for name in masks[:6])
            ctx.note(f"cut at {LARGEST / 2:g}, as it only masks a Softmax: {names}{' ...' if len(masks) > 6 else ''}")
        if self.ranges is None and ctx.calibration is None:
            ctx.note("only constants were checked for overflow; --calibration-data or ranges=FILE guards activations")


def _read_ranges(name: str, path: Path, model: ir.Model) -> dict[str, tuple[float, float]]:
    """Observed ranges by value name.

    Raises:
        GraphoptError: no such file, not of that form, or about another model.
    """
    wanted = f"pass {name!r}: ranges={path}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GraphoptError(f"{wanted}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise GraphoptError(f"{wanted}: not JSON: {error}") from None
    found: dict[str, tuple[float, float]] = {}
    if not isinstance(data, dict):
        raise GraphoptError(f"{wanted}: wants {{value name: [min, max]}}, not a {type(data).__name__}")
    for key, pair in data.items():
        if not _is_range(pair):
            raise GraphoptError(f"{wanted}: wants [min, max] for {key!r}, not {pair!r}")
        found[key] = (float(pair[0]), float(pair[1]))
    names = {value.name for node in sites.all_nodes(model) for value in (*node.inputs, *node.outputs) if value}
    if found and not names.intersection(found):
        raise GraphoptError(f"{wanted}: none of its {len(found)} values is in the model")
    return found


def _observe(model: ir.Model, ctx: Context) -> dict[str, tuple[float, float]]:
    """Ranges of the main graph's values on the calibration data; infinite where a value was not finite."""
    if ctx.calibration is None:
        return {}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    names = [value.name for value in values if value.name and is_float(value) and const_tensor(value) is None]
    found = ctx.calibration.statistics(model, names)
    infinite = (-math.inf, math.inf)
    seen = {name: (stats.low, stats.high) if stats.finite else infinite for name, stats in found.items()}
    return {name: pair for name, pair in seen.items() if pair[0] <= pair[1]}  # an empty tensor has no range


def _is_range(pair: object) -> bool:
    """Two numbers in order; infinities mean that the value overflowed in float32 already."""
    if not isinstance(pair, list) or len(pair) != 2 or any(type(number) not in (int, float) for number in pair):
        return False
    return bool(pair[0] <= pair[1])


class _Conversion:
    """Rewrites the planned nodes one by one; after each the model is legal, so that bisecting can stop anywhere."""

    def __init__(self, ctx: Context, limits: Limits, plan: Plan) -> None:
        from graphopt import ir

        self.ctx, self.limits, self.plan = ctx, limits, plan
        self.dtype = ir.DataType[limits.dtype]
        self.done = 0
        self._casts: dict[tuple[ir.Value, ir.Graph], ir.Value] = {}
        self._constants: dict[tuple[ir.Value, float | None], ir.Value] = {}

    def go(self) -> None:
        if not self.plan.nodes:
            return
        # Cut first: what comes from these nodes is about to be cast.
        for node, slot in self.plan.saturated:
            if node not in self.plan.nodes and node.op_type != "Clip":
                self._attempt(node, slot, f"its constant is cut at {_cut_at(node):g}, which masks as well")
        for node in self.plan.nodes:
            if node.graph is not None and any(out.uses() or out.is_graph_output() for out in node.outputs):
                counts = node.op_type not in READERS
                self.done += self._attempt(node, None, "runs in float16") and counts

    def _attempt(self, node: ir.Node, cut: int | None, reason: str) -> bool:
        """Rewrite one node in one transaction: narrow it, or cut its constant in slot `cut`."""
        rewriter = self.ctx.rewriter
        site, op_type = rewriter.site(node), node.op_type
        op = rewriter.builder(node)
        made: _Made = ({}, {})
        try:
            values = self._narrow(op, node, made) if cut is None else self._cut(op, node, cut)
            rewriter.replace(node, values, op)
        except NoMatch as why:
            op.discard()
            self.ctx.remarks.missed(self.ctx.pass_name, site, op_type, str(why))
            return False
        except StopRewriting:
            op.discard()
            raise
        self._casts.update(made[0])
        self._constants.update(made[1])
        self.ctx.remarks.applied(self.ctx.pass_name, site, op_type, reason)
        return True

    def _cut(self, op: Builder, node: ir.Node, slot: int) -> list[ir.Value | None]:
        from graphopt import ir

        tensor = const_tensor(node.inputs[slot])
        assert tensor is not None
        inputs = list(node.inputs)
        inputs[slot] = op.const(narrowed(tensor, ir.DataType.FLOAT, _cut_at(node)), f"{node.name}_mask")
        return _results(op.clone(node, inputs))

    def _narrow(self, op: Builder, node: ir.Node, made: _Made) -> list[ir.Value | None]:
        from graphopt import ir

        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Cast" and node.domain == "" and node.outputs[0].dtype == self.dtype:
            return [self._half(op, node, source, None, made)]
        inputs = list(node.inputs)
        for slot in slots(node, self.limits, self.ctx.rewriter.opset(node.domain, node)):
            limit = _cut_at(node) if (node, slot) in self.plan.saturated else None
            inputs[slot] = self._half(op, node, inputs[slot], limit, made)
        given = {}
        if node.op_type == "ConstantOfShape" and node.domain == "":
            attr = node.attributes.get("value")
            given["value"] = _narrowed_attr(attr, self.dtype)
        results = _results(op.clone(node, inputs, **given))
        values: list[ir.Value | None] = []
        for slot, (old, new) in enumerate(zip(node.outputs, results, strict=True)):
            assert new is not None
            new.shape = old.shape if new.shape is None else new.shape
            if self._stays(node, slot, old):
                new.type = old.type if new.type is None else new.type
                values.append(new)
                continue
            new.type = ir.TensorType(self.dtype)
            used = old.uses() or old.is_graph_output()
            values.append(op.Cast(new, to=ir.DataType.FLOAT.value) if used else None)
        return values

    def _stays(self, node: ir.Node, slot: int, old: ir.Value) -> bool:
        """Whether an output keeps its type."""
        rows = operands(node.domain, node.op_type, self.ctx.rewriter.opset(node.domain, node))
        narrow = rows is not None and rows.output_allows(slot, self.limits.dtype)
        return not is_float(old) or not narrow or node.op_type in READERS

    def _half(self, op: Builder, node: ir.Node, value: ir.Value | None, limit: float | None, made: _Made) -> ir.Value:
        """The value in half precision: where it came from, a converted constant, or a Cast that the graph shares."""
        assert value is not None and node.graph is not None
        if const_tensor(value) is not None:
            return self._constant(op, node, value, limit, made)
        source, producer = value, value.producer()
        if producer is not None and producer.op_type == "Cast" and producer.domain == "":
            origin = producer.inputs[0]
            if origin is not None and origin.dtype == self.dtype:
                return origin
            if origin is not None and origin.dtype is not None and _plain(origin.dtype):
                source = origin  # one Cast from there instead of two
        key = (source, node.graph)
        if key in made[0]:
            return made[0][key]
        known = self._casts.get(key)
        if known is not None and known.graph is not None:
            return known
        cast = op.Cast(source, to=self.dtype.value)
        cast.shape = source.shape if cast.shape is None else cast.shape
        made[0][key] = cast
        return cast

    def _constant(self, op: Builder, node: ir.Node, value: ir.Value, limit: float | None, made: _Made) -> ir.Value:
        key = (value, limit)
        known = made[1].get(key) or self._constants.get(key)
        if known is not None and known.graph is not None:
            return known
        tensor = const_tensor(value)
        producer = value.producer()
        home = producer.graph if producer is not None else value.graph
        assert tensor is not None and home is not None
        # In the graph of the original, where all its users see it.
        maker = op if home is node.graph else self.ctx.rewriter.builder(next(iter(home)))
        new = maker.const(narrowed(tensor, self.dtype, limit), f"{value.name}_half")
        if maker is not op:
            op.constants += maker.constants
        made[1][key] = new
        return new


def _cut_at(node: ir.Node) -> float:
    """Where a constant is cut: a bound at the end of the range, a mask so that two in a row do not overflow."""
    return LARGEST if node.op_type == "Clip" else LARGEST / 2


def _results(made: ir.Value | tuple[ir.Value, ...]) -> list[ir.Value | None]:
    return list(made) if isinstance(made, tuple) else [made]


def _plain(dtype: ir.DataType) -> bool:
    return dtype.name in ("BOOL", "DOUBLE") or (dtype.is_integer() and dtype.bitwidth >= 8)


def _narrowed_attr(attr: ir.Attr | None, dtype: ir.DataType) -> ir.Attr:
    """The value of a ConstantOfShape; zero when none is given."""
    import numpy as np

    from graphopt import ir

    tensor = ir.Tensor(np.zeros(1, np.float32)) if attr is None else attr.as_tensor()
    return ir.Attr("value", ir.AttributeType.TENSOR, narrowed(tensor, dtype))
