"""Where int8 is slower than float on this machine: nodes of both models are timed in place, a cut finds what to leave.

    times = time_nodes([float_model, int8_model], feeds)             # in turns, so that disturbances hit both
    slow = slow_sites(float_graph, sites, times[0], times[1])        # {site: how many times as long int8 takes}
    SiteSeconds(float_graph, alias, times[0], times[1]).total(sites)  # what a choice of sites takes, conversions too

Not here: what happens to a model that has such places (graphopt/paying.py), or asking while passes run (sitetimer.py).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from graphopt.analysis.cost import Sizes
from graphopt.analysis.shapes import Shapes

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.running import Runnable
    from graphopt.target import Feeds, NodeTime

    Times = Mapping[str, NodeTime]
    _Value = tuple[ir.Node | None, list[ir.Node | None], float, float]

SECONDS = 1.5
"""Time for the nodes of each model."""
_BLOCKS, _LEAST, _PATIENCE = 20, 6, 2
_RUNS = 120  # the profile holds every node of every run
MARGIN = 1.05
"""Int8 is left only for what float does faster by more than this: times of single nodes are uncertain by so much."""
WORTH = 0.03
"""Places are left out only when that promises to save this part of the model's time: it is run once more for that."""
_ADDED = re.compile(r"(_nchwc|_nhwc|_token_\d+|/duplicated|/MatMulAddFusion|_MatMulInteger)$")
"""What the runtime, or a quantizer that makes several nodes out of one, puts behind a name."""
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
_JOINED = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_WORK = ("Conv", "Gemm", "MatMul")


