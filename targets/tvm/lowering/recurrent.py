"""Rules of LSTM, GRU and RNN: unrolled over a sequence of known length, the input products of all steps at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.targets.tvm.lowering.elementwise import clipped, hard_sigmoid_of
from graphopt.targets.tvm.lowering.table import lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.targets.tvm.lowering.context import Lowering
    from graphopt.targets.tvm.lowering.view import View

    Expr = Any

MAX_STEPS = 64
"""Longer sequences are not unrolled: the code grows with the steps."""
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_ACTIVATIONS = frozenset({"Sigmoid", "Tanh", "Relu", "HardSigmoid"})


def _check(n: View) -> str | None:
    dims = n.dims(0)
    steps = dims[1 if n.attr("layout", 0) else 0] if dims is not None else None
    if not isinstance(steps, int):
        return f"{n.op} over a sequence of dynamic length has no lowering to TVM; bind it with --dim or --input-shapes"
    if steps > MAX_STEPS:
        return f"{n.op} over {steps} steps has no lowering to TVM; up to {MAX_STEPS} are unrolled"
    if n.has(4):
        return f"{n.op} with sequence_lens has no lowering to TVM"
    if n.attr("layout", 0) or n.attr("clip") is not None or n.attr("input_forget", 0):
        return f"{n.op} with layout=1, clip or input_forget has no lowering to TVM"
    if any(name not in _ACTIVATIONS for name in n.attr("activations", ())):
        return f"{n.op} with the activations {', '.join(n.attr('activations'))} has no lowering to TVM"
    if n.attr("activation_alpha") or n.attr("activation_beta"):
        return f"{n.op} with parameters of activations has no lowering to TVM"
    return None


@lowers("LSTM", "GRU", "RNN", dtypes=frozenset({"float32", "float64"}), check=_check)
def recurrent(c: Lowering, n: View) -> list[Expr | None]:
    """Outputs Y [steps, directions, batch, hidden], Y_h and (LSTM) Y_c [directions, batch, hidden]."""
    kind = n.attr("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[kind]
    runs = [_Direction(c, n, index, back).run() for index, back in enumerate(backwards)]
    steps = [_stack(c, [run[0][t] for run in runs]) for t in range(len(runs[0][0]))]
    outs: list[Expr | None] = [_stack(c, steps) if n.wants(0) else None]
    outs.append(_stack(c, [run[1] for run in runs]) if n.wants(1) else None)
    if n.op == "LSTM":
        outs.append(_stack(c, [run[2] for run in runs]) if n.wants(2) else None)
    return outs[: len(n.node.outputs)]


def _stack(c: Lowering, parts: list[Expr]) -> Expr:
    """Along a new first axis; TVM's ConvertLayout fails on modules with relax.op.stack."""
    wide = [c.emit(c.op.expand_dims(part, [0])) for part in parts]
    return wide[0] if len(wide) == 1 else c.emit(c.op.concat(wide, axis=0))


