"""Pipeline text, named pipelines, recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import GraphoptError
from graphopt.manager import pipeline, registry
from graphopt.manager.base import STAGES
from graphopt.precision import with_precision
from graphopt.spec import SpecError


@pytest.mark.parametrize("text", ["dce", "dce,cse", "fix(dce,cse)", "dce,fix{max=2}(cse,fix(dce)),cse", ""])
def test_text_round_trips(text: str) -> None:
    assert str(pipeline.parse(text)) == text


@pytest.mark.parametrize("name", ["O0", "O1", "O2", "O3", "@simplify", "-O2"])
def test_named_pipelines_expand_to_text_that_parses_back(name: str) -> None:
    expanded = pipeline.parse(name)
    assert pipeline.parse(str(expanded)) == expanded


def test_a_pass_that_is_off_by_default_joins_in_its_stage() -> None:
    plain, added = pipeline.parse("O2"), pipeline.parse("O2{with=fuse-matmul}")
    names = [item.name for item in added.passes()]
    assert "fuse-matmul" not in [item.name for item in plain.passes()]
    assert names.index("fuse-conv-bn") < names.index("fuse-matmul") < len(names) - 1
    only = pipeline.parse('O0{with=["convert-opset{to=20}" dce]}')
    assert [item.name for item in only.passes()] == ["convert-opset", "dce"]
    with pytest.raises(GraphoptError, match="did you mean 'dce'"):
        pipeline.parse("O2{with=dec}")


def test_levels_grow_and_o1_is_exact() -> None:
    names = [{item.name for item in pipeline.parse(f"O{level}").passes()} for level in range(4)]
    assert names[0] == set()
    assert names[1] and names[1] < names[2] <= names[3]
    assert {registry.get(name).tolerance for name in names[1]} == {"exact"}
    assert "lossy" not in {registry.get(name).tolerance for name in names[3]}


def test_stages_come_in_order() -> None:
    items = pipeline.parse("O3").items
    firsts = [STAGES.index(next(pipeline.Pipeline((item,)).passes()).stage) for item in items]
    assert firsts[:-1] == sorted(firsts[:-1])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("dec", GraphoptError, "there is no pass 'dec'; did you mean 'dce'?"),
        ("O9", GraphoptError, "there is no pass 'O9'"),
        ("@simplfy", GraphoptError, "did you mean '@simplify'?"),
        ("dce,,cse", SpecError, "expected a name at column 5"),
        ("dce cse", SpecError, "expected ',' or the end at column 5"),
        ("fix", SpecError, "expected '(' after fix"),
        ("fix(dce", SpecError, "expected ')' to close fix"),
        ("fix()", SpecError, "fix needs at least one pass"),
        ("fix{max=0}(dce)", GraphoptError, "max must be at least 1"),
        ("dce{level=1}", GraphoptError, "has no option 'level'"),
    ],
)
def test_mistakes_get_one_clear_message(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        pipeline.parse(text)
    assert message in str(caught.value)


def test_disabling_takes_a_pass_out_of_fix_groups() -> None:
    parsed = pipeline.parse("dce,fix(cse),fix(dce,cse)")
    assert str(parsed.without(("cse",))) == "dce,fix(dce)"
    with pytest.raises(GraphoptError, match="has no such pass; it has: cse, dce"):
        parsed.without(("fuse-conv-bn",))


def test_a_recipe_says_the_same_as_the_text(tmp_path: Path) -> None:
    parsed = pipeline.parse("dce,fix{max=3}(cse,convert-opset{to=20}),fuse-conv-bn")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(pipeline.dump_recipe(parsed))
    assert pipeline.load_recipe(recipe) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pass]\n", "not TOML"),
        ("x = 1\n", "found 'x'"),
        ("[[pass]]\nmax = 1\n", "needs a name"),
        ('[[pass]]\nname = "dec"\n', "did you mean 'dce'?"),
    ],
)
def test_broken_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    with pytest.raises(GraphoptError) as caught:
        pipeline.load_recipe(recipe)
    assert message in str(caught.value)
    with pytest.raises(GraphoptError, match="No such file"):
        pipeline.load_recipe(tmp_path / "absent.toml")


def test_half_precision_comes_behind_a_pipeline_of_the_targets_own() -> None:
    target = registry.make_target("tvm{device=cuda arch=sm_90}")
    text = str(with_precision("fp16", 2, target))
    own = str(pipeline.parse(target.pipeline(2)))
    assert text.startswith(f"{own},convert-float16")
    with pytest.raises(GraphoptError, match="give the precision in one place"):
        with_precision("fp16", 2, registry.make_target("cuda{precision=fp16}"))
