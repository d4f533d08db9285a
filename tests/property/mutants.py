"""Rules made wrong on purpose, mechanically and seeded: the checks of harness.py must notice.

A mutant disturbs what a pass hands to the rewriter (an attribute, a constant, an operand, a value), or drops one guard.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from property.campaign import concerned, pipelines, target_of
from property.generator import generate
from property.harness import Refused, Subject

from graphopt import ir
from graphopt.ir.builder import NoMatch
from graphopt.manager.context import Context
from graphopt.manager.match import Match
from graphopt.manager.pattern import COMMUTATIVE
from graphopt.manager.pipeline import parse

GRAPHS = 24
"""So many graphs aimed at a rule are tried for each of its mutants."""
UNGUARDED = "without the guard at"


@dataclass(frozen=True)
class Mutant:
    """One way to be wrong: a disturbance by name, or the guard at `file:line`."""

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.where}".strip()


@dataclass
class Hunt:
    """What became of the mutants of one rule: caught, survived (changed results nowhere), or never acted."""

    rule: str
    caught: list[str] = field(default_factory=list)
    survived: list[str] = field(default_factory=list)


# -- disturbances: True when they did something -----------------------------------------------------------------------

Disturb = Callable[[Context, list[ir.Node], list[ir.Value], list[Any], ir.Node], bool]


def _attribute(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """Another axis, permutation, group, epsilon or flag."""
    for node in nodes:
        for name, attr in list(node.attributes.items()):
            if attr.is_ref():
                continue
            if attr.type == ir.AttributeType.INT:
                new = ir.Attr(name, attr.type, attr.value - 1 if attr.value > 0 else attr.value + 1)
            elif attr.type == ir.AttributeType.INTS and len(set(attr.value)) > 1:
                new = ir.Attr(name, attr.type, [*attr.value[1:], attr.value[0]])
            elif attr.type == ir.AttributeType.FLOAT:
                new = ir.Attr(name, attr.type, attr.value * 1.5 + 0.25)
            else:
                continue
            node.attributes[name] = new
            return True
    return False


def _constant(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """One element of a new constant is wrong."""
    made = [value for value in constants if value.const_value is not None]
    made += [
        value
        for value in values
        if value is not None
        and value.is_initializer()
        and value not in made
        and value.const_value is not None
        and not value.uses()
    ]
    for value in made:
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        if not array.size or array.dtype.kind not in "fiub":
            continue
        flat = array.reshape(-1)
        if array.dtype.kind == "f":
            flat[-1] = flat[-1] * 1.25 + 0.25
        elif array.dtype.kind == "b":
            flat[-1] = not flat[-1]
        else:
            flat[-1] = flat[-1] + 1 if flat[-1] < 100 else flat[-1] - 1
        value.const_value = ir.tensor(array)
        return True
    return False


def _operands(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """Two operands of a new node are the other way round."""
    for node in nodes:
        if (
            len(node.inputs) >= 2
            and node.op_type not in COMMUTATIVE
            and node.inputs[0] is not node.inputs[1]
            and None not in node.inputs[:2]
        ):
            first, second = node.inputs[:2]
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
            return True
    return False


def _lost_operand(
    ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node
) -> bool:
    """An optional operand at the end of a new node (a bias, an upper bound) is forgotten."""
    for node in nodes:
        if len(node.inputs) >= 3 and node.inputs[-1] is not None:
            node.replace_input_with(len(node.inputs) - 1, None)
            node.resize_inputs(len(node.inputs) - 1)
            return True
    return False


def _value(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """A value from further up stands for the result."""
    for position, value in enumerate(values):
        producer = value.producer() if value is not None else None
        sources = list(producer.inputs) if producer is not None else [] if value is None else list(root.inputs)
        for source in sources:
            if (
                source is not None
                and source is not value
                and source.dtype == value.dtype
                and source.shape == value.shape
                and source.shape is not None
            ):
                values[position] = source
                return True
    return False


_SIBLINGS = {
    "Add": "Sub",
    "Mul": "Div",
    "Max": "Min",
    "Sigmoid": "Tanh",
    "Relu": "Abs",
    "Gelu": "Relu",
    "ReduceSumSquare": "ReduceSum",
    "ReduceSum": "ReduceMean",
    "ReduceL2": "ReduceL1",
    "GlobalAveragePool": "GlobalMaxPool",
    "MaxPool": "AveragePool",
    "Softplus": "Exp",
}
"""Ops that take the same operands and give something else."""


def _op(ctx: Context, nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> bool:
    """A new node is of another op with the same operands."""
    for node in nodes:
        if node.domain == "" and node.op_type in _SIBLINGS:
            node.op_type = _SIBLINGS[node.op_type]
            return True
    return False


DISTURB: dict[str, Disturb] = {
    "attribute": _attribute,
    "constant": _constant,
    "operands": _operands,
    "lost operand": _lost_operand,
    "op": _op,
    "value": _value,
}


def plant(ctx: Context, disturb: Disturb) -> Callable[[], tuple[int, int]]:
    """Let a disturbance act on everything that a pass hands to this context's rewriter.

    Returns:
        A function that says how often it acted, and how often the rewriter then refused the rewrite.
    """
    rewriter, acted, stopped = ctx.rewriter, [0], [0]
    drop_metadata = rewriter.drop_metadata
    replace, merge, erase, insert, splice = (
        rewriter.replace,
        rewriter.merge,
        rewriter.erase,
        rewriter.insert_before,
        rewriter.splice,
    )

    def act(nodes: list[ir.Node], constants: list[ir.Value], values: list[Any], root: ir.Node) -> None:
        if disturb(ctx, nodes, constants, values, root):
            acted[0] += 1
            for node in nodes:
                for output in node.outputs:
                    output.shape = None
                rewriter.infer(node)

    def wrong_replace(root: ir.Node, values: Any, builder: Any = None, replaced: Any = ()) -> None:
        new = list(values) if isinstance(values, (list, tuple)) else [values]
        before = acted[0]
        act(builder.nodes if builder else [], builder.constants if builder else [], new, root)
        try:
            replace(root, new, builder, replaced)
        except NoMatch:
            stopped[0] += acted[0] - before
            raise

    def wrong_merge(old: ir.Value, new: ir.Value, at: ir.Node) -> None:
        if disturb is _value:
            holder = [new]
            act([], [], holder, at)
            new = holder[0]
        merge(old, new, at)

    def wrong_insert(anchor: ir.Node, nodes: Any) -> None:
        act(list(nodes), [], [], anchor)
        insert(anchor, nodes)

    def wrong_splice(node: ir.Node, inner: ir.Graph, values: Any, made: Any = ()) -> None:
        act(list(inner), list(inner.initializers.values()), [], node)
        splice(node, inner, values, made)

    def wrong_erase(node: ir.Node) -> None:
        if disturb is _value and node.graph is not None and any(out.uses() for out in node.outputs) is False:
            other = next(
                (item for item in node.graph if item is not node and any(out.uses() for out in item.outputs)), None
            )
            if other is not None:
                acted[0] += 1
                rewriter.count(other)
                rewriter.index.remove(other)
                other.graph.remove(other, safe=False)  # type: ignore[union-attr]
        erase(node)

    def wrong_metadata(node: ir.Node, keys: Any) -> None:
        act([node], [], [], node)
        drop_metadata(node, keys)

    for name, wrong in (
        ("drop_metadata", wrong_metadata),
        ("replace", wrong_replace),
        ("merge", wrong_merge),
        ("insert_before", wrong_insert),
        ("splice", wrong_splice),
        ("erase", wrong_erase),
    ):
        setattr(rewriter, name, wrong)
    return lambda: (acted[0], stopped[0])


# -- guards ------------------------------------------------------------------------------------------------------------


@contextmanager
def watched(seen: set[str], dropped: str = "") -> Iterator[list[int]]:
    """Collect the places whose guards fail in passes, and let the guard at `dropped` hold always.

    Guards are the questions of Match that stop a rule: require, same_shape, equal, not_quantized, sole_use.
    """
    count = [0]

    def place() -> str:
        frame = sys._getframe(2)
        while frame.f_code.co_filename.endswith("match.py") and frame.f_back is not None:
            frame = frame.f_back
        return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"

    def require(self: Match, condition: object, reason: str) -> None:
        if not condition:
            where = place()
            seen.add(where)
            if where != dropped:
                raise NoMatch(reason)
            count[0] += 1

    def lenient(original: Callable[..., Any], passing: Any) -> Callable[..., Any]:
        def ask(self: Match, *arguments: Any) -> Any:
            where = place()
            try:
                answer = original(self, *arguments)
            except NoMatch:
                seen.add(where)
                if where != dropped:
                    raise
                count[0] += 1
                return passing
            if answer is False:
                seen.add(where)
                if where == dropped:
                    count[0] += 1
                    return True
            return answer

        return ask

    with mock.patch.multiple(
        Match,
        require=require,
        same_shape=lenient(Match.same_shape, True),
        equal=lenient(Match.equal, True),
        not_quantized=lenient(Match.not_quantized, None),
        sole_use=lenient(Match.sole_use, None),
    ):
        yield count


# -- the hunt ----------------------------------------------------------------------------------------------------------


def aimed(rule: str, count: int = GRAPHS, seed: int = 0) -> Iterator[Subject]:
    """Graphs aimed at a rule that the untouched rule handles well."""
    found = 0
    for number in range(4 * count):
        if found == count:
            return
        try:
            subject = Subject.of(generate(7_000_000 + 1000 * seed + number, rule)[0])
        except Refused:
            continue
        pipeline = pipelines()[rule]
        if rule in concerned(subject) and subject.check(pipeline, target_of(pipeline)).failure is None:
            found += 1
            yield subject


def hunt(rule: str, seed: int = 0, count: int = GRAPHS) -> Hunt:
    """Try every mutant of a rule on graphs aimed at it."""
    pipeline = pipelines()[rule]
    target = target_of(pipeline)
    result = Hunt(rule)
    subjects = list(aimed(rule, count, seed))
    seen: set[str] = set()
    with watched(seen):
        for subject in subjects:
            subject.check(pipeline, target, prepare=_nothing)
    for name, disturb in DISTURB.items():
        _try(
            result,
            Mutant(name),
            subjects,
            lambda subject, disturb=disturb: _disturbed(subject, pipeline, target, disturb),
        )
    if "=" in str(pipeline):
        wrong = parse(re.sub(r"=(\d)", lambda found: f"={int(found[1]) + 1}", str(pipeline)))
        _try(result, Mutant("option"), subjects, lambda subject: _optioned(subject, pipeline, wrong, target))
    for where in sorted(seen):
        _try(
            result,
            Mutant(UNGUARDED, where),
            subjects,
            lambda subject, where=where: _unguarded(subject, pipeline, target, where),
        )
    return result


def _nothing(ctx: Context) -> None:
    """A run of its own: the remarks of an earlier one must not hide a guard."""


def _try(result: Hunt, mutant: Mutant, subjects: list[Subject], check: Callable[[Subject], bool | None]) -> None:
    acted = False
    for subject in subjects:
        verdict = check(subject)
        if verdict:
            result.caught.append(str(mutant))
            return
        acted = acted or verdict is False
    if acted:
        result.survived.append(str(mutant))


def _disturbed(subject: Subject, pipeline: Any, target: Any, disturb: Disturb) -> bool | None:
    """True when caught, False when it acted and was not, None when it did not act.

    Caught too is one that the rewriter's own rules keep from being applied where the right rule is.
    """
    counters: list[Callable[[], tuple[int, int]]] = []
    outcome = subject.check(pipeline, target, prepare=lambda ctx: counters.append(plant(ctx, disturb)))
    acted, stopped = counters[0]()
    if outcome.failure is not None or not acted:
        return True if acted else None
    applied = sum(outcome.applied.values())
    if stopped and applied < sum(subject.check(pipeline, target, prepare=_nothing).applied.values()):
        return True
    return False if applied else None


def _optioned(subject: Subject, right: Any, wrong: Any, target: Any) -> bool | None:
    """The pass with another number among its options."""
    if str(right) == str(wrong):
        return None
    outcome = subject.check(wrong, target, prepare=_nothing)
    return outcome.failure is not None if sum(outcome.applied.values()) else None


def _unguarded(subject: Subject, pipeline: Any, target: Any, where: str) -> bool | None:
    with watched(set(), dropped=where) as count:
        outcome = subject.check(pipeline, target, prepare=_nothing)
    return outcome.failure is not None if count[0] else None


def as_dict(result: Hunt) -> dict[str, Any]:
    """For a pipe between processes: the names of mutants, and how many of each kind were made and caught."""
    made = [*result.caught, *result.survived]
    return {
        **dataclasses.asdict(result),
        "wrong": (len([name for name in made if not _drops(name)]), len([n for n in result.caught if not _drops(n)])),
        "unguarded": (len([name for name in made if _drops(name)]), len([n for n in result.caught if _drops(n)])),
    }


def _drops(name: str) -> bool:
    return name.startswith(UNGUARDED)
