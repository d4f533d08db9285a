"""Which ops ONNX Runtime has kernels for, per device, and where it would place a model's nodes.

Answered from kernel_table.json, so that a machine without the device, or without ONNX Runtime, can compile for it.
Placement estimates the runtime's own partitioning: nodes without a CUDA kernel, and shape arithmetic, on the CPU.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from graphopt import ir

Device = Literal["cpu", "cuda"]
_TABLE = Path(__file__).with_name("kernel_table.json")
# Inputs and outputs that CUDA kernels keep in host memory, by op: shapes, axes, bounds and conditions.
_HOST_INPUTS: Mapping[str, frozenset[int]] = {
    "Reshape": frozenset({1}),
    "Expand": frozenset({1}),
    "Tile": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Pad": frozenset({1, 3}),
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
    "Range": frozenset({0, 1, 2}),
    "TopK": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Split": frozenset({1}),
    "OneHot": frozenset({1}),
    "CumSum": frozenset({1}),
    "If": frozenset({0}),
    "Loop": frozenset({0, 1}),
    **{
        f"Reduce{kind}": frozenset({1})
        for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
}
_HOST_OUTPUTS = frozenset({"Shape", "Size"})


@functools.cache
def table() -> dict[str, Any]:
    """The kernel table: `sources`, `cpu` and `cuda` (see make_kernel_table.py)."""
    return json.loads(_TABLE.read_text(encoding="utf-8"))


def why_not(device: Device, domain: str, op_type: str, version: int, dtype: str | None = None) -> str | None:
    """None when `device` has a kernel for the op at this opset (and element type, e.g. 'FLOAT16'), else why not."""
    domain = "" if domain == "ai.onnx" else domain
    name = f"{domain}::{op_type}" if domain else op_type
    where = f"ONNX Runtime's {device.upper()} provider"
    entries = table()[device].get(f"{domain}::{op_type}")
    if entries is None:
        return f"{where} has no kernel for {name}"
    fitting = [entry for entry in entries if entry[0] <= version and (entry[1] is None or version <= entry[1])]
    if not fitting:
        return f"{where} has no kernel for {name} of opset {version}; it has {_versions(entries)}"
    if dtype is None:
        return None
    wanted = dtype.lower()
    types = {item for entry in fitting for item in entry[2] or (wanted,)}
    return None if wanted in types else f"{where} has no {wanted} kernel for {name}; it has {', '.join(sorted(types))}"


@dataclass(frozen=True)
class Placement:
    """Where a model's nodes would run.

    Attributes:
        on_cpu: (node name, op, reason) of each node that has no kernel on the device.
        copies: values that cross between device and host inside the graph, once per direction.
        counts: number of nodes by place.
    """

    on_cpu: tuple[tuple[str, str, str], ...]
    copies: tuple[str, ...]
    counts: Mapping[str, int]

    def notes(self) -> tuple[str, ...]:
        """One line per op and reason, then one about the copies; empty when all runs on the device without copies."""
        lines = []
        for (op, reason), count in sorted(Counter((op, reason) for _, op, reason in self.on_cpu).items()):
            lines.append(f"{count} x {op} on the CPU: {reason}")
        if self.copies:
            lines.append(f"{len(self.copies)} copies between device and host inside the graph (estimated)")
        return tuple(lines)


def place(model: ir.Model, device: Device = "cuda") -> Placement:
    """Estimate which nodes of the main graph and its subgraphs the device runs, and the copies between.

    Shape arithmetic that starts from a Shape or Size op counts as host work, as the runtime places it.
    """
    on_cpu: list[tuple[str, str, str]] = []
    host: set[int] = set()  # ids of values that lie in host memory
    copies: dict[tuple[int, str], str] = {}
    counts: Counter[str] = Counter()
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in graph:
            reason = _node_reason(node, model, device)
            if reason is not None:
                on_cpu.append((node.name or "", node.op_type, reason))
            runs_here = reason is None and not _is_shape_work(node, host)
            counts[device if runs_here else "cpu"] += 1
            if not runs_here or node.op_type in _HOST_OUTPUTS:
                host.update(id(value) for value in node.outputs)
            _count_copies(node, runs_here, host, copies)
    # On the CPU all memory is host memory.
    return Placement(tuple(on_cpu), tuple(copies.values()) if device != "cpu" else (), dict(counts))


def _node_reason(node: ir.Node, model: ir.Model, device: Device) -> str | None:
    version = node.version or model.opset_imports.get(node.domain, 1)
    value = next((item for item in node.inputs if item is not None), None)
    dtype = value.dtype.name if value is not None and value.dtype is not None else None
    if node.op_type == "Constant" and node.domain == "":
        return None  # becomes an initializer
    if node.op_type in ("Where", "If", "Loop", "Scan"):
        dtype = None  # the first input is a condition or a count, not the data
    if (node.domain, node.op_type, node.overload) in model.functions:
        return None  # inlined before placement
    return why_not(device, node.domain, node.op_type, version, dtype)


def _is_shape_work(node: ir.Node, host: set[int]) -> bool:
    # An Expand to a computed shape is device work: only its host slot comes from the host.
    host_slots = _HOST_INPUTS.get(node.op_type, frozenset())
    data = [value for slot, value in enumerate(node.inputs) if slot not in host_slots and _is_computed(value)]
    return bool(data) and all(id(value) in host for value in data)


def _is_computed(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type != "Constant"


def _count_copies(node: ir.Node, runs_here: bool, host: set[int], copies: dict[tuple[int, str], str]) -> None:
    host_slots = _HOST_INPUTS.get(node.op_type, frozenset())
    for slot, value in enumerate(node.inputs):
        if value is None or not _is_computed(value) or node.op_type in _HOST_OUTPUTS:
            continue  # Shape reads no data
        wants_host = not runs_here or slot in host_slots
        is_host = id(value) in host
        if wants_host != is_host:
            copies.setdefault((id(value), "host" if wants_host else "device"), value.name or "")


def _versions(entries: list[list[Any]]) -> str:
    return ", ".join(f"{since}+" if until is None else f"{since}-{until}" for since, until, _ in entries)
