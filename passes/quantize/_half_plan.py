"""Decides which nodes run in half precision: forward from the ops that gain, around what must stay float32.

    plan = make_plan(model, ctx, Limits(...))
    plan.nodes          # to convert, in the order of the graph, subgraphs included
    plan.kept           # node -> why it stays in float32
    plan.saturated      # (node, slot) of constants that may be cut at the limit
    plan.ends           # inputs and outputs of the model that become narrow, and why others do not

Nothing is changed here. A value is narrow when its producer is in the plan; a border between both costs one Cast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphopt.ir.constants import const_tensor
from graphopt.ir.optable import QUANTIZED_OPS
from graphopt.ir.sites import subgraphs
from graphopt.ir.typetable import operands
from graphopt.passes.quantize import _half_rules as rules
from graphopt.passes.quantize._half_constants import LARGEST, SMALLEST, largest_magnitude
from graphopt.passes.quantize._half_masks import is_angle, only_masks_softmax

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
READERS = frozenset({"Cast", "Shape", "Size"})
"""Ops that read any type equally well."""
ALONE = "no faster op is beside it, so it would only add casts"


@dataclass(frozen=True)
class Limits:
    """What may be narrowed.

    Attributes:
        dtype: `FLOAT16` or `BFLOAT16`.
        largest: magnitudes above it stay in float32.
        keep: op types and sites to leave alone.
        observed: [min, max] of values by name, as seen on data.
        ends: whether inputs and outputs of the model become narrow too.
    """

    dtype: str
    largest: float
    keep: frozenset[str] = frozenset()
    observed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ends: bool = False

    @property
    def end(self) -> float:
        """The largest finite number of the type."""
        return LARGEST[self.dtype]

    @property
    def smallest(self) -> float:
        """The smallest normal number of the type."""
        return SMALLEST[self.dtype]


@dataclass
class Ends:
    """Float32 inputs and outputs of the model: those that become narrow, and why the others stay."""

    narrow: dict[ir.Value, None] = field(default_factory=dict)
    stay: dict[ir.Value, str] = field(default_factory=dict)


@dataclass
class Plan:
    """The decision for every node that has to do with float32."""

    nodes: dict[ir.Node, None] = field(default_factory=dict)
    kept: dict[ir.Node, str] = field(default_factory=dict)
    saturated: dict[tuple[ir.Node, int], None] = field(default_factory=dict)
    ends: Ends = field(default_factory=Ends)


def make_plan(model: ir.Model, ctx: Context, limits: Limits) -> Plan:
    """The plan for the main graph and its subgraphs; bodies of functions stay as they are."""
    return _Planner(model, ctx, limits).go()


def slots(node: ir.Node, limits: Limits, opset: int) -> list[int]:
    """The float32 inputs of a node that are narrowed when it is."""
    rows = operands(node.domain, node.op_type, opset)
    if rows is None:
        return []
    fixed = rules.FLOAT_SLOTS.get(node.op_type, frozenset()) if node.domain == "" else frozenset()
    return [
        slot
        for slot, value in enumerate(node.inputs)
        if is_float(value) and slot not in fixed and rows.input_allows(slot, limits.dtype)
    ]


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of float32."""
    from graphopt import ir

    return value is not None and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