class _Direction:
    """One direction of one layer; shapes as in ONNX: X [T, B, I], W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H]."""

    def __init__(self, c: Lowering, n: View, index: int, back: bool) -> None:
        self.c, self.n, self.back = c, n, back
        dims = n.dims(0)
        assert dims is not None and isinstance(dims[0], int)
        self.steps, self.gates = dims[0], _GATES[n.op]
        self.batch = c.shape(n.value(0))[1]
        self.hidden = int(n.attr("hidden_size"))
        self.index = index
        names = n.attr("activations", ()) or _DEFAULTS[n.op] * (index + 1)
        count = len(_DEFAULTS[n.op])
        self.activations = [self._activation(name) for name in names[index * count : (index + 1) * count]]

    def _activation(self, name: str) -> Callable[[Expr], Expr]:
        op = self.c.op
        if name == "HardSigmoid":
            return lambda x: hard_sigmoid_of(self.c, x, 0.2, 0.5, self.n.dtype(0))
        return {
            "Sigmoid": op.sigmoid,
            "Tanh": op.tanh,
            "Relu": lambda x: clipped(self.c, x, 0, None, self.n.dtype(0)),
        }[name]

    def _part(self, operand: int, start: int, size: int) -> Expr:
        """Rows [start, start + size) of this direction's slice of W, R, B or P, or of an initial state."""
        c, index = self.c, self.index
        expr = c.input(self.n, operand)
        if c.is_const(expr):
            return c.const(expr.value.numpy()[index, start : start + size])

        def compute(a: Any) -> Any:
            shape = [c.tirx.IntImm("int64", size), *a.shape[2:]]
            return c.te_lang.compute(shape, lambda *i: a(index, i[0] + start, *i[1:]), name="rows")

        return c.te(compute, expr, name="rows")

    def _state(self, operand: int) -> Expr:
        c = self.c
        shape = [self.batch, self.hidden]
        if not self.n.has(operand):
            return c.emit(c.op.zeros(c.relax.ShapeExpr([c.tirx.IntImm("int64", d) if isinstance(d, int) else d
                                                        for d in shape]), self.n.dtype(0)))  # fmt: skip
        index = self.index
        return c.te(lambda a: c.te_lang.compute(a.shape[1:], lambda *i: a(index, *i), name="state"),
                    c.input(self.n, operand), name="state")  # fmt: skip

    def _transposed(self, operand: int, start: int, size: int) -> Expr:
        c, part = self.c, self._part(operand, start, size)
        if c.is_const(part):
            return c.const(part.value.numpy().T)
        return c.emit(c.op.permute_dims(part, [1, 0]))

    def run(self) -> tuple[list[Expr], Expr, Expr | None]:
        """Hidden states by step in the order of the input, the last hidden state, and the last cell state."""
        c, n, rows = self.c, self.n, self.gates * self.hidden
        weights = self._transposed(1, 0, rows)
        whole = c.emit(c.op.matmul(c.input(n, 0), weights))
        if n.has(3):
            whole = c.emit(c.op.add(whole, self._part(3, 0, rows)))
        state = self._state(5)
        cell = self._state(6) if n.op == "LSTM" else None
        outs: list[Expr] = [None] * self.steps
        for t in reversed(range(self.steps)) if self.back else range(self.steps):
            x = self._step_input(whole, t)
            state, cell = self._step(x, state, cell)
            outs[t] = state
        return outs, state, cell

    def _step_input(self, whole: Expr, t: int) -> Expr:
        c = self.c
        return c.te(lambda a: c.te_lang.compute(a.shape[1:], lambda *i: a(t, *i), name="step"), whole, name="step")

    def _recurrence(self, state: Expr, first: int, count: int) -> Expr:
        """state R^T + Rb of some gates."""
        c, size = self.c, count * self.hidden
        out = c.emit(c.op.matmul(state, self._transposed(2, first * self.hidden, size)))
        if not self.n.has(3):
            return out
        return c.emit(c.op.add(out, self._part(3, (self.gates + first) * self.hidden, size)))

    def _gate(self, x: Expr, index: int) -> Expr:
        c, start = self.c, index * self.hidden
        size = c.tirx.IntImm("int64", self.hidden)

        def compute(a: Any) -> Any:
            return c.te_lang.compute([a.shape[0], size], lambda i, j: a(i, j + start), name="gate")

        return c.te(compute, x, name="gate")

    def _step(self, x: Expr, state: Expr, cell: Expr | None) -> tuple[Expr, Expr | None]:
        step = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.n.op]
        return step(x, state, cell)

    def _rnn(self, x: Expr, state: Expr, cell: Expr | None) -> tuple[Expr, Expr | None]:
        c = self.c
        return c.emit(self.activations[0](c.op.add(x, self._recurrence(state, 0, 1)))), None

    def _finite(self, gates: Expr) -> Expr:
        """Between the least and the largest float, NaN to the largest, as ONNX Runtime clips the gates."""
        c, dtype = self.c, self.n.dtype(0)
        import numpy as np

        largest = float(np.finfo(dtype).max)
        # The number stands second: TVM's min(a, b) is `a < b ? a : b`.
        return c.op.maximum(c.op.minimum(gates, c.const(largest, dtype)), c.const(-largest, dtype))

    def _lstm(self, x: Expr, state: Expr, cell: Expr | None) -> tuple[Expr, Expr | None]:
        """Gates i, o, f, c."""
        c, (gate, squash, out_squash) = self.c, self.activations
        all_gates = c.emit(self._finite(c.op.add(x, self._recurrence(state, 0, 4))))
        i, o, f, candidate = (self._gate(all_gates, index) for index in range(4))
        if self.n.has(7):
            peeps = [self._part(7, k * self.hidden, self.hidden) for k in range(3)]
            i, f = c.op.add(i, c.op.multiply(peeps[0], cell)), c.op.add(f, c.op.multiply(peeps[2], cell))
        kept = c.op.multiply(gate(f), cell)
        cell = c.emit(c.op.add(kept, c.op.multiply(gate(i), squash(candidate))))
        if self.n.has(7):
            o = c.op.add(o, c.op.multiply(peeps[1], cell))
        return c.emit(c.op.multiply(gate(o), out_squash(cell))), cell

    def _gru(self, x: Expr, state: Expr, cell: Expr | None) -> tuple[Expr, Expr | None]:
        """Gates z, r, h."""
        c, (gate, squash) = self.c, self.activations
        dtype = self.n.dtype(0)
        both = self._recurrence(state, 0, 2)
        z = c.emit(gate(c.op.add(self._gate(x, 0), self._gate(both, 0))))
        r = c.emit(gate(c.op.add(self._gate(x, 1), self._gate(both, 1))))
        if self.n.attr("linear_before_reset", 0):
            inner = c.op.multiply(r, self._recurrence(state, 2, 1))
        else:
            inner = self._recurrence(c.emit(c.op.multiply(r, state)), 2, 1)
        new = c.emit(squash(c.op.add(self._gate(x, 2), inner)))
        mixed = c.op.multiply(c.op.subtract(c.const(1, dtype), z), new)
        return c.emit(c.op.add(mixed, c.op.multiply(z, state))), None
