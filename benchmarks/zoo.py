"""Which models of the zoo a figure takes, and what can be read off a model file without running it.

One counter for all tools: nodes of the main graph, of subgraphs and of functions, straight from the protobuf.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt import models

OCR_AND_CNN = (
    "ppocr-det-v4",
    "ppocr-rec-v4",
    "ppocr-cls",
    "mobilenet-v2-export",
    "densenet121-export",
    "shufflenet-v2-export",
    "resnet18-export",
    "resnet50-export",
    "convnext-t-export",
)
TRANSFORMERS = ("minilm-l6-export", "minilm-l6-export-static", "vit-b16-export", "llama-tiny", "llama-tiny-kv")
# Toys of this project. In vit-tiny-export (0.2 MB) the kept layer names, which peers drop, make the file 1.07x theirs.
FOR_TESTS = ("bert-tiny-export", "vit-tiny-export")
MINILM = ("minilm-l6-export", "minilm-l6-export-static")
VIT = "vit-b16-export"


def is_light(name: str) -> bool:
    """The onnx package's own test models, whose weights are generated inside the graph."""
    return name.startswith("light-")


def onnx_models() -> list[str]:
    """Every model of the zoo that is an ONNX file, fetched or built, but for those made only for fast tests."""
    found = [info for info in models.list_models() if info.kind == "built" or info.member.endswith(".onnx")]
    return [info.name for info in found if info.name not in FOR_TESTS]


def ops(path: Path) -> Counter[str]:
    """How often each op occurs, subgraphs and functions counted; ops outside ai.onnx as `domain::op`."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    counts: Counter[str] = Counter()
    for graph in _graphs(model):
        for node in graph.node:
            domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}::"
            counts[f"{domain}{node.op_type}"] += 1
    return counts


def file_bytes(path: Path) -> int:
    """Size of a model file and of the files beside it that hold its initializers."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for graph in _graphs(model)
        for tensor in getattr(graph, "initializer", ())
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in names)))


def _graphs(model: Any) -> Iterator[Any]:
    """The main graph, all functions, and every subgraph inside them, as protobuf messages."""
    stack = [model.graph, *model.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)


def loads(path: Path) -> str:
    """Why ONNX Runtime refuses a model file; '' when it takes it."""
    from graphopt.errors import GraphoptError
    from graphopt.targets.onnxruntime.runner import open_runner
    from graphopt.targets.onnxruntime.settings import SessionSettings

    try:
        with open_runner(path, SessionSettings(optimization_level="disable_all", prepacking=False)):
            return ""
    except GraphoptError as error:
        return str(error)
