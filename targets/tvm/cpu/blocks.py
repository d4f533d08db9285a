"""The blocks of a TIR function as data: axes, what is stored, how a reduction starts and combines.

Not here: the loop nests that rules make of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, sym, tirx
from tvm_ffi import structural_map

from graphopt.targets.tvm.cpu.inlining import NotTaken
from graphopt.targets.tvm.cpu.loops import Buffer, Expr, as_index, is_one, loads, shape_of, static

_COMBINES = {tirx.Add: lambda a, b: a + b, tirx.Mul: lambda a, b: a * b, tirx.Max: tirx.max, tirx.Min: tirx.min}
# Assumed length of a dynamic axis.
_LONG = 64
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)


@dataclass(frozen=True, eq=False)
class Block:
    """One block.

    Attributes:
        spatial, reduced: (variable, extent) per axis; an extent is an int or, where dynamic, an expression.
        out: the buffer written, at `indices` in terms of the spatial axes.
        value: what is stored; for a reduction, in terms of a load of `out`.
        init: where a reduction starts; None otherwise.
        node: the block in TVM's IR.
    """

    spatial: tuple[tuple[Any, Any], ...]
    reduced: tuple[tuple[Any, Any], ...]
    out: Buffer
    indices: tuple[Any, ...]
    value: Expr
    init: Expr | None
    node: Any

    def work(self) -> int:
        """Elements visited; a dynamic axis counts as a long one."""
        extents = [extent for _, extent in (*self.spatial, *self.reduced)]
        return math.prod(extent if isinstance(extent, int) else _LONG for extent in extents)

    def reduces_last(self) -> bool:
        """Whether a reduction runs along the last axis of what it reads, so that vectors run along it too.

        Where the results run along that axis as well, one by one, vectors are of results.
        """
        if not self.reduced or self._combiner() is None:
            return False
        last = self.reduced[-1][0]
        reads = [node for node in loads(self.value) if not node.source.same_as(self.out) and len(node.indices)]
        along = [node.indices[-1] for node in reads if _uses(node.indices[-1], last)]
        return bool(along) and not all(_steps_by_one(index, self.spatial[-1][0]) for index in along)

    def keeps_axis(self, axis: int, inner: Sequence[Buffer]) -> bool:
        """Whether the block writes, and reads of the buffers `inner`, only at its own index along an axis."""
        var = self.spatial[axis][0]
        if len(self.indices) <= axis or not self.indices[axis].same_as(var):
            return False
        for node in loads(self.value):
            if any(node.source.same_as(buffer) for buffer in inner):
                if len(node.indices) <= axis:
                    return False
                one = is_one(shape_of(node.source)[axis])
                if not node.indices[axis].same_as(var) and not one:
                    return False
                if one and not is_one(self.spatial[axis][1]):
                    return False
        return True

    def breaks(self) -> list[int]:
        """Places on the last spatial axis where a comparison of it with a constant changes."""
        var, extent = self.spatial[-1]
        found: set[int] = set()
        if not isinstance(extent, int):
            return []

        def compare(node: Any) -> Any:
            for left, right, plus in ((node.a, node.b, 0), (node.b, node.a, 1)):
                if left.same_as(var) and isinstance(right, tirx.IntImm):
                    strict = isinstance(node, tirx.LT | tirx.GE) == (plus == 0)
                    found.add(int(right) + (0 if strict else 1))
            return node

        structural_map(self.value, [(kind, compare) for kind in _COMPARISONS])
        return sorted(at for at in found if 0 < at < extent)

    def within(self, segment: tuple[int, Expr]) -> Expr:
        """The value, conditions decided for indices of the last spatial axis in [low, high)."""
        if not self.breaks():
            return self.value
        analyzer = sym.Analyzer()
        var, _ = self.spatial[-1]
        analyzer.bind(var, tvm.ir.Range(segment[0], segment[1]))
        return analyzer.simplify(self.value)

    def evaluate(
        self, value: Expr, at: Sequence[Expr], r: Sequence[Expr], acc: Expr | None, place: Callable[[Any], Any]
    ) -> Expr:
        """The value at spatial indices `at` and reduction indices `r`, loads of `out` being `acc`."""
        mapping = {var: as_index(index, var) for (var, _), index in zip(self.spatial, at, strict=True)}
        if r:
            mapping |= {var: as_index(index, var) for (var, _), index in zip(self.reduced, r, strict=True)}

        def load(node: Any) -> Any:
            return acc if acc is not None and node.source.same_as(self.out) else place(node)

        return structural_map(value, [(tvm.ir.Var, lambda var: mapping.get(var, var)), (tvm.ir.TensorLoad, load)])

    def place(self, at: Sequence[Expr]) -> list[Expr]:
        """The indices written for spatial indices `at`."""
        mapping = {var: as_index(index, var) for (var, _), index in zip(self.spatial, at, strict=True)}
        return [structural_map(index, [(tvm.ir.Var, lambda var: mapping.get(var, var))]) for index in self.indices]

    def combine(self, left: Expr, right: Expr) -> Expr:
        """Two partial results of a reduction as one."""
        combiner = self._combiner()
        assert combiner is not None
        return combiner(left, right)

    def _combiner(self) -> Callable[[Expr, Expr], Expr] | None:
        """The operator of `out = out op x`."""
        if type(self.value) not in _COMBINES:
            return None
        sides = (self.value.a, self.value.b)
        is_out = [isinstance(side, tvm.ir.TensorLoad) and side.source.same_as(self.out) for side in sides]
        return _COMBINES[type(self.value)] if any(is_out) else None


def repeats_nothing_costly(block: Any, users: Sequence[Any]) -> bool:
    """Whether inlining an elementwise block repeats no costly work."""
    alone = len(users) == 1 and _elements(users[0]) <= _elements(block)
    return alone or _is_cheap(block.body.value)


def read_blocks(function: Any) -> list[Block]:
    """The blocks of a function in order.

    Raises:
        NotTaken: something else is in it.
    """
    root = function.body.block
    body = root.body
    statements = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    return [_read(statement) for statement in statements]


def _read(statement: Any) -> Block:
    while isinstance(statement, tirx.For):
        if statement.kind != tirx.ForKind.SERIAL:
            raise NotTaken("a loop is scheduled already")
        statement = statement.body
    if not isinstance(statement, s_tir.SBlockRealize) or not isinstance(statement.block.body, tirx.BufferStore):
        raise NotTaken("a block is more than one store")
    node = statement.block
    if not (isinstance(statement.predicate, tirx.IntImm) and int(statement.predicate)):
        raise NotTaken("a block has a predicate")
    spatial: list[tuple[Any, Any]] = []
    reduced: list[tuple[Any, Any]] = []
    for axis in node.iter_vars:
        if axis.iter_type not in (0, 2):
            raise NotTaken("an opaque axis")
        (reduced if axis.iter_type == 2 else spatial).append((axis.var, static(axis.dom.extent)))
    if not spatial:
        raise NotTaken("a scalar result")
    init = None
    if reduced:
        if not isinstance(node.init, tirx.BufferStore):
            raise NotTaken("a reduction without a start")
        init = node.init.value
    return Block(
        tuple(spatial), tuple(reduced), node.body.buffer, tuple(node.body.indices), node.body.value, init, node
    )


def _is_cheap(value: Expr) -> bool:
    cheap = True

    def costly(node: Any) -> Any:
        nonlocal cheap
        if isinstance(node, tirx.Div) or getattr(node.op, "name", "") not in ("tirx.if_then_else", "tirx.likely"):
            cheap = False
        return node

    structural_map(value, [(tvm.ir.Call, costly), (tirx.Div, costly)])
    return cheap


def _elements(node: Any) -> int:
    return math.prod(int(axis.dom.extent) for axis in node.iter_vars if isinstance(axis.dom.extent, tirx.IntImm))


def _steps_by_one(index: Expr, var: Any) -> bool:
    """Whether an index grows by one as a variable does."""
    if not _uses(index, var):
        return False
    following = structural_map(index, [(tvm.ir.Var, lambda v: v + 1 if v.same_as(var) else v)])
    step = sym.Analyzer().simplify(following - index)
    return isinstance(step, tirx.IntImm) and int(step) == 1


def _uses(expression: Expr, var: Any) -> bool:
    found = False

    def check(node: Any) -> Any:
        nonlocal found
        found = found or node.same_as(var)
        return node

    structural_map(expression, [(tvm.ir.Var, check)])
    return found
