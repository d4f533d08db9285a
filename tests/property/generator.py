"""One integer makes one graph: a theme (the pass that it is aimed at), parts, surroundings, bends and a wrapping.

`generate(seed, theme)` is what the property tests and benchmarks/random_graphs.py call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from onnx import ModelProto
from property import bend, blocks, blocks_linear, blocks_math, splice, wrap
from property.draft import OPSET, Draft, names_of
from property.harness import declare_outputs
from property.pool import Pool

from graphopt.manager import registry

AIMED: dict[str, blocks.Block] = {
    "bind-dims": blocks.symbolic,
    "cse": blocks_math.again,
    "dce": blocks.dead,
    "fold-constants": blocks_linear.folded,
    "fuse-attention": blocks_linear.attention,
    "strip-debug-metadata": blocks.exported,
}
"""Blocks for passes that golden files do not aim at, or not enough; they are appended to random blocks."""


TAME = frozenset(
    {
        "grow",
        "computed_input",
        "extra_output",
        "extra_user",
        "output_through_op",
        "bend_constant",
        "swap_operands",
        "constant_node",
        "overridable",
        "fed_constant",
    }
)
"""Steps that change no shape."""


@dataclass(frozen=True)
class Plan:
    """How a graph was made: for the report of a failure."""

    seed: int
    theme: str
    parts: tuple[str, ...]
    steps: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, theme {self.theme}: {' + '.join(self.parts)}; {', '.join(self.steps) or 'as they are'}"
        )


def themes() -> list[str]:
    """What graphs can be aimed at: every registered pass that has something to aim with."""
    return sorted(name for name in registry.passes() if name in AIMED or name in splice.seeds())


def generate(seed: int, theme: str | None = None) -> tuple[ModelProto, Plan]:
    """The graph of a seed; the theme is the seed's own choice when not given."""
    random = np.random.default_rng(seed)
    names = [*themes(), *["soup"] * max(1, len(themes()) // 6)]
    theme = theme if theme is not None else names[seed % len(names)]
    steps: list[str] = []
    parts: list[str] = []
    if theme in splice.seeds() and (theme not in AIMED or random.random() < 0.5):
        draft = _aimed(random, theme, parts)
        if random.random() < 0.4 and draft.imports[""] == OPSET:
            draft = Pool.around(draft, random)
            blocks.grow(draft, int(random.integers(1, 7)))
            steps.append("grow")
    else:
        draft = _soup(random, int(random.integers(3, 14)), AIMED.get(theme))
    _some(random, draft, steps, bend.SURROUND, [0.35, 0.35, 0.2, 0.1])
    _some(random, draft, steps, bend.BEND, [0.6, 0.3, 0.07, 0.03])
    _some(random, draft, steps, bend.SAY, [0.5, 0.3, 0.2])
    if not set(steps) <= TAME:
        bend.forget_body_shapes(draft)
    if random.random() < 0.25:
        wrapper = (wrap.into_if, wrap.into_loop, wrap.into_function)[int(random.integers(3))]
        wrapper(random, draft)
        steps.append(wrapper.__name__)
    read = {name for node in draft.nodes for name in names_of(node)}
    draft.inputs = {
        name: info
        for name, info in draft.inputs.items()
        if name in read or name in draft.outputs or random.random() < 0.2
    }
    proto = draft.model()
    if random.random() < 0.8:
        declare_outputs(proto)
    return proto, Plan(seed, theme, tuple(parts), tuple(steps))


def _soup(random: Generator, count: int, block: blocks.Block | None) -> Draft:
    """Random blocks only, and two of the one that a pass is aimed at."""
    pool = Pool(random=random)
    pool.given(pool.shape(int(random.choice([2, 3, 4]))))
    blocks.grow(pool, count, [block] * 2 if block is not None else [])
    return pool


def _aimed(random: Generator, theme: str, titles: list[str]) -> Draft:
    """One to four golden graphs in one: the first two of the pass aimed at, the others of any."""
    names = themes()
    count = int(random.choice([1, 2, 3, 4], p=[0.1, 0.45, 0.3, 0.15]))
    others = [str(name) for name in random.choice([name for name in names if name in splice.seeds()], 4)]
    chosen = [_part(random, theme if index < 2 else others[index]) for index in range(count)]
    titles += [title for _, title in chosen]
    return splice.join(random, [draft for draft, _ in chosen])


def _part(random: Generator, theme: str) -> tuple[Draft, str]:
    rows = splice.seeds()[theme]
    positive = [seed for seed in rows if seed.positive]
    rows = tuple(positive) if positive and random.random() < 0.9 else rows
    seed = rows[int(random.integers(len(rows)))]
    return splice.draft_of(seed), f"{seed.rule}: {seed.title}"


def _some(random: Generator, draft: Draft, steps: list[str], table: tuple, weights: list[float]) -> None:
    for _ in range(int(random.choice(len(weights), p=weights))):
        step = table[int(random.integers(len(table)))]
        step(random, draft)
        steps.append(step.__name__)
