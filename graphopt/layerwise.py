"""How wrong each layer of a quantized model is: its output against that of the float original, on the same samples.

A layer is a node of the original with multiply-accumulates in it; values are found by their names, which passes keep.
Not here: what the layers execute in (graphopt/realized.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graphopt.analysis.cost import model_cost
from graphopt.analysis.shapes import Shapes, set_input_shapes
from graphopt.errors import GraphoptError
from graphopt.frontends.onnx import load
from graphopt.quantization import metrics

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.analysis.cost import ModelCost
    from graphopt.running import Runnable
    from graphopt.target import Runner

    Feeds = Mapping[str, Any]

_ABSORBED = frozenset({"Relu", "Clip"})  # a quantizer whose range ends where they cut does their work
_TAP_BYTES = 256 << 20
"""Values that are taken out of a model in one run may have this size together."""


@dataclass(frozen=True)
class LayerError:
    """One layer: node and op of the original, the value that was compared, and its signal to noise ratio in dB."""

    site: str
    op: str
    value: str
    sqnr_db: float


@dataclass(frozen=True)
class LayerErrors:
    """Layers from the worst to the best, layers of the original whose value the quantized model lacks, and samples."""

    layers: tuple[LayerError, ...]
    unmatched: tuple[str, ...]
    samples: int

    def as_json(self) -> dict[str, Any]:
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "unmatched": list(self.unmatched),
            "samples": self.samples,
        }


@dataclass(frozen=True)
class _Pair:
    """Names of one value in both models, and the node of the original that it is the result of."""

    site: str
    op: str
    original: str
    quantized: str
    bytes: int


def layer_errors(quantized: Runnable, original: Runnable, samples: Sequence[Feeds]) -> LayerErrors:
    """Compare the layers of two models that share value names.

    SQNR = 10 log10(sum x^2 / sum (x - y)^2) over all samples, with x of the original and y what the rest of the
    quantized graph sees: behind a QuantizeLinear the dequantized value.

    Args:
        quantized, original: what to open; both run with the runtime's optimizations, as they would be used.
        samples: feeds of both models.

    Raises:
        GraphoptError: no samples, a model refuses them, or no layer has a counterpart.
    """
    if not samples:
        raise GraphoptError("there are no samples to compare layers on")
    before = load(original.path)
    shapes = {name: item.shape for name, item in samples[0].items() if hasattr(item, "shape")}
    set_input_shapes(before, shapes)
    pairs, unmatched = _pairs(before, load(quantized.path))
    if not pairs:
        raise GraphoptError(
            f"{quantized.path} and {original.path} have no layer in common: values are found by name; "
            "give the model that was quantized"
        )
    layers = []
    with quantized.open_float() as a, original.open_float() as b:
        for group in _groups(pairs):
            layers += _compare(group, a, b, samples)
    layers.sort(key=lambda layer: layer.sqnr_db)
    return LayerErrors(tuple(layers), tuple(unmatched), len(samples))


def _compare(group: Sequence[_Pair], quantized: Runner, original: Runner, samples: Sequence[Feeds]) -> list[LayerError]:
    signal, noise = dict.fromkeys(group, 0.0), dict.fromkeys(group, 0.0)
    with (
        quantized.with_taps([pair.quantized for pair in group]) as q,
        original.with_taps([pair.original for pair in group]) as o,
    ):
        for feeds in samples:
            y, x = q.run(feeds), o.run(feeds)
            for pair in group:
                a, b = metrics.power([x[pair.original]], [y[pair.quantized]])
                signal[pair] += float(a[0])
                noise[pair] += float(b[0])
    return [
        LayerError(pair.site, pair.op, pair.original, metrics.decibels(_ratio(signal[pair], noise[pair])))
        for pair in group
    ]


def _ratio(signal: float, noise: float) -> float:
    return signal / noise if noise else float("inf")


def _groups(pairs: Sequence[_Pair]) -> Iterator[list[_Pair]]:
    group: list[_Pair] = []
    size = 0
    for pair in pairs:
        if group and size + pair.bytes > _TAP_BYTES:
            yield group
            group, size = [], 0
        group.append(pair)
        size += pair.bytes
    yield group


def _pairs(before: ir.Model, after: ir.Model) -> tuple[list[_Pair], list[str]]:
    """Values to compare, and the layers that have none in the quantized model."""
    there = {value.name or "": value for node in after.graph for value in node.outputs}
    cost = model_cost(before, Shapes(before).infer())
    pairs, unmatched = [], []
    for node, figures in cost.nodes.items():
        if figures.macs == 0:
            continue
        found = _counterpart(list(_chain(node.outputs[0], cost)), there)
        if found is None:
            unmatched.append(node.name or "")
            continue
        original, quantized = found
        size = 2 * (figures.activation_bytes or 0)
        pairs.append(_Pair(node.name or "", node.op_type, original.name or "", quantized.name or "", size))
    return pairs, unmatched


def _chain(value: ir.Value, cost: ModelCost) -> Iterator[ir.Value]:
    """A layer's output, and what is made of it alone by ops without work, which passes may have joined to the layer."""
    yield value
    readers = [reader for reader, _ in value.uses()]
    while len(readers) == 1 and len(readers[0].outputs) == 1 and not value.is_graph_output():
        if readers[0] not in cost.nodes or cost.nodes[readers[0]].macs != 0:
            return
        value = readers[0].outputs[0]
        yield value
        readers = [reader for reader, _ in value.uses()]


def _counterpart(chain: Sequence[ir.Value], there: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value] | None:
    """The value of the original to compare, and that of the quantized model; None when it has no such value."""
    first = next((index for index, value in enumerate(chain) if value.name in there), None)
    if first is None:
        return None
    original = chain[first]
    kept = there[original.name or ""]
    for value in chain[first + 1 :]:
        maker = value.producer()
        if maker is None or maker.op_type not in _ABSORBED:
            break
        if value.name in there:
            original, kept = value, there[value.name or ""]
        elif any(reader.op_type == "QuantizeLinear" for reader, _ in kept.uses()):
            original = value  # the quantizer behind the layer cuts where the activation did
        else:
            break
    seen = _seen(kept)
    return None if seen.dtype is not None and not seen.dtype.is_floating_point() else (original, seen)


def _seen(value: ir.Value) -> ir.Value:
    """What readers of a value get: behind a QuantizeLinear the dequantized value.

    Taking out the float value before it would keep the runtime from computing the layer in integers.
    """
    for reader, _ in value.uses():
        if reader.op_type == "QuantizeLinear":
            for behind, _ in reader.outputs[0].uses():
                if behind.op_type == "DequantizeLinear":
                    return behind.outputs[0]
    return value
