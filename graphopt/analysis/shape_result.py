"""What inference hands around: results per output, and nodes that could not be inferred.

Not here: the analysis itself (`shapes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.dims import Dim


# The reason of a node that is legal and understood, but whose output may have several ranks.
UNDETERMINED = "the rank of its output is not decided by what is known of its inputs"


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
