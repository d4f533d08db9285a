"""Patterns that look like the model: `op.Mul(op.Conv(x, w, _as="conv"), s)`.

Lives here: the pattern language and the matcher with its near-miss trace. The driver is in worklist.py.
"""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.errors import PassError, did_you_mean
from graphopt.ir import optable
from graphopt.ir.builder import Builder, NoMatch
from graphopt.ir.constants import const_scalar, const_tensor
from graphopt.manager.match import Match
from graphopt.manager.worklist import NodePass, Uninteresting

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.worklist import Replacement

COMMUTATIVE = frozenset(
    {"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)


@dataclass(frozen=True, eq=False)
class Hole:
    """A variable of the pattern: binds any value; the same hole twice must bind the same value."""

    name: str
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Call:
    """A node of the pattern. `ops` are alternatives; `attributes` must be equal; other attributes are free."""

    ops: frozenset[str]
    domain: str
    inputs: tuple[Any, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    label: str | None = None
    shared: bool = False
    prefix: bool = False

    def __repr__(self) -> str:
        return "|".join(sorted(self.ops))


@dataclass(frozen=True, eq=False)
class Output:
    """Output `index` of a Call with several outputs."""

    call: Call
    index: int


@dataclass(frozen=True, eq=False)
class OneOf:
    """Alternatives, tried in order."""

    choices: tuple[Any, ...]


class PatternBuilder:
    """The `op` that `pattern` receives.

    `op.Conv(x, w, _as="conv")` is a node; keyword arguments are attributes that must be equal. Names with an underscore
    steer: `_as` labels the node, `_shared` allows other users of its output (it then stays in the graph), `_domain`
    names its domain, `_prefix` ignores further inputs. Numbers match constants of one element.
    """

    def __getattr__(self, op_type: str) -> Callable[..., Call]:
        if op_type.startswith("__"):
            raise AttributeError(op_type)
        return lambda *inputs, **rest: self.node(op_type, *inputs, **rest)

    def node(
        self,
        ops: str | tuple[str, ...],
        *inputs: Any,
        _as: str | None = None,
        _shared: bool = False,
        _domain: str = "",
        _prefix: bool = False,
        **attributes: Any,
    ) -> Call:
        """A node whose op type is one of `ops`."""
        names = frozenset([ops] if isinstance(ops, str) else ops)
        for name in names:
            if name not in optable.op_names(_domain):
                raise PassError(
                    f"a pattern names the op {name!r}, unknown in domain {_domain or 'ai.onnx'!r}"
                    f"{did_you_mean(name, optable.op_names(_domain))}"
                )
        return Call(names, _domain, inputs, tuple(sorted(attributes.items())), _as, _shared, _prefix)

    def one_of(self, *choices: Any) -> OneOf:
        """Any of several patterns, tried in order."""
        return OneOf(choices)

    def maybe(self, ops: str | tuple[str, ...], x: Any, *rest: Any, **options: Any) -> OneOf:
        """A node around `x` that may be missing."""
        return OneOf((self.node(ops, x, *rest, **options), x))

    def output(self, call: Call, index: int) -> Output:
        """Output `index` of a node with several outputs."""
        return Output(call, index)


@dataclass
class _Bindings:
    holes: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    nodes: dict[int, Any] = field(default_factory=dict)  # id(Call) -> node
    interior: list[tuple[Any, bool]] = field(default_factory=list)  # (node, shared)

    def copy(self) -> _Bindings:
        return _Bindings(dict(self.holes), dict(self.labels), dict(self.nodes), list(self.interior))


@dataclass
class NearMiss:
    """The furthest a match got: how many nodes matched, and what stopped it there."""

    depth: int = 0
    reason: str = ""
    interesting: bool = False


class Matcher:
    """Matches one compiled pattern against a root node."""

    def __init__(self, root: Call) -> None:
        self.root = root

    def match(self, node: ir.Node) -> tuple[_Bindings | None, NearMiss]:
        self.graph = node.graph
        self.miss = NearMiss()
        found = next(self._node(node, self.root, _Bindings(), is_root=True), None)
        return (found, self.miss)

    def _fail(self, bindings: _Bindings, reason: str, interesting: bool) -> None:
        depth = len(bindings.nodes)
        deeper = depth > self.miss.depth
        # At the same depth a reason that says something is kept, whatever the other operand order gave.
        if deeper or (depth == self.miss.depth and (interesting or not self.miss.interesting)):
            self.miss = NearMiss(depth, reason, interesting)

    # Each of these yields every way to match, so that a later input may refuse an earlier one's choice; `b` is never
    # changed, only copied.

    def _value(self, value: ir.Value | None, pattern: Any, b: _Bindings) -> Iterator[_Bindings]:
        if isinstance(pattern, Hole):
            yield from self._hole(value, pattern, b)
            return
        if isinstance(pattern, OneOf):
            for choice in pattern.choices:
                yield from self._value(value, choice, b)
            return
        if value is None:
            self._fail(b, "an input is absent", False)
            return
        if isinstance(pattern, int | float):
            if self._is_literal(value, pattern, b):
                yield b
            return
        call, index = (pattern.call, pattern.index) if isinstance(pattern, Output) else (pattern, 0)
        node = value.producer()
        if node is None or node.op_type not in call.ops or node.domain != call.domain:
            there = node.op_type if node is not None else "no node"
            self._fail(b, f"value {value.name!r} is made by {there}, not {call}", False)
            return
        if value.index() != index:
            self._fail(b, f"value {value.name!r} is output {value.index()} of {node.op_type}", True)
            return
        yield from self._node(node, call, b, is_root=False)

    def _hole(self, value: ir.Value | None, hole: Hole, b: _Bindings) -> Iterator[_Bindings]:
        if value is None and not hole.optional:
            self._fail(b, f"the input for {hole.name!r} is absent", True)
        elif hole.name not in b.holes:
            b = b.copy()
            b.holes[hole.name] = value
            yield b
        elif b.holes[hole.name] is value:
            yield b
        else:
            self._fail(b, f"{hole.name!r} would have to be two different values", True)

    def _is_literal(self, value: ir.Value, literal: int | float, b: _Bindings) -> bool:
        element = const_scalar(value)
        # Equality first, and no `>`: an infinity is only itself, and NaN is no literal.
        if (
            element is None
            or isinstance(element, bool)
            or not (element == literal or abs(element - literal) <= _precision(value) * abs(literal) < math.inf)
        ):
            there = f"the constant {element}" if element is not None else "not a constant scalar"
            self._fail(b, f"value {value.name!r} is {there}, not {literal}", element is not None)
            return False
        return True

    def _node(self, node: ir.Node, call: Call, b: _Bindings, *, is_root: bool) -> Iterator[_Bindings]:
        if id(call) in b.nodes:
            if b.nodes[id(call)] is node:
                yield b
            return
        if node.graph is not self.graph:
            self._fail(b, f"{node.op_type} {node.name!r} stands in an outer graph", True)
            return
        for name, wanted in call.attributes:
            if not _attribute_is(node, name, wanted):
                self._fail(b, f"{node.op_type} {node.name!r} does not have {name}={wanted}", True)
                return
        inputs = list(node.inputs)
        if (
            len(inputs) > len(call.inputs)
            and not call.prefix
            and any(v is not None for v in inputs[len(call.inputs) :])
        ):
            self._fail(
                b, f"{node.op_type} {node.name!r} has {len(inputs)} inputs, the pattern {len(call.inputs)}", True
            )
            return
        inputs = (inputs + [None] * len(call.inputs))[: len(call.inputs)]
        b = b.copy()
        b.nodes[id(call)] = node
        if not is_root:
            b.interior.append((node, call.shared))
        if call.label is not None:
            b.labels[call.label] = node
        orders = [inputs]
        if len(inputs) == 2 and COMMUTATIVE.issuperset(call.ops):
            orders.append(inputs[::-1])
        for order in orders:
            yield from self._inputs(order, call.inputs, b)

    def _inputs(self, values: Sequence[ir.Value | None], patterns: Sequence[Any], b: _Bindings) -> Iterator[_Bindings]:
        if not patterns:
            yield b
            return
        for found in self._value(values[0], patterns[0], b):
            yield from self._inputs(values[1:], patterns[1:], found)


@dataclass(frozen=True)
class RewritePass(NodePass):
    """A rule written as an equation: `pattern` is its left side, `rewrite` its right side, the docstring both.

    `pattern(self, op, x, w, b=None)` returns the root (or a list of alternatives); its parameters are holes, those with
    the default None may be absent. `rewrite(self, op, m, x, w, b)` gets the same values and returns what replaces the
    root's outputs. The driver guarantees that nothing else uses the nodes in between.
    """

    @abstractmethod
    def pattern(self, op: PatternBuilder, /, *holes: Any, **more: Any) -> Any:
        """The shape to look for."""

    @abstractmethod
    def rewrite(self, op: Builder, m: Match, /, *values: Any, **more: Any) -> Replacement:
        """The replacement; raise NoMatch (or use m.require and the like) where it would not be legal."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", self._compile())
        super().__post_init__()

    def roots(self) -> tuple[tuple[Matcher, ...], tuple[str, ...]]:
        """The compiled alternatives and the names of the holes; op names were checked when the pass was made."""
        return self.__dict__["_compiled"]

    def _compile(self) -> tuple[tuple[Matcher, ...], tuple[str, ...]]:
        parameters = list(inspect.signature(self.pattern).parameters.values())[1:]
        holes = [Hole(p.name, p.default is None) for p in parameters]
        made = self.pattern(PatternBuilder(), *holes)
        roots = made if isinstance(made, list | tuple) else [made]
        flat = [choice for root in roots for choice in (root.choices if isinstance(root, OneOf) else (root,))]
        for root in flat:
            if not isinstance(root, Call):
                raise PassError(f"the pattern of pass {self.name!r} must have a node as its root")
            if root.domain != self.domain:
                raise PassError(
                    f"the pattern of pass {self.name!r} begins in domain {root.domain or 'ai.onnx'!r}, "
                    f"its class says domain = {self.domain!r}: it would never match"
                )
        return tuple(Matcher(root) for root in flat), tuple(hole.name for hole in holes)

    def anchors(self) -> tuple[str, ...]:
        return tuple(sorted({op for matcher in self.roots()[0] for op in matcher.root.ops}))

    def near_miss(self, node: ir.Node) -> NearMiss | None:
        """None when the pattern (not yet the guards of `rewrite`) matches at `node`; else how far it got."""
        best = NearMiss()
        for matcher in self.roots()[0]:
            found, miss = matcher.match(node)
            if found is not None:
                return None
            best = miss if miss.depth > best.depth else best
        return best

    def rewrite_node(self, op: Builder, m: Match, node: ir.Node) -> Replacement:
        matchers, names = self.roots()
        best: NearMiss | None = None
        for matcher in matchers:
            if node.op_type not in matcher.root.ops or node.domain != matcher.root.domain:
                continue
            found, miss = matcher.match(node)
            if found is None:
                best = miss if best is None or miss.depth > best.depth else best
                continue
            reason = _used_elsewhere(found, node)
            if reason is not None:
                best = NearMiss(len(found.nodes), reason, True)
                continue
            m.named = dict(found.labels)
            m.interior = [inner for inner, shared in found.interior if not shared]
            return self.rewrite(op, m, *(found.holes.get(name) for name in names))
        if best is None or not (best.interesting or best.depth >= 2):
            raise Uninteresting(best.reason if best else "another op")
        raise NoMatch(best.reason)


def _used_elsewhere(found: _Bindings, root: ir.Node) -> str | None:
    matched = {id(root)} | {id(node) for node, shared in found.interior if not shared}
    for node, shared in found.interior:
        if shared:
            continue
        for output in node.outputs:
            if output.is_graph_output():
                return f"multiple-uses: {node.op_type} {node.name!r} is a graph output"
            if any(id(use.node) not in matched for use in output.uses()):
                return f"multiple-uses: {node.op_type} {node.name!r} has other users"
    return None


def _attribute_is(node: ir.Node, name: str, wanted: Any) -> bool:
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref():
        return False
    value = attr.value
    return tuple(value) == tuple(wanted) if isinstance(wanted, list | tuple) else value == wanted


def _precision(value: ir.Value) -> float:
    """Relative distance within which a constant counts as the literal: two roundings in its own type."""
    tensor = const_tensor(value)
    name = tensor.dtype.name if tensor is not None else ""
    return {"FLOAT16": 2e-3, "BFLOAT16": 1.6e-2, "FLOAT": 1e-6, "DOUBLE": 1e-6}.get(name, 0.0)
