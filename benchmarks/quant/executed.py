"""What ONNX Runtime makes of a model file: which nodes of its optimized graph compute on 8-bit integers.

Counted by op and by what flows into it, straight from the protobuf, so that all tools are counted alike.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONVERT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# Contrib ops have names of their own for 8-bit work.
_INTEGER = frozenset(
    {"ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"QAttention", "QGemm", "QEmbedLayerNormalization", "QMoE", "QOrderedMatMul"}
)
_HEAVY = frozenset({"Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Attention"})
_HEAVY_INTEGER = _INTEGER - {"QEmbedLayerNormalization"} | {"QLinearConv", "QLinearMatMul"}
# Ops that hand values on: integer when what flows in is.
_MOVE = frozenset(
    {"Concat", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze"}
    | {"Transpose", "Unsqueeze", "Clip", "Relu", "Expand", "Where", "DepthToSpace", "SpaceToDepth", "ArgMax"}
)


@dataclass(frozen=True)
class Executed:
    """Nodes of the optimized graph by what they compute on; conversions are the Q/DQ that are left."""

    nodes: int
    integer: int
    heavy: int
    heavy_integer: int
    conversions: int

    @property
    def share(self) -> float:
        """Integer nodes over all nodes, conversions among the latter."""
        return self.integer / self.nodes if self.nodes else 0.0

    @property
    def heavy_share(self) -> float:
        """The same of convolutions and matrix products only."""
        return self.heavy_integer / self.heavy if self.heavy else 0.0


def executed(path: Path) -> Executed:
    """Open a model with the runtime's default optimizations and count its graph.

    Raises:
        Exception: the runtime's own, where it refuses the model.
    """
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder, "executed.onnx"))
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return count(onnx.load(options.optimized_model_filepath, load_external_data=False))


def count(model: Any) -> Executed:
    """Count an optimized graph (a ModelProto); subgraphs are left out."""
    from onnx import TensorProto

    eight = {TensorProto.INT8, TensorProto.UINT8}
    integer = {tensor.name for tensor in model.graph.initializer if tensor.data_type in eight}
    totals = dict.fromkeys(("integer", "heavy", "heavy_integer", "conversions"), 0)
    for node in model.graph.node:
        moved = node.op_type in _MOVE and bool(node.input) and node.input[0] in integer
        works = node.op_type in _INTEGER or node.op_type.startswith("QLinear")
        if moved or works or node.op_type == "QuantizeLinear":
            integer.update(node.output[:1])
        totals["integer"] += moved or works
        totals["heavy"] += node.op_type in _HEAVY | _HEAVY_INTEGER
        totals["heavy_integer"] += node.op_type in _HEAVY_INTEGER
        totals["conversions"] += node.op_type in _CONVERT
    return Executed(len(model.graph.node), **totals)
