"""What a Rewriter records, and what it needs from outside: applied rewrites, the end of a run, shape inference.

Not here: how a rewrite is done (rewriter.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from graphopt import ir


class StopRewriting(Exception):
    """The bisect limit is reached: no further rewrite may happen in this pipeline."""


class ShapeHook(Protocol):
    """What the Rewriter needs from shape analysis: types and shapes for one new node, in place; what was inferred."""

    def infer_node(self, node: ir.Node) -> None: ...

    def dims(self, value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...] | None: ...


@dataclass(frozen=True)
class Rewrite:
    """One applied rewrite: its number (from 1), pass, site and root op."""

    number: int
    pass_name: str
    site: str
    op: str
