"""Many constant nodes as one small model for the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError
from graphopt.ir.constants import const_tensor

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Evaluator
    from graphopt.passes.simplify._region import Region


def run_batch(
    nodes: Sequence[ir.Node], ready: Mapping[ir.Value, Any], run: Evaluator, region: Region, like: ir.Model
) -> dict[ir.Value, np.ndarray]:
    """Evaluate `nodes` (operands first) whose other operands are constants or in `ready`.

    Returns:
        Every output that something outside of `nodes` uses.

    Raises:
        GraphoptError: the runtime refuses them, or gives another type or shape than was inferred.
    """
    from graphopt import ir

    inside = set(nodes)
    mapped: dict[ir.Value, ir.Value] = {}
    leaves: list[ir.Value] = []
    copies: list[ir.Node] = []
    wanted: dict[str, ir.Value] = {}

    def operand(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in mapped:
            return mapped[value] if value is not None else None
        found = ready.get(value, const_tensor(value))
        assert found is not None
        tensor = found if isinstance(found.dtype, ir.DataType) else ir.Tensor(found)
        leaf = ir.Value(name=f"c{len(leaves)}", const_value=tensor)
        leaf.shape, leaf.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        leaves.append(leaf)
        mapped[value] = leaf
        return leaf

    for node in nodes:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [operand(v) for v in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
        )
        copy.name = f"n{len(copies)}"
        for slot, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
            new.name = f"v{len(copies)}_{slot}"
            new.type, new.shape = old.type, old.shape
            mapped[old] = new
            if region.is_boundary(old) or any(use.node not in inside for use in old.uses()):
                wanted[new.name] = old
        copies.append(copy)
    graph = ir.Graph(
        [],
        [mapped[value] for value in wanted.values()],
        nodes=copies,
        initializers=leaves,
        opset_imports={"": like.opset_imports[""]},
        name="constants",
    )
    outputs = run(ir.Model(graph, ir_version=max(like.ir_version, 8)), {})
    return {value: _checked(outputs[name], value) for name, value in wanted.items()}


def _checked(array: Any, value: ir.Value) -> np.ndarray:
    assert value.dtype is not None and value.shape is not None
    if array.dtype != value.dtype.numpy() or any(
        isinstance(d, int) and d != s for d, s in zip(value.shape, array.shape, strict=True)
    ):
        raise GraphoptError(
            f"value {value.name!r} came out as {array.dtype}{list(array.shape)}, not {value.dtype}{value.shape}"
        )
    return array
