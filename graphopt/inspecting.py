"""What is in a model, without compiling it: ops, sizes, work, dynamic dims, what a target lacks, what optimized it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.analysis.cost import model_cost
from graphopt.analysis.shapes import Shapes
from graphopt.ir import optable, sites
from graphopt.ir.rewriter import PROVENANCE

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.target import Target


def inspect(model: ir.Model, target: Target | None = None, dims: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Collect the facts.

    Args:
        model: The model; inner shapes are inferred on it.
        target: Also list the nodes that it has no kernel for, with reasons.
        dims: Numbers for symbolic dims, for the cost.

    Returns:
        JSON-able; costs are None where a dim is unknown. MACs and bytes are of one run.
    """
    shapes = Shapes(model)
    shapes.infer()
    cost = model_cost(model, shapes, dims or {})
    nodes = list(sites.all_nodes(model))
    ops = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes)
    report = {
        "nodes": len(nodes),
        "ops": dict(ops.most_common()),
        "opsets": dict(sorted(model.opset_imports.items())),
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": [described(value) for value in model.graph.inputs],
        "outputs": [described(value) for value in model.graph.outputs],
        "dynamic_dims": sorted(
            {
                str(d.value)
                for v in model.graph.inputs
                if v.shape
                for d in v.shape
                if not isinstance(d, int) and d.value and d.value.isidentifier()
            }
        ),
        "macs": cost.macs,
        "known_macs": cost.known_macs,
        "parameter_bytes": cost.parameter_bytes,
        "activation_bytes": cost.activation_bytes,
        "unknown_cost": len(cost.unknown),
        "opaque_domains": sorted({node.domain for node in nodes if node.domain not in optable.domains()}),
        "functions": sorted(f"{function.domain}::{function.name}" for function in model.functions.values()),
        "shape_inference": _blocked(shapes),
        "optimized_by": _optimizers(model, nodes),
    }
    if target is not None:
        report["target"] = target.name
        report["unsupported"] = unsupported(model, target, shapes)
        report["unsupported_ends"] = [
            {"name": value.name, "reason": reason}
            for value in (*model.graph.inputs, *model.graph.outputs)
            if (reason := target.supports_end(value)) is not None
        ]
    return report


def unsupported(model: ir.Model, target: Target, shapes: Shapes) -> list[dict[str, str]]:
    """Nodes that the target cannot run: site, op and reason."""
    rows = []
    for scope in sites.scopes(model):
        imports = scope.function.opset_imports if scope.function else model.opset_imports
        for node in scope.graph:
            if (node.domain, node.op_type, node.overload) in model.functions or node.op_type == "Constant":
                continue
            reason = target.supports_node(node, shapes, imports.get(node.domain, 1))
            if reason is not None:
                rows.append({"site": f"{scope.path}/{node.name}".lstrip("/"), "op": node.op_type, "reason": reason})
    return rows


def described(value: ir.Value) -> dict[str, Any]:
    """An input or output as JSON: name, type and shape; None for a type or rank that is not known."""
    shape = None if value.shape is None else [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return {"name": value.name, "type": None if value.type is None else str(value.type), "shape": shape}


def _blocked(shapes: Shapes) -> dict[str, Any]:
    first = shapes.blocked[0] if shapes.blocked else None
    return {
        "blocked": len(shapes.blocked),
        "first": None
        if first is None
        else {"site": str(first.node.name), "op": first.op, "domain": first.domain, "reason": first.reason},
    }


def _optimizers(model: ir.Model, nodes: list[ir.Node]) -> dict[str, int]:
    """Passes that left provenance in the file, with the number of nodes they made."""
    return dict(
        Counter(
            node.metadata_props[PROVENANCE].partition(":")[0] for node in nodes if PROVENANCE in node.metadata_props
        )
    )
