"""A part of a model as a model of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis import dims as dim_math

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.shapes import Shapes
    from graphopt.targets.tvm.partition import Piece


def extract(model: ir.Model, piece: Piece, shapes: Shapes) -> ir.Model:
    """A copy of a part: its inputs and outputs are the values at its boundary, by their names.

    A dim of an input that is an expression becomes a symbol of its own: nothing defines the expression's symbols there.
    """
    from graphopt import ir

    graph = ir.convenience.extract(model.graph, piece.inputs, piece.outputs)
    part = ir.Model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        functions=[function.clone() for function in model.functions.values()],
    )
    part.opset_imports.update(model.opset_imports)
    names: dict[str, str] = {}
    pairs = [*zip(piece.inputs, graph.inputs, strict=True), *zip(piece.outputs, graph.outputs, strict=True)]
    for old, new in pairs:
        dims = shapes.dims(old)
        if dims is not None:
            new.shape = ir.Shape([_plain(dim, names) for dim in dims])
        if old.dtype is not None:
            new.dtype = old.dtype
    return part


def _plain(dim: dim_math.Dim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    if dim_math.is_unknown(dim):
        return None
    text = str(dim.value)
    return text if dim_math.symbols(dim) == {text} else names.setdefault(text, f"size_{len(names)}")
