"""Float32 ONNX files at one opset: torch's exporter with its defaults, and ONNX's version converter for older files.

Old opsets keep some quantizers from quantizing by channel, so every tool is given the same file of a newer one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OPSET = 17


def to_opset(source: Path, path: Path, opset: int = OPSET) -> None:
    """Write a model whose standard domain is older than `opset` at that opset."""
    import onnx
    from onnx import version_converter

    converted = version_converter.convert_version(onnx.load(source), opset)
    onnx.checker.check_model(converted)
    onnx.save(converted, path)


def export(module: Any, inputs: Mapping[str, Any], output: str, path: Path) -> None:
    """Write a float32 ONNX file whose first dim of every input is dynamic, by torch's exporter with its defaults.

    Args:
        inputs: example tensors by input name, batch 2 or more.
    """
    import torch

    batch = torch.export.Dim("batch", min=1)
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    for log in logs:
        log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
        )
    assert program is not None
    # Stack traces name folders of this machine: without them the same versions give the same file everywhere.
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    program.save(str(path), external_data=False)