def time_nodes(models: Sequence[Runnable], feeds: Feeds, seconds: float = SECONDS) -> list[dict[str, NodeTime]]:
    """Seconds of each node of each model's executed graph; the models take turns.

    Raises:
        GraphoptError: a model does not run, or its target does not time nodes.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-profile-")))
        open_ = [
            stack.enter_context(item.target.profile(item.path, feeds, folder, item.settings or None)) for item in models
        ]
        fastest = [min(item.run(3)) for item in open_]
        per_block = [max(1, min(_RUNS // _BLOCKS, int(seconds / _BLOCKS / max(time, 1e-6)))) for time in fastest]
        start = perf_counter()
        for index in range(_BLOCKS):
            if index >= _LEAST and perf_counter() - start > _PATIENCE * seconds * len(models):
                break  # a large model or a busy machine: what was seen has to do
            for item, count in zip(open_, per_block, strict=True):
                item.run(count)
        return [item.end() for item in open_]


@dataclass(frozen=True)
class Conversions:
    """Seconds of getting a value from float to int8 and back: a fixed part, and one per element."""

    quantize: tuple[float, float]
    dequantize: tuple[float, float]

    @classmethod
    def measured(cls, int8_times: Times, float_times: Times, known: Collection[str]) -> Conversions:
        """From the conversions that the runtime executed; a change of layout comes with each where there was any."""
        layouts = [item for item in (*int8_times.values(), *float_times.values()) if item.op in _LAYOUT]
        layout = _rate(item for item in layouts if _base(item.name) not in known)
        found = []
        for op in (_QUANTIZE, _DEQUANTIZE):
            fixed, each = _rate(item for item in int8_times.values() if item.op == op)
            found.append((fixed + layout[0], each + layout[1]))
        return cls(found[0], found[1])

    def cost(self, elements: int) -> tuple[float, float]:
        """Seconds of quantizing and of dequantizing so many elements."""
        return self.quantize[0] + self.quantize[1] * elements, self.dequantize[0] + self.dequantize[1] * elements


def _rate(items: Iterable[NodeTime]) -> tuple[float, float]:
    """Fixed seconds and seconds per element of nodes of one kind: the fastest is fixed, the rest grows by size."""
    rows = list(items)
    if not rows:
        return 0.0, 0.0
    fixed = min(item.seconds for item in rows) if len(rows) > 1 else 0.0
    elements = sum(item.elements for item in rows)
    return fixed, max(0.0, sum(item.seconds - fixed for item in rows)) / max(1, elements)


def slow_sites(
    graph: ir.Model,
    sites: Collection[str],
    float_times: Times,
    int8_times: Times,
    feeds: Feeds | None = None,
    quantized: ir.Model | None = None,
) -> dict[str, float]:
    """Nodes that are to stay float, with how many times as long their region takes in int8, conversions included.

    Every node of `sites` is in int8 (I) or float (F); all others are F. A labelling costs

        sum over nodes of the time in their label  +  sum over values of quantize [F -> I] and dequantize [I -> F],

    each conversion once per value. The cheapest labelling is a minimum cut. A region is what it makes F in one piece.
    Nothing is returned when all regions together promise less than `WORTH`.

    Args:
        graph: the float model.
        sites: nodes that int8 was chosen for, all in the main graph.
        float_times, int8_times: of the two models on the same feeds.
        feeds: give sizes to symbolic dims.
        quantized: the int8 model, whose node names the sites are; None when those of the float model are the same.
    """
    alias = {site: site for site in sites} if quantized is None else aliases(graph, quantized, sites)
    worth = WORTH * sum(item.seconds for item in int8_times.values())
    ratios = SiteSeconds(graph, alias, float_times, int8_times, feeds).slow(MARGIN, worth)
    return {site: ratios[name] for site, name in alias.items() if name in ratios}


def aliases(graph: ir.Model, quantized: ir.Model, sites: Collection[str]) -> dict[str, str]:
    """Names of the float model's nodes by those of the int8 model: passes may rename nodes, and keep names of values.

    A node's result, or what rounding and clipping make of it alone, has a name that both models know.
    """
    makers = {value.name: node for node in graph.graph for value in node.outputs if value.name}
    found: dict[str, str] = {}
    for node in quantized.graph:
        if node.name not in sites or not node.name:
            continue
        value = node.outputs[0]
        while value.name not in makers:
            readers = [reader for reader, _ in value.uses()]
            if len(readers) != 1 or readers[0].op_type not in {*_JOINED, _QUANTIZE, _DEQUANTIZE}:
                break
            value = readers[0].outputs[0]
        maker = makers.get(value.name or "")
        while maker is not None and maker.op_type != node.op_type and maker.op_type in _JOINED:
            source = maker.inputs[0]
            maker = source.producer() if source is not None else None
        if maker is not None and maker.op_type == node.op_type and maker.name:
            found[node.name] = maker.name
    return found


@dataclass(frozen=True)
class _Region:
    """Places in one piece, with their seconds in int8 and in float, conversions included."""

    sites: tuple[str, ...]
    as_int8: float
    as_float: float

    @property
    def ratio(self) -> float:
        return self.as_int8 / self.as_float if self.as_float else 0.0


class SiteSeconds:
    """Nodes with both times, values with their conversion costs (manager.context.Seconds).

    Args:
        model: the float model; its input shapes are set to those of the feeds.
        alias: names of the float model's nodes by site.
        float_times, int8_times, feeds: as for `slow_sites`.
    """

    def __init__(
        self,
        model: ir.Model,
        alias: Mapping[str, str],
        float_times: Times,
        int8_times: Times,
        feeds: Feeds | None = None,
    ) -> None:
        from graphopt.analysis.shapes import set_input_shapes

        if feeds:
            set_input_shapes(model, {name: item.shape for name, item in feeds.items() if hasattr(item, "shape")})
        names, sites = _Names(model), set(alias.values())
        floats, ints = names.seconds(float_times, {}), names.seconds(int8_times, alias)
        self.free = [node for node in model.graph if node.name in sites and self._is_known(node, floats, ints)]
        self._is_free = set(self.free)
        self.float = {node: floats.get(node, 0.0) for node in self.free}
        self.int8 = {node: ints.get(node, 0.0) for node in self.free}
        self.fixed_int8 = {node for node in model.graph if node.name in sites and node not in self._is_free}
        self._conversions = Conversions.measured(int8_times, float_times, names.known)
        self._sizes = Sizes(Shapes(model).infer())
        self.values = list(self._values(model))

    def of(self, site: str) -> tuple[float, float] | None:
        """Seconds of a node in float and in int8, without conversions; None where one of them is not known."""
        return next(((self.float[node], self.int8[node]) for node in self.free if node.name == site), None)

    def total(self, int8: Collection[str]) -> float:
        """Seconds of all nodes that are known, with these sites in int8, and of the conversions that this takes."""
        chosen = {node for node in (*self.free, *self.fixed_int8) if node.name in int8}
        seconds = sum(self.int8[node] if node in chosen else self.float[node] for node in self.free)
        return seconds + sum(_conversion(value, lambda node: node in chosen) for value in self.values)

    def slow(self, margin: float = 1.0, worth: float = 0.0) -> dict[str, float]:
        """Nodes that the cheapest labelling has in float, with how many times as long their region takes in int8.

        Args:
            margin: float has to be faster by more than this.
            worth: seconds that all regions together have to promise; nothing is returned otherwise.
        """
        regions = [region for region in self.regions(self.cut(margin)) if region.ratio > 1]
        if sum(region.as_int8 - region.as_float for region in regions) < worth:
            return {}
        return {name: region.ratio for region in regions for name in region.sites}

    @staticmethod
    def _is_known(node: ir.Node, floats: Mapping[ir.Node, float], ints: Mapping[ir.Node, float]) -> bool:
        """A node with work whose time is missing in one of the models stays as it was chosen."""
        return node.op_type not in _WORK or (node in floats and node in ints)

    def _values(self, model: ir.Model) -> Iterator[_Value]:
        """Maker (None: outside), readers, and the seconds of quantizing and dequantizing each value."""
        inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        for value in (*inputs, *(out for node in model.graph for out in node.outputs)):
            maker = value.producer()
            readers: list[ir.Node | None] = [reader for reader, _ in value.uses()]
            if value.is_graph_output():
                readers.append(None)
            touched = {maker, *readers} & {*self._is_free, *self.fixed_int8}
            shape = self._sizes.of(value)
            if touched and shape is not None:
                count = 1
                for dim in shape:
                    count *= dim
                yield (maker, list(dict.fromkeys(readers)), *self._conversions.cost(count))

    def _label(self, node: ir.Node | None, left: Collection[ir.Node]) -> bool:
        """True for int8."""
        return node is not None and (node in self.fixed_int8 or (node in self._is_free and node not in left))

    def cut(self, margin: float) -> set[ir.Node]:
        """The nodes that the cheapest labelling leaves in float, where that is faster by more than the margin."""
        import networkx as nx

        net: Any = nx.DiGraph()
        source, sink = "int8", "float"
        for node in self.free:  # an edge is paid when its start is int8 and its end is float
            net.add_edge(source, node, capacity=self.float[node] * margin)
            net.add_edge(node, sink, capacity=self.int8[node])
        for node in self.fixed_int8:
            net.add_edge(source, node)  # without capacity: infinite

        def place(node: ir.Node | None) -> Any:
            return node if node in self._is_free or node in self.fixed_int8 else sink

        for index, (maker, readers, quantize, dequantize) in enumerate(self.values):
            codes, floats = ("codes", index), ("floats", index)
            net.add_edge(codes, place(maker), capacity=quantize)
            net.add_edge(place(maker), floats, capacity=dequantize)
            for reader in readers:
                net.add_edge(place(reader), codes)
                net.add_edge(floats, place(reader))
        if source not in net or sink not in net:
            return set()
        net.remove_edges_from(list(net.out_edges(sink)))
        _, (kept, _) = nx.minimum_cut(net, source, sink)
        return {node for node in self.free if node not in kept}

    def regions(self, left: set[ir.Node]) -> Iterator[_Region]:
        """Connected pieces of what is left in float."""
        import networkx as nx

        near = nx.Graph()
        near.add_nodes_from(left)
        for maker, readers, _, _ in self.values:
            inside = [node for node in (maker, *readers) if node in left]
            near.add_edges_from(pairwise(inside))
        for region in nx.connected_components(near):
            as_float = sum(self.float[node] for node in region) + self._converting(region, left)
            as_int8 = sum(self.int8[node] for node in region) + self._converting(region, left - region)
            yield _Region(tuple(sorted(node.name or "" for node in region)), as_int8, as_float)

    def _converting(self, region: set[ir.Node], left: set[ir.Node]) -> float:
        """Seconds of the conversions at the values that a region touches."""
        touched = [item for item in self.values if region & {item[0], *item[1]}]
        return sum(_conversion(item, lambda node: self._label(node, left)) for item in touched)


def _conversion(value: _Value, is_int8: Callable[[ir.Node | None], bool]) -> float:
    """Seconds of converting one value, once in each direction that its maker and readers ask for."""
    maker, readers, quantize, dequantize = value
    made, read = is_int8(maker), {is_int8(reader) for reader in readers}
    return (quantize if not made and True in read else 0.0) + (dequantize if made and False in read else 0.0)


class _Names:
    """Which node of a model an executed node stands for, told by names."""

    def __init__(self, model: ir.Model) -> None:
        self._nodes = {node.name: node for node in model.graph if node.name}
        self._makers = {value.name: node for node in model.graph for value in node.outputs if value.name}
        self.known = {*self._nodes, *self._makers}

    def seconds(self, times: Times, alias: Mapping[str, str]) -> dict[ir.Node, float]:
        """Seconds by node of the model; what the runtime added for itself belongs to none."""
        out: dict[ir.Node, float] = {}
        for item in times.values():
            node = self._find(item, alias)
            if node is not None:
                out[node] = out.get(node, 0.0) + item.seconds
        return out

    def _find(self, item: NodeTime, alias: Mapping[str, str]) -> ir.Node | None:
        if item.op in (_QUANTIZE, _DEQUANTIZE):
            return None
        name = _base(item.name)
        name = alias.get(name, name)
        node = self._nodes.get(name) or self._makers.get(name)
        # A node with work takes the name of the activation that it was joined with.
        is_work = any(op in item.op for op in _WORK)
        while node is not None and node.op_type in _JOINED and is_work and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        return node


def _base(name: str) -> str:
    while (shorter := _ADDED.sub("", name)) != name:
        name = shorter
    return name
