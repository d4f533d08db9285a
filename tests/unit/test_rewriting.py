"""The rewriter, the pattern language and the driver: legality, names, limits, remarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from graphopt import ir
from graphopt.errors import GateError, PassError, VerificationError
from graphopt.ir.builder import NoMatch
from graphopt.ir.text import from_text
from graphopt.ir.verifier import verify
from graphopt.manager import runner
from graphopt.manager.base import Pass
from graphopt.manager.context import Context
from graphopt.manager.instruments import Instruments
from graphopt.manager.pattern import RewritePass
from graphopt.manager.pipeline import Fix, Pipeline
from graphopt.manager.worklist import NodePass

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
CHAIN = (
    HEAD
    + """agraph (float[N,4] x) => (float[N,4] y) <float[4] w>
{ [first] a = Neg(x)
  [second] b = Neg(a)
  [third] y = Add(b, w) }"""
)


@dataclass(frozen=True)
class DropDoubleNeg(RewritePass):
    """Neg(Neg(x)) -> x"""

    name: ClassVar[str] = "drop-double-neg"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Neg(op.Neg(x, _as="inner"))

    def rewrite(self, op: Any, m: Any, x: Any) -> Any:
        return x


def run(model: ir.Model, *passes: Pass, **options: Any) -> runner.RunResult:
    limit = options.pop("limit", None)
    return runner.run(model, Pipeline(tuple(passes)), Context(model, limit=limit), **options)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_rule_replaces_its_root_and_erases_the_interior() -> None:
    model = from_text(CHAIN)
    result = run(model, DropDoubleNeg())
    assert ops(model) == ["Add"]
    assert result.effects() == {"drop-double-neg": 1}
    remark = next(iter(result.ctx.remarks))
    assert (remark.status, remark.site, remark.op) == ("applied", "second", "Neg")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Neg(x)\n b = Neg(a)\n y = Add(b, a)", "multiple-uses: Neg"),
        ("y = Neg(x)\n b = Neg(y)", "multiple-uses: Neg"),
    ],
)
def test_an_interior_value_that_is_used_elsewhere_stops_the_rule(body: str, reason: str) -> None:
    model = from_text(HEAD + f"agraph (float[4] x) => (float[4] y) {{ {body} }}")
    before = ops(model)
    result = run(model, DropDoubleNeg())
    assert ops(model) == before
    missed = [remark.reason for remark in result.ctx.remarks if remark.status == "missed"]
    assert missed and missed[0].startswith(reason)


def test_an_output_keeps_its_name_and_its_declared_dims() -> None:
    model = from_text(HEAD + "agraph (float[4] x) => (float[M] y) { h = Relu(x)\n a = Neg(h)\n y = Neg(a) }")
    run(model, DropDoubleNeg())
    assert ops(model) == ["Relu"]
    output = model.graph.outputs[0]
    assert (output.name, str(output.shape)) == ("y", "[M]")


def test_an_output_fed_by_an_input_gets_an_identity() -> None:
    model = from_text(HEAD + "agraph (float[4] x) => (float[4] y) { a = Neg(x)\n y = Neg(a) }")
    run(model, DropDoubleNeg())
    assert ops(model) == ["Identity"]
    verify(model)


def test_a_subgraph_output_fed_by_an_outer_value_gets_an_identity() -> None:
    model = from_text(
        HEAD
        + """agraph (bool c, float[4] x) => (float[4] y)
        { h = Relu(x)
          y = If(c) <then_branch = t () => (float[4] r) { a = Neg(h)
 r = Neg(a) }, else_branch = e () => (float[4] s) { s = Abs(h) }> }"""
    )
    run(model, DropDoubleNeg())
    branch = next(node for node in model.graph if node.op_type == "If").attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Identity"]


def test_the_interior_never_crosses_into_an_outer_graph() -> None:
    model = from_text(
        HEAD
        + """agraph (bool c, float[4] x) => (float[4] y)
        { h = Neg(x)
          y = If(c) <then_branch = t () => (float[4] r) { r = Neg(h) },
                     else_branch = e () => (float[4] s) { s = Abs(x) }> }"""
    )
    result = run(model, DropDoubleNeg())
    assert not result.rewrites


@dataclass(frozen=True)
class Retype(NodePass):
    """Neg(x) -> Cast(x)"""

    name: ClassVar[str] = "retype"
    ops: ClassVar[tuple[str, ...]] = ("Neg",)
    to: int = 10

    def rewrite_node(self, op: Any, m: Any, node: ir.Node) -> Any:
        return op.Cast(node.inputs[0], to=self.to) if self.to else op.Unsqueeze(node.inputs[0], [0])


@pytest.mark.parametrize(("to", "reason"), [(10, "would change the type"), (0, "would change the shape")])
def test_the_driver_refuses_a_changed_type_or_shape(to: int, reason: str) -> None:
    model = from_text(CHAIN)
    result = run(model, Retype(to))
    assert not result.rewrites
    assert ops(model) == ["Neg", "Neg", "Add"]
    assert all(reason in remark.reason for remark in result.ctx.remarks)
    assert len(model.graph.initializers) == 1, "what a refused rewrite made is taken back"


@dataclass(frozen=True)
class Swap(NodePass):
    """Add(x, y) -> Add(y, x), for ever"""

    name: ClassVar[str] = "swap"
    ops: ClassVar[tuple[str, ...]] = ("Add",)

    def rewrite_node(self, op: Any, m: Any, node: ir.Node) -> Any:
        return op.Add(node.inputs[1], node.inputs[0])


def test_a_rule_that_undoes_itself_is_named() -> None:
    with pytest.raises(PassError, match="'swap' was applied .* times without coming to an end"):
        run(from_text(CHAIN), Swap())


@dataclass(frozen=True)
class Raises(NodePass):
    """Add -> a bug"""

    name: ClassVar[str] = "raises"
    ops: ClassVar[tuple[str, ...]] = ("Add",)

    def rewrite_node(self, op: Any, m: Any, node: ir.Node) -> Any:
        op.Neg(node.inputs[0])
        raise KeyError("oops")


def test_a_pass_that_raises_is_named_with_its_site() -> None:
    model = from_text(CHAIN)
    with pytest.raises(PassError, match=r"pass 'raises' failed at third \(Add\): KeyError: 'oops'"):
        run(model, Raises())
    verify(model)


@dataclass(frozen=True)
class Sneaky(Pass):
    """Mutates behind the rewriter's back."""

    name: ClassVar[str] = "sneaky"

    def run(self, model: ir.Model, ctx: Context) -> None:
        node = model.graph[-1]
        node.replace_input_with(0, model.graph.inputs[0])


