"""A small vocabulary for building loop nests in TIR: loops, vector loads and stores, register accumulators, scratch.

Rules say what nest they make; how a node of TVM's IR is spelled lives here. Not here: anything about an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tvm
from tvm import s_tir, tirx
from tvm.tirx import ForKind
from tvm_ffi import structural_equal, structural_map

Expr: TypeAlias = Any  # a TIR expression or a Python int
Stmt: TypeAlias = Any
Buffer: TypeAlias = Any


def block(*stmts: Stmt) -> Stmt:
    """One statement after the other."""
    return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(list(stmts))


def loop(extent: Expr, body: Callable[[Expr], Stmt], name: str = "i", kind: ForKind = ForKind.SERIAL) -> Stmt:
    """`for name in range(extent): body(name)`; a loop of one iteration is its body."""
    if isinstance(extent, int) and extent == 1:
        return body(0)
    dtype = "int32" if isinstance(extent, int) else str(extent.ty.dtype)
    var = tirx.Var(name, dtype)
    return tirx.For(var, tirx.const(0, dtype), tirx.convert(extent), kind, body(var))


def between(low: Expr, high: Expr, body: Callable[[Expr], Stmt], name: str = "i") -> Stmt:
    """`for name in range(low, high): body(name)`."""
    return loop(high - low, lambda i: body(low + i), name)


def split_range(
    low: Expr, high: Expr, full: Expr, body: Callable[[Expr], Stmt], rest: Callable[[], Stmt] | None, name: str
) -> Stmt:
    """`body` for indices below `full` in [low, high), then `rest` for the index `full`, where there is one."""
    if rest is None:
        return between(low, high, body, name)
    if isinstance(low, int) and isinstance(high, int):
        parts = [between(low, min(high, full), body, name)] if low < min(high, full) else []
        return block(*parts, *([rest()] if high > full else []))
    none = isinstance(full, int) and full == 0
    parts = [] if none else [between(low, tirx.min(high, full), body, name)]
    return block(*parts, when(high > full, rest()))


def named(value: Expr, body: Callable[[Expr], Stmt], name: str) -> Stmt:
    """`name = value`, then the body: what is computed once is written once; numbers and variables are as they are."""
    if isinstance(value, int | tirx.IntImm | tvm.ir.Var):
        return body(value)
    var = tirx.Var(name, str(value.ty.dtype))
    return block(tirx.Bind(var, value), body(var))


def parallel(extent: Expr, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop whose iterations are divided among the threads in equal runs."""
    return loop(extent, body, "task", ForKind.PARALLEL)


def serial(stmt: Stmt) -> Stmt:
    """The statement with its parallel loops run by one thread."""

    def one_by_one(node: Any) -> Any:
        if node.kind != ForKind.PARALLEL:
            return node
        return tirx.For(node.loop_var, node.min, node.extent, ForKind.SERIAL, node.body)

    return structural_map(stmt, [(tirx.For, one_by_one)])


def vectorized(lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop that becomes vector instructions of so many lanes."""
    return loop(lanes, body, "lane", ForKind.VECTORIZED)


def when(condition: Expr, then: Stmt, otherwise: Stmt | None = None) -> Stmt:
    """If-then-else; a condition that is known in Python is decided here."""
    if isinstance(condition, bool):
        return then if condition else otherwise
    return tirx.IfThenElse(condition, then, otherwise)


def both(left: Expr, right: Expr) -> Expr:
    """The conjunction of two conditions, each of which may be known in Python."""
    if isinstance(left, bool):
        return right if left else False
    if isinstance(right, bool):
        return left if right else False
    return tirx.And(left, right)


def load(buffer: Buffer, *indices: Expr, lanes: int = 1) -> Expr:
    """One element, or `lanes` elements along the last axis."""
    return tirx.BufferLoad(buffer, _spread(indices, lanes))


def store(buffer: Buffer, value: Expr, *indices: Expr, lanes: int = 1) -> Stmt:
    """Store one element, or `lanes` elements along the last axis."""
    return tirx.BufferStore(buffer, value, _spread(indices, lanes))


def splat(value: Expr, lanes: int) -> Expr:
    """The value in all lanes."""
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def number(value: float, dtype: str, lanes: int = 1) -> Expr:
    """A constant of a scalar type, in all lanes."""
    return splat(tirx.const(value, dtype), lanes)


def fma(acc: Buffer, left: Expr, right: Expr, lanes: int) -> Stmt:
    """`acc += left * right` on a register; LLVM contracts it to one instruction."""
    return store(acc, load(acc, 0, lanes=lanes) + left * right, 0, lanes=lanes)


def register(name: str, lanes: int, dtype: str) -> Buffer:
    """A buffer of one vector. With constant indices only, LLVM keeps it in a register.

    TVM puts small buffers of scope "global" on the stack; those of scope "local" come from the workspace pool, and LLVM
    has to write them back.
    """
    return tirx.decl_buffer((lanes,), dtype, name, scope="global")


def scratch(name: str, shape: Sequence[int], dtype: str) -> Buffer:
    """Memory of one task."""
    return tirx.decl_buffer(tuple(shape), dtype, name, scope="global")


def allocate(buffers: Sequence[Buffer], body: Stmt) -> Stmt:
    """The body with these buffers allocated before it."""
    return block(*(tirx.AllocBuffer(buffer) for buffer in buffers), body)


def loads(value: Expr) -> list[Any]:
    """All loads of an expression."""
    found: list[Any] = []

    def keep(node: Any) -> Any:
        found.append(node)
        return node

    structural_map(value, [(tvm.ir.TensorLoad, keep)])
    return found


def as_index(index: Expr, var: Any) -> Expr:
    """An index with the type of the variable that it replaces."""
    return tirx.convert(index).astype(var.ty.dtype) if not isinstance(index, int) else tirx.const(index, var.ty.dtype)


def shape_of(buffer: Buffer) -> tuple[Any, ...]:
    """A buffer's shape: Python ints, and expressions where it is dynamic."""
    return tuple(static(dim) for dim in buffer.ty.shape)


def static(dim: Expr) -> Expr:
    """A Python int if the dim is known, else the expression."""
    return int(dim) if isinstance(dim, int | tirx.IntImm) else dim


def is_one(dim: Expr) -> bool:
    """Whether a dim is known to be 1."""
    return isinstance(dim, int) and dim == 1


def same(left: Expr, right: Expr) -> bool:
    """Whether two dims are known to be equal."""
    if isinstance(left, int) or isinstance(right, int):
        return isinstance(left, int) and isinstance(right, int) and left == right
    return bool(structural_equal(left, right))


def function(like: Any, body: Stmt) -> Any:
    """The body as a PrimFunc with the parameters and attributes of another; Relax asks for a root block around it."""
    root = s_tir.SBlock([], [], [], "root", body)
    return like.with_body(s_tir.SBlockRealize([], True, root)).with_attr("tirx.noalias", True)


def _spread(indices: Sequence[Expr], lanes: int) -> list[Expr]:
    """Indices whose last one is that of the first of so many lanes."""
    if lanes == 1:
        return list(indices)
    return [*indices[:-1], tirx.Ramp(tirx.convert(indices[-1]), 1, lanes)]
