"""Every pass on random typed graphs aimed at it: the rules of the IR hold, the numbers stay within the pass's class.

A few graphs per pass; benchmarks/random_graphs.py runs thousands and the mutants of every rule.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from property import blocks
from property.campaign import examine, pipelines, target_of
from property.equivalents import EQUIVALENT, is_called
from property.generator import AIMED, generate, themes
from property.guards import questions
from property.harness import Subject
from property.hunt import UNGUARDED, _disturbed, aimed
from property.mutants import DISTURB
from property.pool import Pool

from graphopt.manager import registry

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SEEDS = st.integers(0, 2**31 - 1)
# A seed cannot be made simpler: nothing is to be shrunk or explained.
FEW = settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
RULES = sorted(pipelines())
PASSES = Path(__file__).parents[2] / "passes"


def test_every_pass_has_graphs_aimed_at_it() -> None:
    missing = sorted(set(RULES) - set(themes()))  # lossy passes ask for data, which random graphs lack
    assert not missing, f"no golden file and no block in property.generator.AIMED is aimed at {missing}"
    assert set(AIMED) <= set(registry.passes()), "AIMED names no pass"


def test_one_seed_makes_one_graph() -> None:
    for theme in (None, "soup", "fuse-conv-bn"):
        first, second = (generate(1234, theme)[0].SerializeToString(deterministic=True) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("rule", RULES)
def test_pass_on_graphs_aimed_at_it(rule: str) -> None:
    @FEW
    @given(SEEDS)
    def check(seed: int) -> None:
        problems = examine(seed, rule, small=False).problems
        assert not problems, "\n\n".join(
            f"{p.pipeline}: {p.kind}: {p.detail}\n{p.plan}\n{p.text}" for p in problems[:3]
        )

    check()


@settings(FEW, max_examples=40)
@given(SEEDS)
def test_passes_on_random_blocks(seed: int) -> None:
    problems = examine(seed, "soup", small=False).problems
    assert not problems, "\n\n".join(f"{p.pipeline}: {p.kind}: {p.detail}\n{p.plan}\n{p.text}" for p in problems[:3])


@pytest.mark.parametrize("block", [block for block, _ in blocks.BLOCKS], ids=lambda block: block.__name__)
def test_blocks_make_graphs_that_run(block: blocks.Block) -> None:
    ran = 0
    for seed in range(12):
        pool = Pool(random=np.random.default_rng(seed))
        pool.given(pool.shape(3))
        blocks.grow(pool, 1, [block])
        if pool.outputs:
            Subject.of(pool.model())  # raises Refused with the runtime's reason
            ran += 1
    assert ran >= 3


@pytest.mark.parametrize("rule", ["fuse-conv-bn", "merge-slices", "fuse-gelu", "cse"])
def test_the_checks_notice_a_wrong_rule(rule: str) -> None:
    pipeline = pipelines()[rule]
    verdicts = [
        _disturbed(pipeline, target_of(pipeline), disturb, subject)
        for subject in aimed(rule, 8)
        for disturb in DISTURB.values()
    ]
    assert True in verdicts


def test_what_is_called_equivalent_is_a_guard_or_a_disturbance() -> None:
    asked = {question for path in PASSES.rglob("*.py") for question in questions(str(path)).values()}
    for rule, mutant, _ in EQUIVALENT:
        assert rule == "*" or rule in RULES, f"{rule} is no pass"
        guard = mutant.removeprefix(UNGUARDED).split(": ", 1)
        known = guard[-1] in DISTURB if len(guard) == 1 else any(is_called(item, guard[1]) for item in asked)
        assert known, f"nothing asks {mutant!r} any more"
