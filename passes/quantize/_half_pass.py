"""What convert-float16 and convert-bfloat16 share: their options, and the remarks on what was done and what not.

Not here: which nodes are converted (_half_plan.py), nor how (_half_rewrite.py).
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
from graphopt.ir.constants import const_tensor, model_bytes
from graphopt.manager.base import Pass
from graphopt.passes.quantize._half_constants import LARGEST

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.passes.quantize._half_plan import Plan


@dataclass(frozen=True)
class ConvertHalf(Pass):
    """A conversion to one narrow float type.

    Attributes:
        narrow: the type's name.
        end: its largest finite number.
    """

    stage: ClassVar[str] = "quantize"
    level: ClassVar[int | None] = None
    tolerance = "lossy"
    narrow: ClassVar[str]
    end: ClassVar[float]

    keep: tuple[str, ...] = ()
    max: float = 0.0
    ranges: str | None = None
    keep_io: bool = True

    @property
    def changes_interface(self) -> bool:  # type: ignore[override]  # a class attribute of other passes
        """Inputs and outputs keep their types unless `keep_io=false`."""
        return not self.keep_io

    def check(self) -> None:
        if not 0 < self.max <= self.end:
            raise GraphoptError(f"pass {self.name!r}: max={self.max:g} is not above 0 and at most {self.end:g}")

    @property
    def _guards(self) -> bool:
        """Whether activations may overflow: the range of bfloat16 is that of float32."""
        return self.max < LARGEST["BFLOAT16"]

    def run(self, model: ir.Model, ctx: Context) -> None:
        from graphopt.passes.quantize._half_plan import Limits, make_plan
        from graphopt.passes.quantize._half_rewrite import Conversion

        if self.ranges is not None:
            observed = _read_ranges(self.name, Path(self.ranges), model)
        else:
            observed = _observe(model, ctx) if self._guards else {}
        self._check_keep(model, ctx)
        limits = Limits(self.narrow, self.max, frozenset(self.keep), observed, ends=not self.keep_io)
        plan = make_plan(model, ctx, limits)
        before = model_bytes(model)
        cut = [node.inputs[slot] for node, slot in plan.saturated if node.op_type != "Clip"]
        masks = {value.name: None for value in cut if value is not None}
        ends = {str(value.name): None for value in plan.ends.narrow}
        self._say_ends(ctx, plan)
        work = Conversion(ctx, limits, plan)
        try:
            work.go()
            self._retype(model, ctx, list(ends))
        finally:
            self._report(ctx, plan, work.done, before - model_bytes(model), list(masks))

    def _retype(self, model: ir.Model, ctx: Context, ends: list[str]) -> None:
        """Change the interface, in one rewrite."""
        from graphopt import ir
        from graphopt.passes.quantize._half_io import retype

        if not ends:
            return
        changed = model.clone()
        retype(changed.graph, ends, ir.DataType[self.narrow], ctx.rewriter.fresh_name)
        ctx.rewriter.replace_graph(changed)
        for name in ends:
            ctx.remarks.applied(self.name, name, "", f"{self.narrow.lower()} instead of float32")

    def _say_ends(self, ctx: Context, plan: Plan) -> None:
        for value, why in plan.ends.stay.items():
            ctx.remarks.missed(self.name, str(value.name), "", f"stays float32: {why}")

    def _check_keep(self, model: ir.Model, ctx: Context) -> None:
        known = {ctx.rewriter.site(node) for node in sites.all_nodes(model)} if self.keep else set()
        for text in self.keep:
            if text not in known and text not in optable.op_names() | optable.op_names("com.microsoft"):
                near = did_you_mean(text, known | optable.op_names())
                raise GraphoptError(f"pass {self.name!r}: keep={text} is neither an op nor a node of the model{near}")

    def _report(self, ctx: Context, plan: Plan, done: int, saved: int, masks: list[str | None]) -> None:
        from graphopt.passes.quantize._half_plan import ALONE, READERS

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
        ctx.note(f"{done} nodes run in {self.narrow.lower()}, {kept} stay in float32; {saved} bytes of weights saved")
        if left:
            ctx.note(f"left in float32: {left}{more}")
        if masks:
            names = ", ".join(f"{name!r}" for name in masks[:6])
            ctx.note(f"cut at {self.end / 2:g}, as it only masks a Softmax: {names}{' ...' if len(masks) > 6 else ''}")
        if self.ranges is None and ctx.calibration is None and self._guards:
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
    from graphopt.passes.quantize._half_plan import is_float

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
