"""One integer makes one graph: a theme (the pass that it is aimed at), parts, surroundings, bends and a wrapping.

`generate(seed, theme)` is what the property tests and benchmarks/random_graphs.py call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from onnx import ModelProto

from graphopt.manager import registry
from property import blocks, splice, wrap
from property.draft import Draft, names_of
from property.pool import Pool


@dataclass(frozen=True)
class Plan:
    """How a graph was made: for the report of a failure."""

    seed: int
    theme: str
    parts: tuple[str, ...]
    steps: tuple[str, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}, theme {self.theme}: {' + '.join(self.parts)}; {', '.join(self.steps) or 'as they are'}"


def themes() -> list[str]:
    """What graphs can be aimed at: every registered pass that has something to aim with."""
    return sorted(name for name in registry.passes() if name in splice.seeds())


def generate(seed: int, theme: str | None = None) -> tuple[ModelProto, Plan]:
    """The graph of a seed; the theme is the seed's own choice when not given."""
    random = np.random.default_rng(seed)
    names = [*themes(), *["soup"] * max(1, len(themes()) // 6)]
    theme = theme if theme is not None else names[seed % len(names)]
    steps: list[str] = []
    parts: list[str] = []
    draft = _soup(random, int(random.integers(3, 14))) if theme == "soup" else _aimed(random, theme, parts)
    if theme != "soup" and random.random() < 0.4:
        pool = Pool.around(draft, random)
        blocks.grow(pool, int(random.integers(1, 7)))
        draft = pool
        steps.append("grow")
    _some(random, draft, steps, splice.SURROUND, [0.35, 0.35, 0.2, 0.1])
    _some(random, draft, steps, splice.BEND, [0.5, 0.35, 0.1, 0.05])
    _some(random, draft, steps, splice.SAY, [0.5, 0.3, 0.2])
    if random.random() < 0.25:
        wrapper = (wrap.into_if, wrap.into_loop, wrap.into_function)[int(random.integers(3))]
        wrapper(random, draft)
        steps.append(wrapper.__name__)
    read = {name for node in draft.nodes for name in names_of(node)}
    draft.inputs = {name: info for name, info in draft.inputs.items() if name in read or random.random() < 0.2}
    return draft.model(), Plan(seed, theme, tuple(parts), tuple(steps))


def _soup(random: Generator, count: int) -> Draft:
    """Random blocks only."""
    pool = Pool(random=random)
    pool.given(pool.shape(int(random.choice([2, 3, 4]))))
    blocks.grow(pool, count)
    return pool


def _aimed(random: Generator, theme: str, titles: list[str]) -> Draft:
    """One to four golden graphs in one: the first two of the pass aimed at, the others of any."""
    names = themes()
    count = int(random.choice([1, 2, 3, 4], p=[0.25, 0.4, 0.25, 0.1]))
    others = [str(name) for name in random.choice(names, 4)]
    chosen = [_part(random, theme if index < 2 else others[index]) for index in range(count)]
    titles += [title for _, title in chosen]
    return splice.join(random, [draft for draft, _ in chosen])


def _part(random: Generator, theme: str) -> tuple[Draft, str]:
    rows = splice.seeds()[theme]
    positive = [seed for seed in rows if seed.positive]
    rows = tuple(positive) if positive and random.random() < 0.85 else rows
    seed = rows[int(random.integers(len(rows)))]
    return splice.draft_of(seed), f"{seed.rule}: {seed.title}"


def _some(random: Generator, draft: Draft, steps: list[str], table: tuple, weights: list[float]) -> None:
    for _ in range(int(random.choice(len(weights), p=weights))):
        step = table[int(random.integers(len(table)))]
        step(random, draft)
        steps.append(step.__name__)
