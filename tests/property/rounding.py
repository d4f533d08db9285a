"""How far two results are apart, and how much of that rounding alone explains.

Not here: what a pass is allowed (harness.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper


def coarseness(dtype: np.dtype) -> float:
    """How much coarser a type is than float32."""
    return float(np.finfo(dtype).eps / np.finfo(np.float32).eps) if dtype.itemsize < 4 else 1.0


def gap(want: np.ndarray, have: np.ndarray) -> tuple[float, float]:
    """Largest difference and largest magnitude; inf where a number became NaN or infinite or the reverse.

    Numbers within a hundredth of overflow count as infinite: rounding decides what becomes of them.
    """
    edge = float(np.finfo(want.dtype).max) / 100
    a, b = want.astype(np.float64), have.astype(np.float64)
    with np.errstate(invalid="ignore"):
        fine, still = np.abs(a) < edge, np.abs(b) < edge
    scale = float(np.abs(a[fine]).max(initial=0.0))
    if not np.array_equal(fine, still):
        return float("inf"), scale
    return float(np.abs(a[fine] - b[fine]).max(initial=0.0)), scale


def unequal(want: np.ndarray, have: np.ndarray) -> str | None:
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    if same.all():
        return None
    return f"{int((~same).sum())} of {want.size} elements differ{place(want, have)}"


def place(want: np.ndarray, have: np.ndarray) -> str:
    with np.errstate(invalid="ignore"):
        where = np.argwhere(~((want == have) | ((want != want) & (have != have))))
    if not len(where):
        return ""
    spot = tuple(int(item) for item in where[0])
    return f"; at {list(spot)} {have[spot]!r}, was {want[spot]!r}"


_ROUNDED = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16}


def with_noise(proto: ModelProto, seed: int) -> bytes:
    """The graph with every inner float of the main graph multiplied by 1 + a rounding: what its numbers are worth."""
    random = np.random.default_rng(seed)
    try:
        typed = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # inference refuses what the runtime takes: inputs and outputs are typed anyway
        typed = proto
    kinds = {
        item.name: item.type.tensor_type.elem_type
        for item in (*typed.graph.value_info, *typed.graph.output, *typed.graph.input)
    }
    weights = {item.name for item in proto.graph.initializer}
    made = ModelProto()
    made.CopyFrom(proto)
    del made.graph.node[:]
    renamed: dict[str, str] = {}
    keep = {item.name for item in proto.graph.output}

    def rounded(name: str, kind: int) -> None:
        eps = np.finfo(helper.tensor_dtype_to_np_dtype(kind)).eps
        factor = helper.make_tensor(f"{name}~factor", kind, [], [1 + float(eps) * float(random.choice([-1, 1]))])
        made.graph.initializer.append(factor)
        made.graph.node.append(
            helper.make_node(
                "Mul",
                [renamed.get(name, name), f"{name}~factor"],
                [f"{name}~noisy" if name not in keep or name in kinds_in else name],
            )
        )

    kinds_in = {item.name for item in proto.graph.input}
    for name in kinds_in - weights:
        if kinds.get(name) in _ROUNDED:
            rounded(name, kinds[name])
            renamed[name] = f"{name}~noisy"
    for node in proto.graph.node:
        copy = made.graph.node.add()
        copy.CopyFrom(node)
        _read(copy, renamed)
        for position, name in enumerate(node.output):
            if name and kinds.get(name) in _ROUNDED:
                copy.output[position] = f"{name}~clean"
                renamed[name] = f"{name}~clean"
                rounded(name, kinds[name])
                renamed[name] = name if name in keep else f"{name}~noisy"
    return made.SerializeToString()


def _read(node: Any, renamed: Mapping[str, str]) -> None:
    for index, name in enumerate(node.input):
        node.input[index] = renamed.get(name, name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _read(inner, renamed)
