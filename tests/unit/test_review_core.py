"""Faults found by review in the rewriter, the matcher, pipeline text, plug-ins and the structural hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt import ir
from graphopt.errors import GraphoptError, PassError
from graphopt.ir import sites
from graphopt.ir.hash import structural_hash
from graphopt.ir.rewriter import Rewriter
from graphopt.ir.text import from_text
from graphopt.ir.verifier import verify
from graphopt.manager import registry
from graphopt.manager.context import Context
from graphopt.manager.instruments import Instruments
from graphopt.manager.pattern import RewritePass
from graphopt.manager.pipeline import Pipeline, dump_recipe, load_recipe, parse
from graphopt.manager.runner import run

HEADER = '<ir_version: 10, opset_import: ["": 21]>'


def model_of(text: str) -> Any:
    model = from_text(f"{HEADER}\n{text}")
    sites.name_nodes(model)
    return model


@dataclass(frozen=True)
class HalfToNeg(RewritePass):
    """x * 0.5 -> -x, which is wrong: it shows where the literal matched."""

    name = "half-to-neg"

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, 0.5)

    def rewrite(self, op: Any, m: Any, x: Any) -> Any:
        return op.Neg(x)


@pytest.mark.parametrize(("factor", "matches"), [(0.5, True), (np.nan, False), (np.inf, False), (-0.5, False)])
def test_a_literal_matches_its_number_only(factor: float, matches: bool) -> None:
    model = model_of("g (float[4] x) => (float[4] y) <float f = {0}> { y = Mul(x, f) }")
    model.graph.initializers["f"].const_value = ir.tensor(np.array(factor, np.float32), name="f")
    run(model, Pipeline((HalfToNeg(),)), Context(model))
    assert [node.op_type for node in model.graph] == (["Neg"] if matches else ["Mul"])


@dataclass(frozen=True)
class SumTimesPart(RewritePass):
    """(x + y) * x -> x - y, which is wrong: it shows what x and y were."""

    name = "sum-times-part"

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        return op.Mul(op.Add(x, y), x)

    def rewrite(self, op: Any, m: Any, x: Any, y: Any) -> Any:
        return op.Sub(x, y)


@pytest.mark.parametrize("product", ["Mul(s, {part})", "Mul({part}, s)"])
@pytest.mark.parametrize(("part", "found"), [("p", ["p", "q"]), ("q", ["q", "p"]), ("r", None)])
def test_a_later_operand_may_refuse_the_order_of_an_earlier_sum(product: str, part: str, found: Any) -> None:
    text = f"{{ s = Add(p, q) \n y = {product.format(part=part)} }}"
    model = model_of(f"g (float[4] p, float[4] q, float[4] r) => (float[4] y) {text}")
    run(model, Pipeline((SumTimesPart(),)), Context(model))
    last = model.graph.outputs[0].producer()
    assert (last.op_type == "Sub") == (found is not None)
    assert found is None or [value.name for value in last.inputs] == found


def test_a_pattern_in_another_domain_than_its_class_is_an_error() -> None:
    @dataclass(frozen=True)
    class Never(RewritePass):
        """com.microsoft.FastGelu(x) -> Relu(x)."""

        name = "never"

        def pattern(self, op: Any, x: Any) -> Any:
            return op.FastGelu(x, _domain="com.microsoft")

        def rewrite(self, op: Any, m: Any, x: Any) -> Any:
            return op.Relu(x)

    with pytest.raises(PassError, match="it would never match"):
        Never()


PREFIXES = {
    "loop": """g (float[2] x) => (float[2] y) <int64 one = {1}, bool c = {1}> {
        z = Loop (one, c, x) <body = b (int64 i, bool go, float[2] v) => (bool on, float[2] w) {
            on = Identity(go) \n f = Cast<to = 1>(i) \n u = Neg(v) \n w = Add(u, f) }>
        y = Identity(z) }""",
    "if": """g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> {
        a = Relu(x) \n b = Relu(x)
        y, z = If (c) <then_branch = t () => (float[2] o, float[2] p) { o = Identity(a) \n p = Add(b, b) },
                       else_branch = e () => (float[2] q, float[2] r) { q = Neg(a) \n r = Abs(b) }> }""",
    "fold": """g (float[2] x) => (float[2] y, int64[1] n) {
        s = Shape(x) \n n = Identity(s) \n one = Constant<value_ints = [1]>() \n k = Mul(s, one)
        t = Reshape(x, k) \n a, b = Split<num_outputs = 2>(t) \n c = Concat<axis = 0>(a, b) \n y = Identity(c) }""",
}


@pytest.mark.parametrize("case", PREFIXES)
def test_every_prefix_of_a_run_is_a_legal_model(case: str) -> None:
    pipeline = parse("O2")
    whole = model_of(PREFIXES[case])
    rewrites = run(whole, pipeline, Context(whole)).rewrites
    assert rewrites
    for limit in range(len(rewrites) + 1):
        model = model_of(PREFIXES[case])
        result = run(model, pipeline, Context(model, limit=limit), Instruments(verify="end"))
        assert result.rewrites == rewrites[:limit]
        verify(ir.from_proto(ir.to_proto(model)))


def test_a_fresh_name_is_no_name_of_a_sibling_graph() -> None:
    model = model_of("""g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] o) { t = Neg(x) \n o = Identity(t) },
                    else_branch = b () => (float[2] p) { t = Abs(x) \n p = Identity(t) }> }""")
    rewriter = Rewriter(model)
    identity = next(node for node in sites.all_nodes(model) if node.op_type == "Identity")
    rewriter.replace(identity, identity.inputs[0])
    assert rewriter.fresh_name("t") != "t"


def test_the_hash_tells_defaults_of_inputs_apart() -> None:
    text = "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {3, %d}> { y = Mul(x, w) }"
    assert structural_hash(model_of(text % 4)) != structural_hash(model_of(text % 5))


def test_the_hash_tells_defaults_of_functions_apart() -> None:
    def model(alpha: float) -> Any:
        body = helper.make_node("LeakyRelu", ["x"], ["y"])
        body.attribute.append(onnx.AttributeProto(name="alpha", type=1, ref_attr_name="alpha"))
        given = [helper.make_attribute("alpha", alpha)]
        function = helper.make_function("d", "F", ["x"], ["y"], [body], [helper.make_opsetid("", 21)], [], given)
        x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
        graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="d")], "g", [x], [y])
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("d", 1)]
        return ir.from_proto(helper.make_model(graph, functions=[function], opset_imports=imports))

    assert structural_hash(model(0.1)) != structural_hash(model(0.2))
    assert structural_hash(model(0.1)) == structural_hash(model(0.1))


def test_the_hash_survives_saving() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { y = LeakyRelu<alpha = 0.3>(x) }")
    node = next(iter(model.graph))
    hashes = []
    for alpha in (0.1, 0.0, -0.0):  # 0.1 is another number in the single precision of a file
        node.attributes["alpha"] = ir.Attr("alpha", ir.AttributeType.FLOAT, alpha)
        hashes.append(structural_hash(model))
        assert structural_hash(ir.from_proto(ir.to_proto(model))) == hashes[-1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("fault", ['max = "x"', "max = 0", "max = 2.5", "maxx = 3"])
def test_a_recipe_checks_the_options_of_fix(tmp_path: Path, fault: str) -> None:
    (tmp_path / "r.toml").write_text(f'[[pass]]\nname = "fix"\n{fault}\n[[pass.pass]]\nname = "cse"\n')
    with pytest.raises(GraphoptError, match="group 'fix'"):
        load_recipe(tmp_path / "r.toml")


def test_a_recipe_wants_tables_in_fix(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[[pass]]\nname = "fix"\npass = 3\n')
    with pytest.raises(GraphoptError, match="tables"):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    "name", ["a b", "\N{GRINNING FACE}", 'q"u', "\x7f", "a\\b", "a,b", "{", "[", "]", "\n", "dims"]
)
def test_odd_strings_survive_text_and_recipe(tmp_path: Path, name: str) -> None:
    from graphopt.passes.capture.bind_dims import BindDims

    pipeline = Pipeline((BindDims((f"{name}=1",)),))
    assert parse(str(pipeline)) == pipeline
    (tmp_path / "r.toml").write_text(dump_recipe(pipeline), encoding="utf-8")
    assert load_recipe(tmp_path / "r.toml") == pipeline


_PLUGIN = """from __future__ import annotations
from dataclasses import dataclass
{imports}
from graphopt import Pass
@dataclass(frozen=True)
class Loaded(Pass):
    "Does nothing."
    name = "{name}"
    mode: {kind} = "a"
    def run(self, model, ctx): pass
