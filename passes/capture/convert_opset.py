"""Opset conversion, in place: names, metadata, subgraphs and mapped weights stay what and where they are.

All nodes are looked at before one is changed: a model that cannot be converted as a whole stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.errors import GraphoptError
from graphopt.ir import WORKING_OPSET, optable
from graphopt.ir.builder import NoMatch
from graphopt.ir.sites import scopes
from graphopt.manager.base import Pass
from graphopt.passes.capture._opset_rules import Edit, rules
from graphopt.passes.capture._opset_table import NEWEST, unchanged

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

# The oldest IR version that knows an opset.
_IR_VERSIONS = ((23, 11), (21, 10), (19, 9), (15, 8), (12, 7), (11, 6), (10, 5), (9, 4))

# Ops whose kernel in ONNX Runtime gives other last bits from this version on (docs/dev/facts.md).
_ROUNDED_ANEW = {"AveragePool": 19}


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """Write the model in a newer standard opset: `to` (7 to 23), or the working opset as far as no bit changes.

    Options:
        to: the opset; none: the newest one up to the working opset in which ONNX Runtime computes the same bits.
    """

    name: ClassVar[str] = "convert-opset"
    stage: ClassVar[str] = "capture"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("bind-dims", "inline-functions")
    needs: ClassVar[tuple[str, ...]] = ()
    to: int | None = None

    def check(self) -> None:
        if self.to is not None and not 7 <= self.to <= NEWEST:
            raise GraphoptError(f"pass 'convert-opset': to={self.to} is not an opset between 7 and {NEWEST}")

    def run(self, model: ir.Model, ctx: Context) -> None:
        have = model.opset_imports.get("")
        if have is None:
            return
        to = self.to if self.to is not None else _newest_exact(model, ctx, have)
        if have > to:
            if self.to is not None:
                ctx.note(f"the model has opset {have}; conversion goes to newer opsets only, not to {to}")
            return
        edits: list[Edit] = []
        refused = 0
        for node, version in _standard_nodes(model, to):
            try:
                edit = plan(ctx, node, version, to)
            except NoMatch as reason:
                refused += 1
                ctx.remarks.missed(self.name, ctx.rewriter.site(node), node.op_type, str(reason))
                continue
            if edit is not None:
                edits.append(edit)
        if refused:
            ctx.note(f"the model stays in opset {have}: {refused} of its nodes are not known to convert to opset {to}")
            return
        ir_version = max(model.ir_version or 0, next((ir for opset, ir in _IR_VERSIONS if to >= opset), 3))
        if have < to or ir_version != model.ir_version or edits:
            self._apply(model, ctx, edits, to, ir_version)

    def _apply(self, model: ir.Model, ctx: Context, edits: list[Edit], to: int, ir_version: int) -> None:
        # One rewrite: a model half way between two opsets is none.
        ctx.rewriter.count_model()
        before = model.opset_imports[""]
        for edit in edits:
            site, op = ctx.rewriter.site(edit.node), edit.node.op_type
            for action in edit.actions:
                action()
            ctx.remarks.applied(self.name, site, op, f"opset {edit.have} -> {edit.to}")
        model.opset_imports[""] = to
        for function in model.functions.values():
            if function.opset_imports.get("", to) < to:
                function.opset_imports[""] = to
        model.ir_version = ir_version
        if ctx.rewriter.shapes is not None:
            ctx.shapes.opsets[""] = to
        ctx.note(f"opset {before} -> {to}, IR version {ir_version}")


def _newest_exact(model: ir.Model, ctx: Context, have: int) -> int:
    """The working opset, or the one before an op on the way gets a kernel that rounds differently."""
    to = WORKING_OPSET
    for op_type, version in _ROUNDED_ANEW.items():
        if have < version <= to and ctx.rewriter.index.of("", op_type):
            to = version - 1
            ctx.note(f"the model goes to opset {to} only: since {version} {op_type} rounds differently in ONNX Runtime")
    return to


def _standard_nodes(model: ir.Model, to: int) -> Iterator[tuple[ir.Node, int]]:
    """The nodes of the standard domain that are older than `to`, with their opset."""
    for scope in scopes(model):
        imports = scope.function.opset_imports if scope.function is not None else model.opset_imports
        version = imports.get("", to)
        if version < to:
            for node in scope.graph:
                if node.domain == "" and not (model.functions and node.op_identifier() in model.functions):
                    yield node, version


def plan(ctx: Context, node: ir.Node, have: int, to: int) -> Edit | None:
    """What has to be done about one node; None for nothing.

    Raises:
        NoMatch: it is not known how, or not for these attributes.
    """
    handled, rule, safe = _table().get(node.op_type, _NOTHING)
    crossed = _crossed(node.op_type, have, to)
    unknown = crossed - handled - safe
    if unknown:
        raise NoMatch(f"{node.op_type} changed in opset {min(unknown)} in a way that is not known here")
    if rule is not None and crossed & handled:
        edit = Edit(ctx, node, have, to)
        rule(edit)
        return edit if edit.actions else None
    schema = optable.schema("", node.op_type, to)
    if schema is None or schema.deprecated:
        raise NoMatch(f"there is no op {node.op_type} in opset {to}")
    return None


_Row = tuple[frozenset[int], "Callable[[Edit], None] | None", frozenset[int]]
_NOTHING: _Row = (frozenset(), None, frozenset())


@functools.cache
def _table() -> dict[str, _Row]:
    """Per op: versions that its rule handles, the rule, versions that changed nothing."""
    safe = unchanged()
    table: dict[str, _Row] = {op: (frozenset(), None, versions) for op, versions in safe.items()}
    table.update({op: (versions, rule, safe.get(op, frozenset())) for op, (versions, rule) in rules().items()})
    return table


@functools.cache
def _crossed(op_type: str, have: int, to: int) -> frozenset[int]:
    return frozenset(version for version in optable.versions("", op_type) if have < version <= to)
