"""Transposes moved along the graph to where they cancel, merge or cost less.

Lives here: what is decided on together, and the rewrite. How an op works on permuted data is in _permuted.py, the
choice in _cut.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from graphopt.ir.builder import NoMatch
from graphopt.manager.base import Pass
from graphopt.manager.match import Match
from graphopt.passes.layout._cut import AS_IS, PERMUTED, Problem
from graphopt.passes.layout._permuted import OPS, SHRINKING, Form, form

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.ir.builder import Builder
    from graphopt.manager.context import Context

    Turned = dict[ir.Value, ir.Value]

Perm = tuple[int, ...]

_REACH = 256
"""Nodes that are decided on together; beyond it they count as fixed, since a cut takes more than linear time."""

_SWEEPS = 16
"""Sweeps over a graph; only parts larger than _REACH need more than a few."""

_ONE = 1 << 48
"""Cost of one Transpose; the elements that it moves decide between equal numbers of them."""


class SinkTransposes(Pass):
    """f(Transpose(x)) -> Transpose(f(x)) for elementwise ops, Concat, Split, Slice, Pad, maxima, where it pays.

    All ops that a Transpose reaches are decided on at once, so that the number of Transposes goes down, or stays and
    they move fewer elements.
    """

    name: ClassVar[str] = "sink-transposes"
    level: ClassVar[int | None] = 1
    after: ClassVar[tuple[str, ...]] = ("merge-transposes", "eliminate-nop-transpose", "rewrite-transpose-as-reshape")
    sums: ClassVar[bool] = False

    def run(self, model: ir.Model, ctx: Context) -> None:
        for scope in list(ctx.rewriter.scopes()):
            # Each sweep that changes something leaves fewer Transposes, or as many that move less.
            for _ in range(_SWEEPS):
                before = ctx.rewriter.changes
                for region in _regions(ctx, scope.graph, self):
                    self._try(ctx, region)
                if ctx.rewriter.changes == before:
                    break

    def _try(self, ctx: Context, region: _Region) -> None:
        """Rewrite one region when that pays."""
        if any(node.graph is None for node in (*region.seeds, *region.forms)):
            return  # another region of this sweep has changed it
        now, best, chosen = region.decide()
        if best >= now:
            for transpose in region.seeds:
                reason = "moving it would not save a Transpose"
                ctx.remarks.missed(self.name, ctx.rewriter.site(transpose), "Transpose", reason)
            return
        region.apply(chosen)


@dataclass(frozen=True)
class SinkTransposesBelowSums(SinkTransposes):
    """ReduceSum(Transpose(x)) -> Transpose(ReduceSum(x)), and the like: as sink-transposes, also through sums."""

    name: ClassVar[str] = "sink-transposes-below-sums"
    level: ClassVar[int | None] = 2
    tolerance = "reassociates"
    after: ClassVar[tuple[str, ...]] = ("sink-transposes",)
    sums: ClassVar[bool] = True


@dataclass
class _Region:
    """Transposes of one perm and the nodes that they reach through ops which can work on permuted data."""

    ctx: Context
    rule: SinkTransposes
    perm: Perm
    seeds: list[ir.Node] = field(default_factory=list)
    forms: dict[ir.Node, Form] = field(default_factory=dict)

    def decide(self) -> tuple[int, int, list[ir.Node]]:
        """The cost now, the least possible cost, and the nodes to permute for it in their order."""
        if len(self.seeds) < 2 and not self._has_an_end():
            return 0, 0, []
        problem, now = Problem(), 0
        values: list[tuple[ir.Value, ir.Node | str]] = [(node.outputs[0], PERMUTED) for node in self.seeds]
        values += [(out, node) for node, how in self.forms.items() if not how.ends for out in node.outputs]
        made = {value for value, _ in values}
        static = all(self.ctx.shapes.static(value) is not None for value in made)
        for value, maker in values:
            users = self._users(value)
            cost = _cost(self.ctx, value, static)
            problem.value(maker, users, cost)
            needed = any(user != PERMUTED for user in users) if maker == PERMUTED else PERMUTED in users
            now += cost if needed else 0
        for value in self._entering(made):
            problem.value(AS_IS, self._users(value, only_inside=True), _cost(self.ctx, value, static))
        best, chosen = problem.solve()
        return now, best, [node for node in self.forms if node in chosen]

    def _has_an_end(self) -> bool:
        for node, how in self.forms.items():
            if how.ends or node.op_type in SHRINKING:
                return True
            if any(use.node.op_type == "Transpose" for out in node.outputs for use in out.uses()):
                return True
        return False

    def _entering(self, made: set[ir.Value]) -> list[ir.Value]:
        """Values from elsewhere that permuted nodes would need permuted."""
        found: dict[ir.Value, None] = {}
        for node, how in self.forms.items():
            for index in how.data:
                value = node.inputs[index]
                if value is not None and value not in made:
                    found[value] = None
        return list(found)

    def _users(self, value: ir.Value, only_inside: bool = False) -> list[object]:
        """The sides that use a value: nodes to decide on, PERMUTED for a Transpose that undoes ours, else AS_IS."""
        users: dict[object, None] = {}
        for use in value.uses():
            how = self.forms.get(use.node)
            if how is not None and use.idx in how.data:
                users[use.node] = None
            elif not only_inside:
                side = self._side(use.node)
                if side is not None:
                    users[side] = None
        if value.is_graph_output() and not only_inside:
            users[AS_IS] = None
        return list(users)

    def _side(self, user: ir.Node) -> str | None:
        """None for a Transpose that can take the value either way."""
        perm = _perm_of(user)
        if perm is None or user.graph is not self.seeds[0].graph or len(perm) != len(self.perm):
            return AS_IS
        return PERMUTED if _composed(self.perm, perm) == tuple(range(len(perm))) else None

    # -- the rewrite --------------------------------------------------------------------------------------------

    def apply(self, chosen: Sequence[ir.Node]) -> None:
        """Do the chosen nodes on permuted data, each followed by a Transpose, and drop Transposes of Transposes."""
        rewriter = self.ctx.rewriter
        turned: Turned = {}
        for node in self._order(chosen):
            site, op_type = rewriter.site(node), node.op_type
            try:
                outputs = self._permute(node, turned)
            except NoMatch as reason:
                self.ctx.remarks.missed(self.rule.name, site, op_type, str(reason))
                continue
            self.ctx.remarks.applied(self.rule.name, site, op_type, "works on what was transposed")
            for output in outputs:
                self._merge_below(output)
        for seed in self.seeds:
            if chosen and seed.graph is not None:
                self._merge_below(seed.outputs[0])

    def _order(self, chosen: Sequence[ir.Node]) -> Sequence[ir.Node]:
        """Makers before users; in the graph's own order where one made Transpose will serve several nodes."""
        inputs = Counter(value for node in chosen for value in {node.inputs[index] for index in self.forms[node].data})
        if all(count == 1 for count in inputs.values()):
            return _makers_first(chosen)
        wanted = set(chosen)
        graph = self.seeds[0].graph
        assert graph is not None
        return [node for node in graph if node in wanted]

    def _permute(self, node: ir.Node, turned: Turned) -> list[ir.Value]:
        rewriter, how = self.ctx.rewriter, self.forms[node]
        op = rewriter.builder(node)
        fresh: Turned = {}
        try:
            inputs = list(node.inputs)
            for index in how.data:
                inputs[index] = self._unturned(op, inputs[index], turned, fresh)
            for index, make in how.constants.items():
                inputs += [None] * (index + 1 - len(inputs))
                inputs[index] = op.const(make(), f"{node.name}_permuted")
            made = op.clone(node, inputs, **how.attributes)
            results = list(made) if isinstance(made, tuple) else [made]
            if not how.ends:
                used = [bool(out.uses()) or out.is_graph_output() for out in node.outputs]
                pairs = zip(results, used, strict=True)
                results = [op.Transpose(value, perm=self.perm) if needed else None for value, needed in pairs]
            rewriter.replace(node, results, op)
        except BaseException:
            op.discard()
            raise
        turned.update(fresh)
        return [] if how.ends else [value for value in results if value is not None]

    def _unturned(self, op: Builder, value: ir.Value | None, turned: Turned, fresh: Turned) -> ir.Value | None:
        """The value whose Transpose is `value`: found above it, made before, or made now."""
        assert value is not None
        producer = value.producer()
        if producer is not None and producer.graph is op.anchor.graph and _perm_of(producer) == self.perm:
            return producer.inputs[0]
        if value in turned:
            return turned[value]
        if value not in fresh:
            inverse = [self.perm.index(axis) for axis in range(len(self.perm))]
            fresh[value] = op.Transpose(value, perm=inverse)
        return fresh[value]

    def _merge_below(self, value: ir.Value) -> None:
        source = value.producer()
        if source is None or source.graph is None:
            return
        for user in [use.node for use in value.uses()]:
            perm = _perm_of(user)
            if perm is None or user.graph is not source.graph:
                continue
            op, joined = self.ctx.rewriter.builder(user), _composed(self.perm, perm)
            inner = source.inputs[0]
            assert inner is not None
            plain = joined == tuple(range(len(joined)))
            try:
                self.ctx.rewriter.replace(user, inner if plain else op.Transpose(inner, perm=joined), op)
            except NoMatch:
                op.discard()


