"""Seeds from the golden files: the graphs that rules are known to match, taken apart, bent and put together.

Each rule gets graphs aimed at it this way as soon as it has a golden file. Not here: random blocks (blocks.py).
"""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.random import Generator
from onnx import TensorProto, numpy_helper
from property.draft import OPSET, Draft, Shape, made_in, rename
from property.harness import size_of

from graphopt import ir
from graphopt.ir.text import from_text
from graphopt.manager.pipeline import parse

GOLDEN = Path(__file__).parents[1] / "golden"
HEADER = f'<ir_version: 10, opset_import: ["": {OPSET}]>'
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Seed:
    """One golden graph: the pass it was written for, and whether that pass changes it."""

    rule: str
    title: str
    positive: bool
    text: str


@functools.cache
def seeds() -> dict[str, tuple[Seed, ...]]:
    """Golden graphs by pass name."""
    found: dict[str, tuple[Seed, ...]] = {}
    for path in sorted(GOLDEN.glob("*.txt")):
        blocks = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        rows = []
        for block in blocks:
            parts = re.split(r"^### (.*)$", block, flags=re.MULTILINE)
            rows.append(Seed(path.stem, parts[0].strip(), parts[3] == "expected", parts[2].strip()))
        found[path.stem] = tuple(rows)
    return found


@functools.cache
def spelled() -> dict[str, str]:
    """How the golden file of a pass writes it, where it gives it options."""
    found = {}
    for path in GOLDEN.glob("*.txt"):
        line = re.search(r"^# pipeline: (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        item = (
            next((item for item in parse(line[1].strip()).passes() if item.name == path.stem), None) if line else None
        )
        if item is not None and str(item) != item.name:
            found[path.stem] = str(item)
    return found


@functools.lru_cache(maxsize=4096)
def _parsed(seed: Seed) -> Draft:
    text = seed.text if seed.text.startswith("<") else f"{HEADER}\n{seed.text}"
    proto = ir.to_proto(from_text(text))
    try:
        typed = onnx.shape_inference.infer_shapes(proto)
    except (RuntimeError, onnx.shape_inference.InferenceError):
        typed = proto
    draft = Draft(nodes=list(proto.graph.node), functions=list(proto.functions))
    draft.imports = {item.domain: item.version for item in proto.opset_import}
    draft.inputs = {item.name: item for item in proto.graph.input}
    draft.outputs = [item.name for item in proto.graph.output]
    draft.weights = {item.name: item for item in proto.graph.initializer}
    draft.types = {name: tensor.data_type for name, tensor in draft.weights.items()}
    for item in (*typed.graph.value_info, *proto.graph.output, *proto.graph.input):
        if item.type.HasField("tensor_type"):
            draft.types[item.name] = item.type.tensor_type.elem_type
            draft.shapes.update(_pairs(item))
    for node in draft.nodes:
        if node.op_type == "Loop":  # what it stacks may be empty, whatever is declared
            for name in node.output:
                draft.shapes.pop(name, None)
    return draft


def _pairs(info: onnx.ValueInfoProto) -> dict[str, Shape]:
    """The sizes of a value at the two bindings, when inference knows each dim by a number or the name of a symbol."""
    kind = info.type.tensor_type
    if not kind.HasField("shape") or not all(
        dim.HasField("dim_value") or dim.dim_param.isidentifier() for dim in kind.shape.dim
    ):
        return {}
    return {info.name: tuple((size_of(dim, 0), size_of(dim, 1)) for dim in kind.shape.dim)}


def draft_of(seed: Seed) -> Draft:
    """A draft of its own for each caller."""
    return copy.deepcopy(_parsed(seed))


def join(random: Generator, parts: list[Draft]) -> Draft:
    """Put drafts side by side in one graph; inputs that look the same are sometimes shared, and equal weights too."""
    whole = parts[0]
    for number, part in enumerate(parts[1:], 1):
        if part.imports.get("") != whole.imports.get(""):
            continue
        names = {name: f"{name}_{number}" for name in {*part.inputs, *part.weights, *made_in(part.nodes)}}
        for name, info in part.inputs.items():
            twin = _same_input(whole, info)
            if twin and random.random() < 0.5:
                names[name] = twin
        for name, tensor in part.weights.items():
            for other, there in whole.weights.items():
                alike = there.dims == tensor.dims and there.data_type == tensor.data_type
                if alike and random.random() < 0.3 and not (_is_huge(there) or _is_huge(tensor)):
                    names[name] = other
        for node in part.nodes:
            rename(node, names)
            node.name = ""
        whole.nodes += part.nodes
        for table, items in ((whole.inputs, part.inputs), (whole.weights, part.weights)):
            for name, item in items.items():
                if names[name] not in table:
                    item.name = names[name]
                    table[names[name]] = item  # type: ignore[index]
        whole.outputs += [names[name] for name in part.outputs if names[name] not in whole.outputs]
        whole.types.update({names[name]: kind for name, kind in part.types.items() if name in names})
        whole.shapes.update({names[name]: shape for name, shape in part.shapes.items() if name in names})
        whole.imports.update(part.imports)
        known = {(item.domain, item.name) for item in whole.functions}
        whole.functions += [item for item in part.functions if (item.domain, item.name) not in known]
    return whole


def _is_huge(tensor: onnx.TensorProto) -> bool:
    """Whether it fills a mask: as a factor it would overflow."""
    array = numpy_helper.to_array(tensor)
    return array.dtype.kind == "f" and bool((np.abs(array) > 1e3).any())


def _same_input(draft: Draft, info: onnx.ValueInfoProto) -> str | None:
    return next(
        (name for name, there in draft.inputs.items() if there.type == info.type and name not in draft.weights), None
    )
