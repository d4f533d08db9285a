"""Structural difference of two models: which nodes went, which came, and what these stand for (by provenance)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir import sites
from graphopt.ir.hash import structural_hash, tensor_digest
from graphopt.ir.rewriter import PROVENANCE

if TYPE_CHECKING:
    from graphopt import ir


@dataclass(frozen=True)
class Made:
    """A node of B that A does not have: its site and op, the pass that made it and the nodes it stands for."""

    site: str
    op: str
    by: str
    stands_for: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """What changed from A to B. `equal`: same structure and weights."""

    equal: bool
    nodes: tuple[int, int]
    ops: dict[str, tuple[int, int]]
    made: tuple[Made, ...]
    gone: tuple[tuple[str, str], ...]
    edited: tuple[tuple[str, str, str], ...]
    weights_changed: tuple[str, ...]
    interface: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "equal": self.equal,
            "nodes": list(self.nodes),
            "ops": {op: list(counts) for op, counts in self.ops.items()},
            "made": [{"site": m.site, "op": m.op, "by": m.by, "stands_for": list(m.stands_for)} for m in self.made],
            "edited": [{"site": site, "op": op, "what": what} for site, op, what in self.edited],
            "gone": [{"site": site, "op": op} for site, op in self.gone],
            "weights_changed": list(self.weights_changed),
            "interface": list(self.interface),
        }


def difference(a: ir.Model, b: ir.Model) -> Difference:
    """Compare two models node by node (by site and op)."""
    first, second = _nodes(a), _nodes(b)
    ops_a, ops_b = Counter(node.op_type for node in first.values()), Counter(node.op_type for node in second.values())
    changed = {op: (ops_a[op], ops_b[op]) for op in sorted(ops_a | ops_b) if ops_a[op] != ops_b[op]}
    made = tuple(
        _made(site, node)
        for site, node in second.items()
        if site not in first or first[site].op_type != node.op_type or _stamp(node) != _stamp(first[site])
    )
    gone = tuple((site, node.op_type) for site, node in first.items() if site not in second)
    return Difference(
        structural_hash(a) == structural_hash(b),
        (len(first), len(second)),
        changed,
        made,
        gone,
        tuple(_edited(first, second)),
        tuple(_weights(a, b)),
        tuple(_interface(a, b)),
    )


def _nodes(model: ir.Model) -> dict[str, ir.Node]:
    return {f"{scope.path}/{node.name}".lstrip("/"): node for scope in sites.scopes(model) for node in scope.graph}


def _stamp(node: ir.Node) -> str:
    return node.metadata_props.get(PROVENANCE, "")


def _made(site: str, node: ir.Node) -> Made:
    by, _, names = _stamp(node).partition(": ")
    return Made(site, node.op_type, by, tuple(name for name in names.split(",") if name))


def _edited(first: dict[str, ir.Node], second: dict[str, ir.Node]) -> Iterator[tuple[str, str, str]]:
    """Nodes of one site, op and provenance whose attributes or operands differ, and in what."""
    for site, new in second.items():
        old = first.get(site)
        if old is None or old.op_type != new.op_type or _stamp(old) != _stamp(new):
            continue
        names = sorted(name for name in {*old.attributes, *new.attributes} if _text(old, name) != _text(new, name))
        if _operands(old) != _operands(new):
            names.append("operands")
        if names:
            yield site, new.op_type, ", ".join(names)


def _text(node: ir.Node, name: str) -> str:
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref() or attr.type.name in ("GRAPH", "GRAPHS"):
        return "" if attr is None else attr.type.name  # inner graphs have sites of their own
    return tensor_digest(attr.as_tensor()) if attr.type.name == "TENSOR" else str(attr.value)


def _operands(node: ir.Node) -> list[str]:
    """Operand names; constants by no name, since their names say nothing."""
    return ["" if value is None or value.is_initializer() else str(value.name) for value in node.inputs]


def _weights(a: ir.Model, b: ir.Model) -> list[str]:
    out = []
    for name, value in b.graph.initializers.items():
        old = a.graph.initializers.get(name)
        if old is None or old.const_value is None or value.const_value is None:
            continue
        if tensor_digest(old.const_value) != tensor_digest(value.const_value):
            out.append(name)
    return out


def _interface(a: ir.Model, b: ir.Model) -> list[str]:
    out = []
    for kind in ("inputs", "outputs"):
        first = {v.name: f"{v.type}{v.shape}" for v in getattr(a.graph, kind)}
        second = {v.name: f"{v.type}{v.shape}" for v in getattr(b.graph, kind)}
        for name in {**first, **second}:
            if first.get(name) != second.get(name):
                out.append(f"{kind[:-1]} {name}: {first.get(name, 'absent')} -> {second.get(name, 'absent')}")
    return out
