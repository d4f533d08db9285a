"""What inference hands around: results per output, blocked nodes, the symbol names of a model.

Not here: the analysis itself (`shapes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from graphopt.analysis import dims
from graphopt.ir.sites import scopes

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim


@dataclass(frozen=True)
class Blocked:
    """One node whose outputs could not be inferred, and why."""

    node: ir.Node
    domain: str
    op: str
    reason: str


class Result(NamedTuple):
    """What is known of one output. `dims` None: rank unknown; `type` is set for sequences and optionals only."""

    dtype: ir.DataType | None = None
    dims: Sequence[Dim] | None = None
    values: Sequence[Dim] | None = None
    type: ir.TypeProtocol | None = None


def collect_names(model: ir.Model) -> Iterator[str]:
    """Every symbol name that stands on a value of the model (names of expressions as their symbols)."""
    for scope in scopes(model):
        groups = [scope.graph.inputs, scope.graph.outputs, *(node.outputs for node in scope.graph)]
        for value in (value for group in groups for value in group):
            for dim in value.shape or ():
                if isinstance(dim, int) or dim.value is None:
                    continue
                if dim.value.isidentifier():
                    yield dim.value
                else:
                    yield from dims.symbols(dim)
