"""A copy of a model whose rounding can be switched on and off place by place: what does each place cost the outputs?

    probe = Probe(ctx, values, weights)                  # float values and weights that may become codes
    probe.error({"h": params}, ["conv1"])                # relative squared error of the outputs with these rounded

One session answers all questions: scales, zero points and switches are inputs of the copy. Not here: what is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.quantization.affine import QParams, storage

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.manager.context import Context
    from graphopt.target import Runner

WORK = 1 << 38
"""Multiply-accumulates that all questions together may take; it bounds the samples they are asked on."""
FEWEST, MOST = 4, 16
"""Samples, at least and at most."""


@dataclass(frozen=True)
class Rounded:
    """A float value that may become codes of `type`, for the nodes (by name) in `readers`."""

    type: Any
    readers: frozenset[str]


def samples_for(macs: int | None, questions: int) -> int:
    """How many samples so many questions are asked on, for a model with so many multiply-accumulates a sample."""
    if not macs or not questions:
        return MOST
    return max(FEWEST, min(MOST, WORK // (macs * questions)))


class Probe:
    """See the module; a context manager.

    Args:
        ctx: its model is copied as it is now.
        values: by name.
        weights: node name -> its weights as the codes give them back, float32.
        samples: how many to ask on.
    """

    def __init__(
        self, ctx: Context, values: Mapping[str, Rounded], weights: Mapping[str, np.ndarray], samples: int
    ) -> None:
        calibration = ctx.need_calibration()
        self._switches: dict[str, Any] = {}
        self._values, self._weights = dict(values), list(weights)
        copy = ctx.model.clone()
        _Rewiring(copy, self._switches).go(values, weights)
        self._runner: Runner = calibration.runner(copy)
        self._batches = [dict(feeds) for feeds in calibration.batches(samples)]
        self._exact = [self._run(feeds, {}) for feeds in self._batches]

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.close()

    def error(self, values: Mapping[str, QParams], weights: Iterable[str] = ()) -> float:
        """Mean over the float outputs of sum (y - y')^2 / sum y^2, with these values and weights rounded."""
        import numpy as np

        switched = self._switched(values, set(weights))
        noise: dict[str, float] = {}
        signal: dict[str, float] = {}
        for feeds, exact in zip(self._batches, self._exact, strict=True):
            for name, got in self._run(feeds, switched).items():
                gap = np.square(exact[name].astype(np.float64) - got)
                noise[name] = noise.get(name, 0.0) + float(gap.sum())
                signal[name] = signal.get(name, 0.0) + float(np.square(exact[name], dtype=np.float64).sum())
        parts = [noise[name] / signal[name] if signal[name] else 0.0 for name in noise]
        mean = float(np.mean(parts)) if parts else 0.0
        return mean if np.isfinite(mean) else float("inf")

    def _run(self, feeds: Mapping[str, Any], switched: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        results = self._runner.run({**feeds, **self._switches, **switched})
        return {
            name: value
            for name, value in results.items()
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size
        }

    def _switched(self, values: Mapping[str, QParams], weights: Collection[str]) -> dict[str, Any]:
        import numpy as np

        feeds: dict[str, Any] = {}
        for name, params in values.items():
            feeds[_input(name, "on")] = np.array(True)
            feeds[_input(name, "scale")] = np.asarray(params.scale, np.float32)
            feeds[_input(name, "zero")] = params.zero_point.astype(storage(params.type))
        feeds.update({_input(name, "weights"): np.array(True) for name in weights})
        return feeds


class _Rewiring:
    """Puts the switches into a copy that belongs to nobody else."""

    def __init__(self, model: ir.Model, switches: dict[str, Any]) -> None:
        self.graph = model.graph
        self.switches = switches

    def go(self, values: Mapping[str, Rounded], weights: Mapping[str, np.ndarray]) -> None:
        there = {value.name: value for value in self.graph.inputs}
        there.update({value.name: value for node in self.graph for value in node.outputs})
        for name, rounded in values.items():
            self._value(there[name], rounded)
        for node in list(self.graph):
            if node.name in weights:
                self._weights(node, weights[str(node.name)])

    def _value(self, value: ir.Value, rounded: Rounded) -> None:
        import numpy as np

        from graphopt import ir

        uses = [use for use in value.uses() if use.node.name in rounded.readers]
        name, kind = str(value.name), storage(rounded.type)
        on = self._input(_input(name, "on"), np.array(False))
        scale = self._input(_input(name, "scale"), np.array(1, np.float32))
        zero = self._input(_input(name, "zero"), np.array(0, kind))
        codes = ir.node("QuantizeLinear", [value, scale, zero])
        back = ir.node("DequantizeLinear", [codes.outputs[0], scale, zero])
        same = ir.node("Identity", [value])
        # A branch that is not taken costs nothing, where a Where would compute both of its sides.
        taken, other = _branch(f"{name}.then", [codes, back]), _branch(f"{name}.else", [same])
        chosen = ir.node("If", [on], {"then_branch": taken, "else_branch": other})
        self._insert(value.producer(), name, [chosen])
        for use in uses:
            use.node.replace_input_with(use.idx, chosen.outputs[0])

    def _weights(self, node: ir.Node, rounded: np.ndarray) -> None:
        import numpy as np

        from graphopt import ir

        value = node.inputs[1]
        assert value is not None
        on = self._input(_input(str(node.name), "weights"), np.array(False))
        constant = ir.Value(name=_input(str(node.name), "rounded"), const_value=ir.Tensor(rounded))
        self.graph.register_initializer(constant)
        chosen = ir.node("Where", [on, constant, value])
        self._insert(None, f"{node.name}.weights", [chosen])
        node.replace_input_with(1, chosen.outputs[0])

    def _input(self, name: str, default: np.ndarray) -> ir.Value:
        from graphopt import ir

        dtype = ir.DataType.from_numpy(default.dtype)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([]))
        self.graph.inputs.append(value)
        self.switches[name] = default
        return value

    def _insert(self, behind: ir.Node | None, name: str, nodes: list[ir.Node]) -> None:
        for index, node in enumerate(nodes):
            node.name = f"graphopt.probe.{name}.{index}"
            node.outputs[0].name = f"{node.name}.out"
        if behind is not None:
            self.graph.insert_after(behind, nodes)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], nodes)


def _branch(name: str, nodes: list[ir.Node]) -> ir.Graph:
    """A branch of an If that returns what its last node makes."""
    from graphopt import ir

    for index, node in enumerate(nodes):
        node.name = f"graphopt.probe.{name}.{index}"
        node.outputs[0].name = f"{node.name}.out"
    return ir.Graph([], nodes[-1].outputs, nodes=nodes, name=name)


def _input(name: str, what: str) -> str:
    return f"graphopt.probe.{name}.{what}"
