"""Own rule for MatMul (numpy's matmul): the package lets different batch symbols broadcast to the first, by sympy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.analysis.shape_result import Result

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes


def infer_matmul(s: Shapes, node: ir.Node) -> Sequence[Result]:
    """[.., m, k] x [.., k, n] -> [.., m, n]; a vector on either side loses its dim."""
    dtype = s.dtype(node.inputs[0]) or s.dtype(node.inputs[1])
    a, b = s.dims(node.inputs[0]), s.dims(node.inputs[1])
    if a is None or b is None:
        return [Result(dtype)]
    if not a or not b:
        raise ValueError("MatMul takes no scalar")
    inner_a, inner_b = a[-1], b[-2] if len(b) > 1 else b[-1]
    if isinstance(inner_a, int) and isinstance(inner_b, int) and inner_a != inner_b:
        raise ValueError(f"MatMul of inner dims {inner_a} and {inner_b}")
    batch = s.broadcast_shapes([a[:-2], b[:-2]])
    assert batch is not None
    return [Result(dtype, [*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ())])]
