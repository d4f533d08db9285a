"""The rewrite driver: runs one local rule over the model until nothing matches any more.

It owns legality and termination for every rule: one transaction per match, a cap that names the rule, remarks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.errors import PassError, in_one_line
from graphopt.ir.builder import Builder, NoMatch
from graphopt.ir.rewrite_log import StopRewriting
from graphopt.manager.base import Pass
from graphopt.manager.match import Match

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

    Replacement = ir.Value | Sequence[ir.Value | None]


class Uninteresting(NoMatch):
    """The rule does not concern this node at all: no remark is made of it."""


@dataclass(frozen=True)
class NodePass(Pass):
    """A rule about one node: looks at `ops`, returns what replaces the node's outputs, or raises NoMatch(reason)."""

    ops: ClassVar[tuple[str, ...]] = ()
    domain: ClassVar[str] = ""

    @abstractmethod
    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        """Return the value (or one per output, None for an unused one) that replaces `node`'s outputs.

        Raises:
            NoMatch: the rule does not apply here; the reason becomes a `missed` remark (Uninteresting: no remark).
        """

    def anchors(self) -> tuple[str, ...]:
        """Op types at which the rule may apply."""
        return self.ops

    def attempt(self, ctx: Context, node: ir.Node) -> None:
        """Try the rule at one node and commit it.

        Raises:
            NoMatch: it does not apply; nothing was changed.
        """
        match = Match(ctx, node)
        op = ctx.rewriter.builder(node)
        try:
            values = self.rewrite_node(op, match, node)
            if self.stage != "quantize":
                _refuse_quantized(match)
            ctx.rewriter.replace(node, values, op, match.interior)
        except BaseException:
            op.discard()
            raise

    def run(self, model: ir.Model, ctx: Context) -> None:
        drive(self, ctx)


def drive(rule: NodePass, ctx: Context) -> int:
    """Apply `rule` wherever it matches, until a whole sweep changes nothing; return how often it was applied.

    Raises:
        PassError: the rule was applied more often than the cap allows: it undoes itself.
    """
    rewriter = ctx.rewriter
    anchors = frozenset(rule.anchors())
    start = rewriter.changes
    pending: dict[ir.Node, None] = {}

    def touch(node: ir.Node) -> None:
        if node.op_type in anchors and node.domain == rule.domain:
            pending[node] = None

    rewriter.on_touch = touch
    cap: int | None = None
    try:
        while True:
            before = rewriter.changes
            pending.update(dict.fromkeys(rewriter.index.of(rule.domain, *rule.anchors())))
            cap = cap if cap is not None else 4 * len(pending) + 1000
            while pending:
                node = next(iter(pending))
                del pending[node]
                if node.graph is None or (rule.scope == "main" and node.graph is not ctx.model.graph):
                    continue
                _attempt(rule, ctx, node)
                if rewriter.changes - start > cap:
                    raise PassError(
                        f"pass {rule.name!r} was applied {cap} times without coming to an end: it undoes itself"
                    )
            if rewriter.changes == before:
                return rewriter.changes - start
    finally:
        rewriter.on_touch = None


def _attempt(rule: NodePass, ctx: Context, node: ir.Node) -> None:
    site, op = ctx.rewriter.site(node), node.op_type
    try:
        rule.attempt(ctx, node)
    except Uninteresting:
        ctx.remarks.forget(rule.name, site)
        return
    except NoMatch as reason:
        ctx.remarks.missed(rule.name, site, op, str(reason))
    except (StopRewriting, PassError):
        raise
    except (Exception, SystemExit) as error:
        raise PassError(f"pass {rule.name!r} failed at {site} ({op}): {in_one_line(error)}") from error
    else:
        ctx.remarks.applied(rule.name, site, op, rule.summary())


def _refuse_quantized(match: Match) -> None:
    """No rule of a stage before quantize removes or moves a quantize/dequantize node."""
    from graphopt.ir.optable import QUANTIZED_OPS

    for node in (match.root, *match.interior):
        if node.op_type in QUANTIZED_OPS:
            raise NoMatch(f"{node.op_type} nodes are left as they are")