"""


def test_two_loaded_files_of_one_name_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", {})
    parts = {"a": ("from typing import Literal", 'Literal["a", "b"]'), "b": ("", "str")}
    for folder, (imports, kind) in parts.items():
        (tmp_path / folder).mkdir()
        text = _PLUGIN.format(imports=imports, name=f"load-{folder}", kind=kind)
        (tmp_path / folder / "rule.py").write_text(text)
        for _ in range(2):
            assert [cls.name for cls in registry.load_file(tmp_path / folder / "rule.py")] == [f"load-{folder}"]
    assert str(parse("load-a{mode=b},load-b{mode=c}")) == "load-a{mode=b},load-b{mode=c}"
    with pytest.raises(GraphoptError, match="not one of a, b"):
        parse("load-a{mode=c}")


def test_a_broken_target_plugin_is_reported_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        value = "package:thing"

        def __init__(self, name: str, found: Any) -> None:
            self.name, self.found = name, found

        def load(self) -> Any:
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

    entries = [Entry("broken", ImportError("no such module")), Entry("odd", dict)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if "targets" in group else [])
    registry._targets.cache_clear()
    try:
        assert "cpu" in registry.targets()
        assert [line.split("'")[1] for line in registry.target_problems()] == ["broken", "odd"]
    finally:
        registry._targets.cache_clear()


def test_a_loaded_pass_cannot_take_the_name_of_a_built_in_one(tmp_path: Path) -> None:
    text = _PLUGIN.format(imports="", name="dce", kind="str")
    (tmp_path / "rule.py").write_text(text)
    with pytest.raises(GraphoptError, match="pass 'dce' is built in"):
        registry.load_file(tmp_path / "rule.py")
    assert registry.get("dce").__module__.startswith("graphopt.passes.")


def test_options_without_a_dataclass_are_an_error(tmp_path: Path) -> None:
    text = _PLUGIN.format(imports="", name="load-c", kind="str").replace("@dataclass(frozen=True)\n", "")
    (tmp_path / "rule.py").write_text(text)
    with pytest.raises(GraphoptError, match=r"'load-c' has the options mode: @dataclass\(frozen=True\) is missing"):
        registry.load_file(tmp_path / "rule.py")