class _Planner:
    def __init__(self, model: ir.Model, ctx: Context, limits: Limits) -> None:
        self.model, self.ctx, self.limits = model, ctx, limits
        self.plan = Plan()
        self.large: dict[ir.Value, str] = {}
        self.tiny: dict[ir.Value, str] = {}
        self.neutral: dict[ir.Node, None] = {}
        self._magnitudes: dict[ir.Value, float] = {}

    def go(self) -> Plan:
        ends, graph = self.plan.ends, self.model.graph
        self._sort_ends(graph.inputs)
        self._graph(graph)
        self._sort_ends(graph.outputs)
        order = list(_walk(graph))
        # What starts from constants alone (an embedding and its normalization) follows what it feeds.
        for node in reversed(order):
            users = {use.node for out in node.outputs for use in out.uses()}
            if node in self.neutral and (
                not users.isdisjoint(self.plan.nodes) or not ends.narrow.keys().isdisjoint(node.outputs)
            ):
                self.plan.nodes[node] = None
            elif node in self.neutral:
                self.plan.kept[node] = ALONE
        for node in order:
            reader = node.op_type in READERS and node.domain == "" and self.plan.kept.get(node) == ALONE
            if reader and self._is_half(node.inputs[0]):
                self.plan.nodes[node] = None
                del self.plan.kept[node]
        self.plan.nodes = {node: None for node in order if node in self.plan.nodes}
        return self.plan

    def _sort_ends(self, values: Iterable[ir.Value]) -> None:
        """Which of the model's inputs or outputs become narrow."""
        for value in values if self.limits.ends else ():
            if not is_float(value):
                continue
            why = self.large.get(value) or self.tiny.get(value) or self._reached(value)
            if value.is_graph_input() and value.is_graph_output():
                why = "it is an input and an output"
            elif const_tensor(value) is not None:
                why = "it is a constant"
            if why is None:
                self.plan.ends.narrow[value] = None
            else:
                self.plan.ends.stay[value] = why

    def _graph(self, graph: ir.Graph) -> None:
        for node in graph:
            inner = [body for _, body in subgraphs(node)] if node.attributes else []
            if not inner:
                self._node(node)
                continue
            for body in inner:
                self._body(node, body)
            for source in (*node.inputs, *(out for body in inner for out in body.outputs)):
                if source in self.large:
                    self.large.update({out: self.large[source] for out in node.outputs if is_float(out)})

    def _body(self, node: ir.Node, body: ir.Graph) -> None:
        """Plan a subgraph; what is too large on entering it, or after one turn, is so in its inputs."""
        self._graph(body)
        sources = [*node.inputs, *(body.outputs if node.op_type in ("Loop", "Scan") else ())]
        why = next((self.large[source] for source in sources if source in self.large), None)
        entering = [value for value in body.inputs if is_float(value) and value not in self.large]
        if why is not None and entering:
            self.large.update(dict.fromkeys(entering, why))
            for inside in _walk(body):
                for table in (self.plan.nodes, self.plan.kept, self.neutral):
                    table.pop(inside, None)
            self._graph(body)

    # -- one node ----------------------------------------------------------------------------------------------------

    def _node(self, node: ir.Node) -> None:
        floats = [value for value in (*node.inputs, *node.outputs) if is_float(value)]
        if not floats or const_tensor(node.outputs[0] if node.outputs else None) is not None:
            return
        self._find_saturated(node)
        why = self._must_stay(node) or self._too_large(node)
        if why is not None:
            self.plan.kept[node] = why
            self._spread(node, why)
            return
        verdict = self._wanted(node)
        if verdict == "neutral":
            self.neutral[node] = None
        elif verdict:
            self.plan.nodes[node] = None
        else:
            self.plan.kept[node] = ALONE

    def _wanted(self, node: ir.Node) -> bool | str:
        """True to convert; "neutral" when that depends on its users."""
        if node.op_type in rules.WORTHWHILE:
            return True
        if node.op_type in READERS:
            return self._is_half(node.inputs[0])
        data = [node.inputs[slot] for slot in slots(node, self.limits, self._opset(node))]
        varying = [value for value in data if not self._is_neutral(value)]
        if not varying:
            return "neutral" if any(is_float(out) for out in node.outputs) else False
        if not any(is_float(out) for out in node.outputs):
            return all(self._is_half(value) for value in varying)  # comparisons
        return any(self._is_half(value) for value in varying)

    def _is_half(self, value: ir.Value | None) -> bool:
        if value is None:
            return False
        return value.producer() in self.plan.nodes or (value.is_graph_input() and value in self.plan.ends.narrow)

    def _is_neutral(self, value: ir.Value | None) -> bool:
        return const_tensor(value) is not None or (value is not None and value.producer() in self.neutral)

    def _opset(self, node: ir.Node) -> int:
        return self.ctx.rewriter.opset(node.domain, node)

    # -- why not -----------------------------------------------------------------------------------------------------

    def _must_stay(self, node: ir.Node) -> str | None:
        """A reason that the op itself gives."""
        op, narrow = node.op_type, self.limits.dtype.lower()
        if node.op_identifier() in self.model.functions:
            return "the body of a function stays as it is; inline-functions opens it"
        if op in self.limits.keep or self.ctx.rewriter.site(node) in self.limits.keep:
            return "asked for by keep"
        if node.domain not in ("", "com.microsoft") or (node.domain and op not in rules.MICROSOFT):
            return f"nothing is known of {narrow} in {node.domain}::{op}"
        if op in QUANTIZED_OPS or op.startswith("QLinear") or _beside_quantize(node):
            return "it belongs to a quantized group"
        if node.domain == "" and op in rules.UNSAFE:
            return self._worded(rules.UNSAFE[op])
        special = _special(node, self.limits.largest)
        if special:
            return self._worded(special)
        if is_angle(node):
            return "it computes angles from positions"
        return self._no_kernel(node, narrow)

    def _worded(self, why: str) -> str:
        """A reason that holds for float16; with the range of float32 it is the few bits that are left of it."""
        return why if self.limits.dtype == "FLOAT16" else rules.reworded(why)

    def _no_kernel(self, node: ir.Node, narrow: str) -> str | None:
        """What the schema or the target does not offer."""
        rows = operands(node.domain, node.op_type, self._opset(node))
        outputs = [slot for slot, out in enumerate(node.outputs) if is_float(out)]
        wanted = slots(node, self.limits, self._opset(node))
        makes = node.op_type == "ConstantOfShape"  # its element type is that of an attribute
        fits = rows is not None and all(rows.output_allows(slot, self.limits.dtype) for slot in outputs[:1])
        if not fits or not (wanted or makes):
            return f"its schema has no {narrow}"
        if self.ctx.target is None:
            return None
        return self.ctx.supports(node.op_type, node.domain, self.limits.dtype)

    def _too_large(self, node: ir.Node) -> str | None:
        """A reason that the numbers give."""
        for value in (*node.inputs, *node.outputs):
            why = self._reached(value)
            if why is not None:
                return why
        for slot, value in enumerate(node.inputs):
            if value is None or not is_float(value):
                continue
            if value in self.large and node.op_type not in READERS:
                return self.large[value]
            if value in self.tiny:
                return self.tiny[value]
            why = self._bad_constant(node, slot, value)
            if why is not None:
                return why
        return None

    def _reached(self, value: ir.Value | None) -> str | None:
        """That the data went beyond the limit."""
        if value is None or not is_float(value):
            return None
        seen = self.limits.observed.get(value.name or "")
        if seen is None or max(map(abs, seen)) <= self.limits.largest:
            return None
        return f"{value.name!r} reached {max(seen, key=abs):.4g} on the data"

    def _bad_constant(self, node: ir.Node, slot: int, value: ir.Value) -> str | None:
        if const_tensor(value) is None or (node, slot) in self.plan.saturated:
            return None
        largest = self._magnitude(value)
        if largest > self.limits.largest:
            return f"its constant {value.name!r} reaches {largest:.4g}"
        if 0 < largest < self.limits.smallest and slot not in rules.ADDED_SLOTS.get(node.op_type, ()):
            return f"its constant {value.name!r} vanishes: at most {largest:.4g}"
        return None

    def _magnitude(self, value: ir.Value) -> float:
        if value not in self._magnitudes:
            tensor = const_tensor(value)
            self._magnitudes[value] = largest_magnitude(tensor) if tensor is not None else 0.0
        return self._magnitudes[value]

    # -- what is too large or too small behind a node ----------------------------------------------------------------

    def _spread(self, node: ir.Node, why: str) -> None:
        """Mark the outputs of a node that stays when they may be out of range, too."""
        floats = [out for out in node.outputs if is_float(out)]
        if not floats or (node.domain == "" and node.op_type in rules.BOUNDED):
            return
        for slot, value in enumerate(node.inputs):
            if value is None or not is_float(value):
                continue
            constant = const_tensor(value) is not None and (node, slot) not in self.plan.saturated
            size = self._magnitude(value) if constant else 0.0
            divides = node.op_type == "Div" and slot == 1
            if (value in self.large or size > self.limits.largest) and not divides:
                reason = self.large.get(value, f"behind the constant {value.name!r} it may reach {size:.4g}")
                self.large.update({out: reason for out in floats if not self._within(out)})
            starts = constant and 0 < size < self.limits.smallest and node.op_type in ("Add", "Max", "Clip", "Where")
            if starts or (value in self.tiny and node.op_type in rules.KEEPS_TINY):
                reason = self.tiny.get(value, f"behind the constant {value.name!r} it may be as small as {size:.4g}")
                self.tiny.update(dict.fromkeys(floats, reason))
        for out in floats:
            seen = self.limits.observed.get(out.name or "")
            if seen is not None and max(map(abs, seen)) > self.limits.largest:
                self.large[out] = why

    def _within(self, value: ir.Value) -> bool:
        seen = self.limits.observed.get(value.name or "")
        if seen is not None:
            return max(map(abs, seen)) <= self.limits.largest
        return self.ctx.ranges.of(value).within(-self.limits.largest, self.limits.largest)

    def _find_saturated(self, node: ir.Node) -> None:
        for slot, value in enumerate(node.inputs):
            if value is None or not is_float(value) or const_tensor(value) is None:
                continue
            bounds = node.op_type == "Clip" and node.domain == "" and slot > 0
            if self._magnitude(value) > self.limits.end and (bounds or only_masks_softmax(node, slot)):
                self.plan.saturated[(node, slot)] = None


