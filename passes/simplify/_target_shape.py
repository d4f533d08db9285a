"""The constant shape operand that makes a Reshape give a known result.

Numbers for static dims, 0 (copy) where a symbolic dim keeps its place, one -1 for what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.ir.builder import NoMatch

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.match import Match


def target_shape(m: Match, source: ir.Value, result: ir.Value, *, infer: bool) -> list[int]:
    """The shape operand (allowzero = 0) of a Reshape from `source` to the shape of `result`.

    Args:
        m: The match, for shapes.
        source: What is reshaped.
        result: The value whose shape is wanted.
        infer: Whether -1 may stand beside a copied symbolic dim. If that dim can be 0, -1 has no meaning there,
            so it is true only where the model says -1 itself.

    Raises:
        NoMatch: a rank is unknown, or more than one dim would need -1.
    """
    before, after = m.ctx.shapes.dims(source), m.ctx.shapes.dims(result)
    if before is None or after is None:
        raise NoMatch("a rank is unknown")
    out: list[int] = []
    for index, dim in enumerate(after):
        if isinstance(dim, int) and dim > 0:
            out.append(dim)
        elif index < len(before) and m.equal(dim, before[index]):
            out.append(0)
        elif isinstance(dim, int):
            raise NoMatch("the result is empty")
        else:
            out.append(-1)
    if out.count(-1) > 1:
        raise NoMatch(f"the shape {[*map(str, after)]} has several dims that are not those of {[*map(str, before)]}")
    if -1 in out and 0 in out and not infer:
        raise NoMatch(f"from {[*map(str, before)]} to {[*map(str, after)]} needs a -1, unsafe if a copied dim is 0")
    return out
