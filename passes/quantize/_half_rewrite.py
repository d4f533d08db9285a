"""The rewrite of single nodes to a half-precision type: casts at the borders, narrowed constants, cut masks.

Not here: which nodes (_half_plan.py), and what is said about the rest (_half_pass.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch
from graphopt.ir.constants import const_tensor
from graphopt.ir.rewrite_log import StopRewriting
from graphopt.ir.typetable import operands
from graphopt.passes.quantize._half_constants import narrowed
from graphopt.passes.quantize._half_plan import READERS, Limits, Plan, is_float, slots

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context

    _Made = tuple[dict[tuple[ir.Value, ir.Graph], ir.Value], dict[tuple[ir.Value, float | None], ir.Value]]


class Conversion:
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
                self._attempt(node, slot, f"its constant is cut at {cut_at(node, self.limits):g}, which masks as well")
        for node in self.plan.nodes:
            if node.graph is not None and any(out.uses() or out.is_graph_output() for out in node.outputs):
                counts = node.op_type not in READERS
                self.done += self._attempt(node, None, f"runs in {self.limits.dtype.lower()}") and counts

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
        inputs[slot] = op.const(narrowed(tensor, ir.DataType.FLOAT, cut_at(node, self.limits)), f"{node.name}_mask")
        return _results(op.clone(node, inputs))

    def _narrow(self, op: Builder, node: ir.Node, made: _Made) -> list[ir.Value | None]:
        from graphopt import ir

        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Cast" and node.domain == "" and node.outputs[0].dtype == self.dtype:
            return [self._half(op, node, source, None, made)]
        inputs = list(node.inputs)
        for slot in slots(node, self.limits, self.ctx.rewriter.opset(node.domain, node)):
            limit = cut_at(node, self.limits) if (node, slot) in self.plan.saturated else None
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


def cut_at(node: ir.Node, limits: Limits) -> float:
    """Where a constant is cut: a bound at the end of the range, a mask so that two in a row do not overflow."""
    return limits.end if node.op_type == "Clip" else limits.end / 2


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