def _makers_first(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes in an order in which each stands behind those whose values it uses."""
    waiting = dict.fromkeys(nodes)
    done: dict[ir.Node, None] = {}
    for node in nodes:
        stack = [node]
        while stack:
            producers = [value.producer() for value in stack[-1].inputs if value is not None]
            first = next((p for p in producers if p is not None and p in waiting and p not in done), None)
            if first is not None:
                stack.append(first)
            else:
                done[stack.pop()] = None
    return list(done)


def _regions(ctx: Context, graph: ir.Graph, rule: SinkTransposes) -> list[_Region]:
    """One region per connected part that Transposes of one perm reach."""
    seeds: dict[Perm, list[ir.Node]] = {}
    for node in ctx.rewriter.index.of("", "Transpose"):
        perm = _perm_of(node) if node.graph is graph else None
        if perm is not None:
            seeds.setdefault(perm, []).append(node)
    found: list[_Region] = []
    for perm, nodes in seeds.items():
        waiting = dict.fromkeys(nodes)
        while waiting:
            first = next(iter(waiting))
            region = _Region(ctx, rule, perm)
            _grow(region, first, waiting)
            if region.forms:
                found.append(region)
    return found


def _grow(region: _Region, first: ir.Node, waiting: dict[ir.Node, None]) -> None:
    """Everything that hangs together with `first`: forwards through permutable ops, backwards to other Transposes."""
    refused: set[ir.Node] = set()
    stack = [first]
    while stack:
        node = stack.pop()
        if node in waiting:
            del waiting[node]
            region.seeds.append(node)
        elif node not in region.forms:
            continue
        outputs = [] if node in region.forms and region.forms[node].ends else node.outputs
        for user in [use.node for output in outputs for use in output.uses()]:
            how = _form(region, user, refused, first)
            if how is None or user in region.forms or len(region.forms) >= _REACH:
                continue
            region.forms[user] = how
            stack.append(user)
            above = [value.producer() for index in how.data if (value := user.inputs[index]) is not None]
            stack.extend(producer for producer in above if producer is not None and producer in waiting)


def _form(region: _Region, node: ir.Node, refused: set[ir.Node], first: ir.Node) -> Form | None:
    if node.op_type not in OPS or node.domain != "" or node.graph is not first.graph or node in refused:
        return None
    if node in region.forms:
        return region.forms[node]
    try:
        return form(Match(region.ctx, node), node, region.perm, sums=region.rule.sums)
    except NoMatch as reason:
        refused.add(node)
        region.ctx.remarks.missed(region.rule.name, region.ctx.rewriter.site(node), node.op_type, str(reason))
        return None


def _perm_of(node: ir.Node) -> Perm | None:
    """The perm of a Transpose; None for another op, or when it is not written out."""
    if node.op_type != "Transpose" or node.domain != "":
        return None
    attr = node.attributes.get("perm")
    if attr is None:
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        return tuple(range(len(shape)))[::-1] if shape is not None else None
    return None if attr.is_ref() else tuple(attr.as_ints())


def _composed(first: Perm, second: Perm) -> Perm:
    return tuple(first[axis] for axis in second)


def _cost(ctx: Context, value: ir.Value, static: bool) -> int:
    shape = ctx.shapes.static(value) if static else None
    return _ONE + (math.prod(shape) if shape is not None else 0)
