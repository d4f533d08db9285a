"""Several additions or multiplications of constants in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from graphopt.manager.worklist import NodePass, Uninteresting
from graphopt.passes.simplify._above import above

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.match import Match

# Each op with the one that its constant operand is turned into, so that two in a row can meet.
_PAIRS = {"Add": ("Add", "Sub"), "Sub": ("Add", "Sub"), "Mul": ("Mul", "Div"), "Div": ("Mul", "Div")}


class MergeConstants(NodePass):
    """(x * a) * b -> x * (a * b) and (x + a) + b -> x + (a + b), for constants; also with / and - of a constant."""

    name: ClassVar[str] = "merge-constants"
    level: ClassVar[int | None] = 2
    tolerance = "reassociates"
    ops: ClassVar[tuple[str, ...]] = ("Add", "Sub", "Mul", "Div")

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> ir.Value:
        import numpy as np

        at = _variable(m, node)
        inner = above(node, node.inputs[at], *_PAIRS[node.op_type])
        if inner is None:
            raise Uninteresting("another op is in front of it")
        value = node.inputs[at]
        assert value is not None
        m.sole_use(value)
        start = _variable(m, inner)
        x = inner.inputs[start]
        m.interior = [inner]
        m.require(m.is_float(x) and m.dtype(x).name != "BFLOAT16", "only floats are reassociated")
        m.not_quantized([x, *node.inputs, node.outputs[0], inner.inputs[1 - start]])
        first, second = (m.const(n.inputs[1 - i]).astype(np.float64) for n, i in ((inner, start), (node, at)))
        with np.errstate(all="ignore"):
            joined = _joined(inner.op_type, node.op_type, first, second)
            constant = joined.astype(m.dtype(x).numpy())
        m.require(constant.size <= max(first.size, second.size), "the joined constant would be larger than both")
        tiny = np.finfo(constant.dtype).tiny
        normal = np.isfinite(constant) & ((abs(constant) >= tiny) | ((joined == 0) & (node.op_type in ("Add", "Sub"))))
        m.require(normal.all(), "the joined constant overflows or underflows")
        return op.node("Add" if node.op_type in ("Add", "Sub") else "Mul", x, op.const(constant, "joined"))


def _variable(m: Match, node: ir.Node) -> int:
    """Which operand is not the constant."""
    constant = [m.is_const(value) for value in node.inputs]
    if constant == [False, True]:
        return 0
    if constant == [True, False] and node.op_type in ("Add", "Mul"):
        return 1
    raise Uninteresting("no constant operand that can be joined")


def _joined(inner: str, outer: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if outer in ("Add", "Sub"):
        return (-first if inner == "Sub" else first) + (-second if outer == "Sub" else second)
    return (1 / first if inner == "Div" else first) * (1 / second if outer == "Div" else second)
