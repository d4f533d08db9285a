"""What a quantized model really executes: MACs by precision, and each Q/DQ or Cast that was kept, with its reason.

Read from the graph that the target makes of the model. Not here: how wrong its layers are (graphopt/layerwise.py).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphopt.analysis.cost import model_cost
from graphopt.analysis.shapes import Shapes, set_input_shapes
from graphopt.frontends.onnx import load
from graphopt.ir.constants import const_tensor
from graphopt.ir.sites import subgraphs
from graphopt.running import Runnable
from graphopt.target import Cause

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.target import Target

Place = Literal["graph-input", "graph-output", "weight", "producer", "consumer", "requantize"]

_INT8 = (
    "ConvInteger DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulInteger MatMulIntegerToFloat QAttention QGemm "
    "QLinearConv QLinearMatMul"
)
INT8_OPS = frozenset(_INT8.split())
"""Ops with work in them whose kernels multiply 8-bit integers."""

_FLOATS = {"FLOAT16": "fp16", "BFLOAT16": "bf16", "FLOAT": "fp32", "DOUBLE": "fp64"}
_HALVES = frozenset({"FLOAT16", "BFLOAT16"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class OpRow:
    """Nodes of one op that execute in one precision; `macs` is None when a size is unknown."""

    op: str
    precision: str
    nodes: int
    macs: int | None


@dataclass(frozen=True)
class Conversion:
    """One edge at which the runtime converts between float and integer, or float32 and float16.

    Attributes:
        site, op: the QuantizeLinear, DequantizeLinear or Cast, by its name in the executed graph.
        value: the float side of it (of a Cast: its input).
        place: which neighbour makes it necessary.
        neighbour, neighbour_op: that node; empty at the border of the graph.
        cause: code of the reason. reason: a sentence.
    """

    site: str
    op: str
    value: str
    place: Place
    neighbour: str
    neighbour_op: str
    cause: str
    reason: str


@dataclass(frozen=True)
class Realized:
    """What one model executes.

    Attributes:
        macs: multiply-accumulates by precision, of the nodes whose sizes are known.
        unknown: nodes whose work is unknown.
        ops: the ops with work in them, most work first.
        conversions: the edges at which values are converted.
    """

    macs: Mapping[str, int]
    unknown: int
    ops: tuple[OpRow, ...]
    conversions: tuple[Conversion, ...]

    def share(self, precision: str) -> float:
        """Part of the known MACs that execute in a precision; 0 without work."""
        total = sum(self.macs.values())
        return self.macs.get(precision, 0) / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "macs": dict(self.macs),
            "shares": {precision: self.share(precision) for precision in self.macs},
            "unknown": self.unknown,
            "ops": [asdict(row) for row in self.ops],
            "conversions": [asdict(row) for row in self.conversions],
        }


def realized(model: Runnable, feeds: Mapping[str, Any] | None = None) -> Realized:
    """Ask the target for the graph that it executes, and read it.

    Args:
        model: what to open.
        feeds: their shapes give numbers to symbolic dims; None leaves those as they are.

    Raises:
        GraphoptError: the runtime refuses the model, or does not show its graph.
    """
    reason = model.target.available()
    if reason is not None:
        from graphopt.errors import GraphoptError

        raise GraphoptError(f"{model.path}: what it executes is known only where it runs: {reason}")
    with tempfile.TemporaryDirectory(prefix="graphopt-executed-") as folder:
        path = model.target.executed(model.path, Path(folder), model.settings or None)
        executed = load(path)
        if feeds:
            set_input_shapes(executed, {name: item.shape for name, item in feeds.items() if hasattr(item, "shape")})
        return read(executed, model.target)


def read(executed: ir.Model, target: Target) -> Realized:
    """Read an executed graph; its shapes are inferred on it."""
    shapes = Shapes(executed)
    shapes.infer()
    cost = model_cost(executed, shapes)
    rows: dict[tuple[str, str], list[int | None]] = {}
    unknown = 0
    for node, figures in cost.nodes.items():
        if figures.macs is None:
            unknown += 1
        for inner, macs in _spread(node, figures.macs, shapes):
            rows.setdefault((_op(inner), precision_of(inner)), []).append(macs)
    ops = []
    for (op, precision), figures_ in rows.items():
        known = [item for item in figures_ if item is not None]
        ops.append(OpRow(op, precision, len(figures_), sum(known) if len(known) == len(figures_) else None))
    macs_by: Counter[str] = Counter()
    for (_, precision), figures_ in rows.items():
        macs_by[precision] += sum(item or 0 for item in figures_)
    return Realized(
        macs={precision: macs for precision, macs in macs_by.most_common() if macs},
        unknown=unknown,
        ops=tuple(sorted(ops, key=lambda row: -(row.macs or 0))),
        conversions=tuple(_conversions(executed, target)),
    )


def precision_of(node: ir.Node) -> str:
    """In which numbers a node's products are computed: int8, int4 (weights; the other operand is wider), fp16, ..."""
    if node.op_type in INT8_OPS:
        return "int8"
    if node.op_type in ("MatMulNBits", "MatMulFpQ4", "MatMulBnb4"):
        bits = node.attributes.get("bits")
        return f"int{bits.as_int() if bits is not None else 4}"
    for value in node.inputs:
        if value is not None and value.dtype is not None and value.dtype.name in _FLOATS:
            return _FLOATS[value.dtype.name]
    typed = next((value.dtype.name for value in node.inputs if value is not None and value.dtype is not None), "")
    return typed.lower() or "unknown"


