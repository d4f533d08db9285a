"""What int8 saves, in three measures: seconds on this machine, bytes of weights, multiply-accumulates.

    measure = Work(macs)                        # or Bytes(...), Time(...)
    measure.cost(flow)                          # of the model with the nodes of the flow in int8
    measure.useless                             # {node: why}: nodes that int8 saves nothing at

Not here: what is weighed against it (search_precision.py), nor how nodes are timed (handed in as `ctx.timer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from graphopt.errors import GraphoptError
from graphopt.ir.constants import const_tensor, nbytes

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context, Seconds
    from graphopt.passes.quantize._flow import Flow
    from graphopt.passes.quantize._static_plan import Planner
    from graphopt.quantization.affine import QParams


class Measure(Protocol):
    """See the module."""

    @property
    def useless(self) -> Mapping[ir.Node, str]:
        """Nodes that int8 saves nothing at whatever is around them, with the reason."""
        ...

    def cost(self, flow: Flow) -> float:
        """Of the whole model with the nodes of the flow in int8; differences are what counts."""
        ...

    def text(self, saved: float) -> str:
        """What is saved, behind "int8 saves"."""
        ...

    def record(self) -> dict[str, Any]:
        """JSON values for the plan."""
        ...


class Work:
    """Multiply-accumulates that are left in float."""

    def __init__(self, macs: Mapping[ir.Node, int]) -> None:
        self.useless: dict[ir.Node, str] = {}
        self._macs = macs

    def cost(self, flow: Flow) -> float:
        return float(sum(macs for node, macs in self._macs.items() if node not in flow.nodes))

    def text(self, saved: float) -> str:
        return f"{saved:.0f} products in float"

    def record(self) -> dict[str, Any]:
        return {"by": "work"}


class Bytes:
    """Bytes of weights with their scales and zero points; a float weight is stored once, whoever reads it.

    Args:
        ctx, planner: as they are.
        nodes: with work.
        values: how activations are rounded.
    """

    def __init__(self, ctx: Context, planner: Planner, nodes: list[ir.Node], values: Mapping[str, QParams]) -> None:
        self.useless: dict[ir.Node, str] = {}
        self._codes: dict[ir.Node, int] = {}
        self._floats: dict[ir.Value, int] = {}
        for node in nodes:
            weight = node.inputs[1]
            tensor = const_tensor(weight)
            assert weight is not None and tensor is not None
            params = planner.weights(node, values)
            self._floats[weight] = nbytes(tensor)
            self._codes[node] = _code_bytes(tensor.size, params, has_bias=len(node.inputs) > 2)
        for node, codes in self._codes.items():
            weight = node.inputs[1]
            assert weight is not None
            if any(use.node not in self._codes for use in weight.uses()):
                self.useless[node] = "int8 saves no bytes: its weights stay in float for another reader"
            elif codes >= self._floats[weight]:
                self.useless[node] = f"int8 saves no bytes: {codes} with scales, {self._floats[weight]} in float"

    def cost(self, flow: Flow) -> float:
        codes = sum(count for node, count in self._codes.items() if node in flow.nodes)
        floats = {node.inputs[1] for node in self._codes if node not in flow.nodes}
        return float(codes + sum(count for weight, count in self._floats.items() if weight in floats))

    def text(self, saved: float) -> str:
        return f"{saved:.0f} bytes"

    def record(self) -> dict[str, Any]:
        return {"by": "bytes"}


class Time:
    """Seconds on this machine, conversions between float and int8 included as far as they can be told.

    Args:
        seconds: of the nodes, as they were timed.
        ctx: for the names of the nodes.
        flow: with all nodes in int8 that were timed so.
        macs: of the nodes with work; one that the profile does not know is taken to save as much per product as the
            others together.

    Raises:
        GraphoptError: the profile knows no node with work.
    """

    def __init__(self, seconds: Seconds, ctx: Context, flow: Flow, macs: Mapping[ir.Node, int]) -> None:
        self._seconds = seconds
        self._sites = {node: ctx.rewriter.site(node) for node in flow.nodes}
        known = {node: times for node in macs if (times := seconds.of(self._sites[node])) is not None}
        if not known:
            raise GraphoptError("nodes cannot be timed: the profile of the target has none of them")
        rate = sum(a - b for a, b in known.values()) / sum(macs[node] for node in known)
        self._guessed = {node: max(0.0, rate) * macs[node] for node in macs if node not in known}
        self._known = {self._sites[node]: times for node, times in known.items()}
        slow = seconds.slow()
        self.useless = {
            node: f"int8 takes {slow[site]:.2f}x of float on this machine"
            for node, site in self._sites.items()
            if site in slow
        }

    def cost(self, flow: Flow) -> float:
        guessed = sum(seconds for node, seconds in self._guessed.items() if node not in flow.nodes)
        return self._seconds.total({self._sites[node] for node in flow.nodes}) + guessed

    def text(self, saved: float) -> str:
        return f"{saved * 1e3:.3g} ms"

    def record(self) -> dict[str, Any]:
        """With the seconds of each node in float and in int8."""
        times = {site: {"float": a, "int8": b} for site, (a, b) in self._known.items()}
        return {"by": "time", "seconds": times}

    def summary(self) -> str:
        floats, ints = (sum(times[index] for times in self._known.values()) for index in (0, 1))
        guessed = f"; {len(self._guessed)} more were not found in its profile" if self._guessed else ""
        return (
            f"{len(self._known)} nodes with work take {floats * 1e3:.3g} ms in float and {ints * 1e3:.3g} ms in int8 "
            f"here{guessed}"
        )


def _code_bytes(elements: int, params: QParams, *, has_bias: bool) -> int:
    """Codes, scales and zero points of the weights; and scales and zero points of a bias, whose codes are as wide."""
    bits = params.type.bits
    channels = params.scale.size
    return -(-elements * bits // 8) + channels * 4 + -(-channels * bits // 8) + (channels * 8 if has_bias else 0)
