"""Making inner values of an ONNX file into outputs of a temporary copy, for calibration and layer-wise comparison.

The copy names the original's external data and does not hold it: the session is told the folder to find it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, did_you_mean

if TYPE_CHECKING:
    from graphopt import ir


def write_tapped(path: Path, values: Sequence[str], folder: Path) -> Path:
    """Write a copy of `path` into `folder` whose outputs are the original's, then `values` (that are no outputs yet).

    Raises:
        GraphoptError: a name that no node, input or initializer of the main graph has.
    """
    from graphopt import ir

    model = ir.load(path)
    graph = model.graph
    there = _values(graph)
    outputs = {value.name for value in graph.outputs}
    for name in dict.fromkeys(values):
        if name not in there:
            raise GraphoptError(f"the main graph of {path} has no value {name!r}{did_you_mean(name, there)}")
        if name not in outputs:
            graph.outputs.append(there[name])
    out = folder / path.name
    ir.save(model, out)
    return out


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    there = {value.name: value for value in (*graph.inputs, *graph.initializers.values()) if value.name}
    for node in graph:
        there.update({value.name: value for value in node.outputs if value.name})
    return there
