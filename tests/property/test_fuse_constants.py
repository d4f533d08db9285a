"""Constants around linear ops: random ops, groups and broadcasts (odd ones on purpose), before and after folding."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.ir.sites import all_nodes, name_nodes
from graphopt.ir.text import from_text
from graphopt.manager.context import Context
from graphopt.manager.pipeline import parse
from graphopt.manager.runner import run

TOLERANCE = 1e-4
"""Largest difference relative to the output's maximum; a chain of folded factors cancels some digits."""
PASSES = (
    "fuse-conv-bn,fuse-gemm-bn,fuse-matmul-bn,fuse-conv-scale,fuse-conv-bias,fuse-matmul-scale,fuse-scale-conv,"
    "fuse-scale-matmul,fuse-scale-shift-conv,fuse-matmul-add,fuse-gemm-add,fuse-pad-conv,fold-matmul-chain"
)


class Draft:
    """The text of a model while it grows: nodes in order, constants, and the current value with its dims."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.constants: list[str] = []
        self.value, self.dims = "x", [2, 4, 5, 5]

    def constant(self, dims: list[int], hint: str = "c") -> str:
        name = f"{hint}{len(self.constants)}"
        self.constants.append(f"float[{', '.join(map(str, dims))}] {name}".replace("[]", ""))
        return name

    def node(self, text: str) -> None:
        self.value = f"v{len(self.lines)}"
        self.lines.append(f"{self.value} = {text}")

    def affine(self) -> None:
        """An Add, Sub, Mul or Div by a constant that broadcasts to the value, over any of its axes."""
        op = self.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
        rank = self.draw(st.integers(0, len(self.dims)))
        tail = self.dims[len(self.dims) - rank :]
        kept = self.draw(st.integers(-1, rank - 1)) if self.draw(st.booleans()) else (1 - (len(self.dims) - rank))
        dims = [dim if at == kept else 1 for at, dim in enumerate(tail)]
        c = self.constant(dims, "pos_c")
        swapped = op != "Div" and self.draw(st.booleans())
        self.node(f"{op} ({c}, {self.value})" if swapped else f"{op} ({self.value}, {c})")

    def batch_norm(self) -> None:
        channels = [self.dims[1]]
        names = ", ".join(self.constant(channels, hint) for hint in ("scale", "shift", "mean", "var"))
        self.node(f"BatchNormalization ({self.value}, {names})")

    def linear(self) -> None:
        rank = len(self.dims)
        op = self.draw(st.sampled_from(["Conv", "ConvTranspose", "MatMul"])) if rank == 4 else "Gemm"
        getattr(self, f"_{op.lower()}")()

    def _conv(self) -> None:
        group, out = self.draw(st.sampled_from([1, 2])), self.draw(st.sampled_from([2, 4]))
        pad = self.draw(st.integers(0, 1))
        w = self.constant([out, self.dims[1] // group, 3, 3], "w")
        b = f", {self.constant([out], 'b')}" if self.draw(st.booleans()) else ""
        if self.draw(st.booleans()):
            pads = f"p{len(self.constants)}"
            self.constants.append(f"int64[8] {pads} = {{0, 0, 1, 0, 0, 0, 0, 1}}")
            self.node(f"Pad ({self.value}, {pads})")
            self.dims = [*self.dims[:2], self.dims[2] + 1, self.dims[3] + 1]
        self.node(f"Conv <group = {group}, pads = [{pad}, {pad}, {pad}, {pad}]> ({self.value}, {w}{b})")
        self.dims = [self.dims[0], out, self.dims[2] - 2 + 2 * pad, self.dims[3] - 2 + 2 * pad]

    def _convtranspose(self) -> None:
        group = self.draw(st.sampled_from([1, 2]))
        w = self.constant([self.dims[1], 2, 2, 2], "w")
        self.node(f"ConvTranspose <group = {group}> ({self.value}, {w})")
        self.dims = [self.dims[0], 2 * group, self.dims[2] + 1, self.dims[3] + 1]

    def _matmul(self) -> None:
        size = self.draw(st.integers(2, 5))
        if self.draw(st.booleans()):
            self.node(f"MatMul ({self.value}, {self.constant([self.dims[-1], size], 'w')})")
            self.dims = [*self.dims[:-1], size]
        else:
            self.node(f"MatMul ({self.constant([size, self.dims[-2]], 'w')}, {self.value})")
            self.dims = [*self.dims[:-2], size, self.dims[-1]]

    def _gemm(self) -> None:
        size, turned = self.draw(st.integers(2, 5)), self.draw(st.integers(0, 1))
        w = self.constant([size, self.dims[1]] if turned else [self.dims[1], size], "w")
        b = f", {self.constant([size], 'b')}" if self.draw(st.booleans()) else ""
        self.node(f"Gemm <transB = {turned}, alpha = 0.5, beta = 2.0> ({self.value}, {w}{b})")
        self.dims = [self.dims[0], size]


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_constants_around_linear_ops(data: Any, run_model: Any, difference: Any) -> None:
    draft = Draft(data.draw)
    if data.draw(st.booleans()):
        draft.dims = [3, 4]
    shape = draft.dims
    for _ in range(data.draw(st.integers(1, 2))):
        for _ in range(data.draw(st.integers(0, 2))):
            draft.affine()
        if min(draft.dims[2:], default=3) < 3:
            break
        draft.linear()
        for _ in range(data.draw(st.integers(0, 2))):
            draft.affine()
        if data.draw(st.booleans()):
            draft.batch_norm()
    draft.node(f"Identity ({draft.value})")
    text = (
        f'<ir_version: 10, opset_import: ["": 21]> g (float{shape} x) => (float{draft.dims} {draft.value}) '
        f"<{', '.join(draft.constants)}> {{ {' '.join(draft.lines)} }}"
    )
    model = from_text(text.replace("<> {", "{"))
    name_nodes(model)
    feeds = {"x": np.random.default_rng(zlib.crc32(text.encode())).standard_normal(shape).astype(np.float32)}
    want = run_model(model, feeds)[draft.value]
    before = len(list(all_nodes(model)))
    run(model, parse(f"fix({PASSES})"), Context(model))
    assert len(list(all_nodes(model))) <= before
    assert difference(want, run_model(model, feeds)[draft.value]) <= TOLERANCE, text