def _special(node: ir.Node, limit: float) -> str | None:
    """Reasons that depend on attributes or operands."""
    if node.domain != "":
        return None
    if node.op_type == "ConstantOfShape" and node.attributes.get("value") is not None:
        attr = node.attributes["value"]
        if attr.is_ref() or largest_magnitude(attr.as_tensor()) > limit:
            return "its value is out of range"
    if node.op_type == "Pow":
        return "powers of activations leave the range"
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return "squares of activations leave the range"
    training = node.attributes.get("training_mode")
    if node.op_type == "BatchNormalization" and (len(node.outputs) > 1 or (training and training.value)):
        return "it trains"
    if node.op_type == "Cast" and is_float(node.outputs[0]):
        return "it makes float32" if not is_float(node.inputs[0]) else "it changes nothing"
    return None


def _beside_quantize(node: ir.Node) -> bool:
    sources = (value.producer() for value in node.inputs if value is not None)
    users = (use.node for out in node.outputs for use in out.uses())
    return any(other is not None and other.op_type in QUANTIZED_OPS for other in (*sources, *users))


def _walk(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes in the order of the graph, those of a subgraph before the node that owns it."""
    for node in graph:
        if node.attributes:
            for _, body in subgraphs(node):
                yield from _walk(body)
        yield node
