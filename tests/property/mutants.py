"""Rules made wrong on purpose, mechanically and seeded: a mutant disturbs what a pass hands to the rewriter.

An attribute, a constant, an operand, a value or an op is another. Not here: dropped guards (guards.py), and whether the
checks of harness.py notice (hunt.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphopt import ir
from graphopt.ir.builder import NoMatch
from graphopt.manager.context import Context
from graphopt.manager.pattern import COMMUTATIVE

Disturb = Callable[[Context, list[ir.Node], list[ir.Value], list[Any], ir.Node], bool]
"""True when it did something."""


def _attribute(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """Another axis, permutation, group, epsilon or flag."""
    for node in nodes:
        for name, attr in list(node.attributes.items()):
            if attr.is_ref():
                continue
            if attr.type == ir.AttributeType.INT:
                new = ir.Attr(name, attr.type, attr.value - 1 if attr.value > 0 else attr.value + 1)
            elif attr.type == ir.AttributeType.INTS and len(set(attr.value)) > 1:
                new = ir.Attr(name, attr.type, [*attr.value[1:], attr.value[0]])
            elif attr.type == ir.AttributeType.FLOAT:
                new = ir.Attr(name, attr.type, attr.value * 1.5 + 0.25)
            else:
                continue
            node.attributes[name] = new
            return True
    return False


def _constant(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """One element of a new constant is wrong."""
    made = [value for value in constants if value.const_value is not None]
    made += [
        value
        for value in values
        if value is not None
        and value.is_initializer()
        and value not in made
        and value.const_value is not None
        and not value.uses()
    ]
    for value in made:
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        if not array.size or array.dtype.kind not in "fiub":
            continue
        flat = array.reshape(-1)
        if array.dtype.kind == "f":
            flat[-1] = flat[-1] * 1.25 + 0.25
        elif array.dtype.kind == "b":
            flat[-1] = not flat[-1]
        else:
            flat[-1] = flat[-1] + 1 if flat[-1] < 100 else flat[-1] - 1
        value.const_value = ir.tensor(array)
        return True
    return False


def _operands(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """Two operands of a new node are the other way round."""
    for node in nodes:
        if (
            len(node.inputs) >= 2
            and node.op_type not in COMMUTATIVE
            and node.inputs[0] is not node.inputs[1]
            and None not in node.inputs[:2]
        ):
            first, second = node.inputs[:2]
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
            return True
    return False


def _lost_operand(
    ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node
) -> bool:
    """An optional operand at the end of a new node (a bias, an upper bound) is forgotten."""
    for node in nodes:
        if len(node.inputs) >= 3 and node.inputs[-1] is not None:
            node.replace_input_with(len(node.inputs) - 1, None)
            node.resize_inputs(len(node.inputs) - 1)
            return True
    return False


def _value(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """A value from further up stands for the result."""
    for position, value in enumerate(values):
        producer = value.producer() if value is not None else None
        sources = list(producer.inputs) if producer is not None else [] if value is None else list(root.inputs)
        for source in sources:
            if (
                source is not None
                and source is not value
                and source.dtype == value.dtype
                and source.shape == value.shape
                and source.shape is not None
            ):
                values[position] = source
                return True
    return False


_SIBLINGS = {
    "Add": "Sub",
    "Mul": "Div",
    "Max": "Min",
    "Sigmoid": "Tanh",
    "Relu": "Abs",
    "Gelu": "Relu",
    "ReduceSumSquare": "ReduceSum",
    "ReduceSum": "ReduceMean",
    "ReduceL2": "ReduceL1",
    "GlobalAveragePool": "GlobalMaxPool",
    "MaxPool": "AveragePool",
    "Softplus": "Exp",
}
"""Ops that take the same operands and give something else."""


def _op(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """A new node is of another op with the same operands."""
    for node in nodes:
        if node.domain == "" and node.op_type in _SIBLINGS:
            node.op_type = _SIBLINGS[node.op_type]
            return True
    return False


DISTURB: dict[str, Disturb] = {
    "attribute": _attribute,
    "constant": _constant,
    "operands": _operands,
    "lost operand": _lost_operand,
    "op": _op,
    "value": _value,
}


def plant(ctx: Context, disturb: Disturb) -> Callable[[], tuple[int, int]]:
    """Let a disturbance act on everything that a pass hands to this context's rewriter.

    Returns:
        A function that says how often it acted, and how often the rewriter then refused the rewrite.
    """
    rewriter, acted, stopped = ctx.rewriter, [0], [0]
    drop_metadata = rewriter.drop_metadata
    replace, merge, erase, insert, splice = (
        rewriter.replace,
        rewriter.merge,
        rewriter.erase,
        rewriter.insert_before,
        rewriter.splice,
    )

    def act(nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> None:
        if disturb(ctx, nodes, constants, values, root):
            acted[0] += 1
            for node in nodes:
                for output in node.outputs:
                    output.shape = None
                rewriter.infer(node)

    def wrong_replace(root: ir.Node, values: Any, builder: Any = None, replaced: Any = ()) -> None:
        new = list(values) if isinstance(values, (list, tuple)) else [values]
        before = acted[0]
        act(builder.nodes if builder else [], builder.constants if builder else [], new, root)
        try:
            replace(root, new, builder, replaced)
        except NoMatch:
            stopped[0] += acted[0] - before
            raise

    def wrong_merge(old: ir.Value, new: ir.Value, at: ir.Node) -> None:
        if disturb is _value:
            holder = [new]
            act([], [], holder, at)
            new = holder[0]
        merge(old, new, at)

    def wrong_insert(anchor: ir.Node, nodes: Any) -> None:
        act(list(nodes), [], [], anchor)
        insert(anchor, nodes)

    def wrong_splice(node: ir.Node, inner: ir.Graph, values: Any, made: Any = ()) -> None:
        act(list(inner), list(inner.initializers.values()), [], node)
        splice(node, inner, values, made)

    def wrong_erase(node: ir.Node) -> None:
        if disturb is _value and node.graph is not None and any(out.uses() for out in node.outputs) is False:
            other = next(
                (item for item in node.graph if item is not node and any(out.uses() for out in item.outputs)), None
            )
            if other is not None:
                acted[0] += 1
                rewriter.count(other)
                rewriter.index.remove(other)
                other.graph.remove(other, safe=False)  # type: ignore[union-attr]
        erase(node)

    def wrong_metadata(node: ir.Node, keys: Any) -> None:
        act([node], [], [], node)
        drop_metadata(node, keys)

    for name, wrong in (
        ("drop_metadata", wrong_metadata),
        ("replace", wrong_replace),
        ("merge", wrong_merge),
        ("insert_before", wrong_insert),
        ("splice", wrong_splice),
        ("erase", wrong_erase),
    ):
        setattr(rewriter, name, wrong)
    return lambda: (acted[0], stopped[0])