def _spread(node: ir.Node, macs: int | None, shapes: Shapes) -> Iterator[tuple[ir.Node, int | None]]:
    """The nodes that do a node's work: itself, or what its subgraphs hold, in proportion to their own counts."""
    from graphopt.analysis.cost import node_cost

    inner = [[(item, node_cost(item, shapes).macs) for item in graph] for _, graph in subgraphs(node)]
    if not inner:
        if macs != 0:
            yield node, macs
        return
    body = max(inner, key=lambda rows: sum(count or 0 for _, count in rows))
    total = sum(count or 0 for _, count in body)
    for item, count in body:
        scaled = None if count is None or macs is None else macs * count // total if total else 0
        if scaled != 0:
            yield from _spread(item, scaled, shapes)


# ---- conversions -----------------------------------------------------------------------------------------------------


def _conversions(model: ir.Model, target: Target) -> Iterator[Conversion]:
    for node in model.graph.all_nodes():
        if node.domain not in ("", "com.microsoft"):
            continue
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            yield _before(node, target)
        elif node.op_type == "DequantizeLinear":
            yield from _behind(node, target)
        elif node.op_type == "Cast" and _is_half_cast(node):
            yield from _cast(node, model, target)


def _before(node: ir.Node, target: Target) -> Conversion:
    """A quantize node is there because its input comes in float."""
    value = node.inputs[0]
    assert value is not None
    source = value.producer()
    if source is None:
        if value.is_graph_input():
            return _row(node, value, "graph-input", None, Cause("boundary", "the graph input is float"))
        return _row(node, value, "weight", None, Cause("constant", "a constant is quantized at run time"))
    if node.op_type == "DynamicQuantizeLinear":
        text = "the model asks for it: the range is taken from the data at run time"
        return _row(node, value, "producer", source, Cause("dynamic", text))
    if source.op_type == "DequantizeLinear":
        text = "scale, zero point or type changes between its neighbours"
        return _row(node, value, "requantize", source, Cause("requantized", text))
    return _row(node, value, "producer", source, target.why_float(source))


def _behind(node: ir.Node, target: Target) -> Iterator[Conversion]:
    """A dequantize node is there because somebody reads its output in float: one row per reader."""
    value = node.outputs[0]
    is_weight = const_tensor(node.inputs[0]) is not None
    if value.is_graph_output():
        yield _row(node, value, "graph-output", None, Cause("boundary", "the graph output is float"))
    for reader in dict.fromkeys(reader for reader, _ in value.uses()):
        if reader.op_type == "QuantizeLinear":
            text = "scale, zero point or type changes between its neighbours"
            yield _row(node, value, "requantize", reader, Cause("requantized", text))
        else:
            yield _row(node, value, "weight" if is_weight else "consumer", reader, target.why_float(reader))


def _is_half_cast(node: ir.Node) -> bool:
    kinds = {
        value.dtype.name for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None
    }
    return len(kinds) == 2 and bool(kinds & _HALVES) and kinds <= {*_FLOATS}


def _cast(node: ir.Node, model: ir.Model, target: Target) -> Iterator[Conversion]:
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    source = value.producer()
    half = out.dtype.name if out.dtype is not None and out.dtype.name in _HALVES else ""
    wide = half == ""  # from half to float: for a reader that wants float
    if source is None and value.is_graph_input():
        yield _row(node, value, "graph-input", None, Cause("boundary", "the graph input is of the other type"))
        return
    if source is None:
        for reader in dict.fromkeys(reader for reader, _ in out.uses()):
            yield _row(node, value, "weight", reader, _no_half(reader, value, model, target))
        return
    if out.is_graph_output():
        yield _row(node, value, "graph-output", source, Cause("boundary", "the graph output is of the other type"))
    if not wide:
        if not out.is_graph_output():
            yield _row(node, value, "producer", source, _no_half(source, out, model, target))
        return
    for reader in dict.fromkeys(reader for reader, _ in out.uses()):
        yield _row(node, value, "consumer", reader, _no_half(reader, value, model, target))


def _no_half(node: ir.Node, value: ir.Value, model: ir.Model, target: Target) -> Cause:
    kind = value.dtype.name if value.dtype is not None else "FLOAT16"
    version = node.version or model.opset_imports.get(node.domain, 1)
    reason = target.supports(node.domain, node.op_type, version, kind)
    if reason is not None:
        return Cause("no-half-kernel", reason)
    return Cause("model", f"the model has {node.op_type} in the other type")


def _row(node: ir.Node, value: ir.Value, place: Place, neighbour: ir.Node | None, cause: Cause) -> Conversion:
    return Conversion(
        site=node.name or "",
        op=node.op_type,
        value=value.name or "",
        place=place,
        neighbour=(neighbour.name or "") if neighbour is not None else "",
        neighbour_op=_op(neighbour) if neighbour is not None else "",
        cause=cause.code,
        reason=cause.reason,
    )


def _op(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