def test_a_mutation_outside_the_rewriter_is_an_error() -> None:
    with pytest.raises(PassError, match="'sneaky' changed the model without the rewriter"):
        run(from_text(CHAIN), Sneaky())


@dataclass(frozen=True)
class Breaks(Pass):
    """Renames an output."""

    name: ClassVar[str] = "breaks"

    def run(self, model: ir.Model, ctx: Context) -> None:
        ctx.rewriter.count(model.graph[0])
        model.graph.outputs[0].name = "other"


def test_the_interface_is_abi() -> None:
    with pytest.raises(VerificationError, match="after pass 'breaks': the outputs changed"):
        run(from_text(CHAIN), Breaks())


@dataclass(frozen=True)
class AddZeroes(NodePass):
    """Neg(x) -> Mul(x, -1)"""

    name: ClassVar[str] = "neg-to-mul"
    ops: ClassVar[tuple[str, ...]] = ("Neg",)

    def rewrite_node(self, op: Any, m: Any, node: ir.Node) -> Any:
        return op.Mul(node.inputs[0], -1.0)


@pytest.mark.parametrize(("limit", "left"), [(0, 2), (1, 1), (2, 0), (9, 0)])
def test_the_bisect_limit_lets_exactly_n_rewrites_happen(limit: int, left: int) -> None:
    model = from_text(CHAIN)
    result = run(model, AddZeroes(), limit=limit)
    assert ops(model).count("Neg") == left
    assert len(result.rewrites) == 2 - left
    verify(model)


def test_new_nodes_carry_provenance_type_and_shape() -> None:
    model = from_text(CHAIN)
    run(model, AddZeroes())
    node = model.graph[0]
    assert node.metadata_props["graphopt.from"] == "neg-to-mul: first"
    assert (str(node.outputs[0].dtype), str(node.outputs[0].shape)) == ("FLOAT", "[N,4]")
    assert node.outputs[0].name == "a"


def test_require_effect_names_the_idle_pass_and_why() -> None:
    model = from_text(HEAD + "agraph (float[4] x) => (float[4] y) { a = Neg(x)\n b = Neg(a)\n y = Add(b, a) }")
    with pytest.raises(GateError, match="drop-double-neg: .*multiple-uses"):
        run(model, DropDoubleNeg(), require_effect=True)


def test_fix_stops_when_a_round_changes_nothing() -> None:
    model = from_text(CHAIN)
    result = run(model, Fix((DropDoubleNeg(), AddZeroes()), 8))  # type: ignore[arg-type]
    assert [record.name for record in result.timings.records].count("drop-double-neg") == 2


def test_an_unknown_op_in_a_pattern_is_found_when_the_pass_is_made() -> None:
    @dataclass(frozen=True)
    class Typo(RewritePass):
        """Cov(x) -> x"""

        name: ClassVar[str] = "typo"

        def pattern(self, op: Any, x: Any) -> Any:
            return op.Conb(x)

        def rewrite(self, op: Any, m: Any, x: Any) -> Any:
            return x

    with pytest.raises(PassError, match="unknown in domain 'ai.onnx'; did you mean 'Conv'"):
        Typo()


@pytest.mark.parametrize(
    ("text", "matches"),
    [("Mul(x, two)", True), ("Mul(two, x)", True), ("Mul(x, three)", False), ("Sub(x, two)", False)],
)
def test_literals_commutativity_and_ops(text: str, matches: bool) -> None:
    @dataclass(frozen=True)
    class Double(RewritePass):
        """x * 2 -> x + x"""

        name: ClassVar[str] = "double"

        def pattern(self, op: Any, x: Any) -> Any:
            return op.Mul(x, 2.0)

        def rewrite(self, op: Any, m: Any, x: Any) -> Any:
            return op.Add(x, x)

    model = from_text(
        HEAD + f"agraph (float[3] x) => (float[3] y) <float two = {{2.0}}, float three = {{3.0}}> {{ y = {text} }}"
    )
    run(model, Double())
    assert ("Add" in ops(model)) == matches


def test_nomatch_from_a_guard_is_the_remark() -> None:
    @dataclass(frozen=True)
    class Never(NodePass):
        """Add(x, y) -> Add(x, y), never"""

        name: ClassVar[str] = "never"
        ops: ClassVar[tuple[str, ...]] = ("Add",)

        def rewrite_node(self, op: Any, m: Any, node: ir.Node) -> Any:
            raise NoMatch("because")

    result = run(from_text(CHAIN), Never(), instruments=Instruments(verify="end"))
    assert [remark.as_json() for remark in result.ctx.remarks] == [
        {"pass": "never", "status": "missed", "site": "third", "op": "Add", "reason": "because"}
    ]
