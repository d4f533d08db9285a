"""The graph that ONNX Runtime executes: what its own optimizers made of a model, written as an ONNX file.

At the extended level: everything but the layout optimizers, which rename ops and reorder channels and neither add nor
remove a QuantizeLinear, DequantizeLinear or Cast.
"""

from __future__ import annotations

from pathlib import Path

from graphopt.errors import GraphoptError
from graphopt.targets.onnxruntime.runner import OrtRunner
from graphopt.targets.onnxruntime.settings import OptimizationLevel, SessionSettings

_WITHOUT_LAYOUT: dict[OptimizationLevel, OptimizationLevel] = {"layout": "extended", "all": "extended"}
_WEIGHTS = "session.optimized_model_external_initializers_"


def write_optimized(
    path: Path,
    settings: SessionSettings,
    folder: Path,
    *,
    layout: bool = False,
    time_limit: float | None = None,
    memory_limit: int | None = None,
) -> Path:
    """Open a model in a child process and write the runtime's optimized graph into `folder`.

    Args:
        path: the model.
        settings: session options; the optimization level is the settings' own, layout optimizers left out.
        folder: receives `executed.onnx` and its weights.
        layout: leave the layout optimizers in.
        time_limit, memory_limit: of the child process, as for `open_runner`.

    Raises:
        GraphoptError: the runtime refuses the model, or did not write the graph.
    """
    level = settings.optimization_level
    out = folder / "executed.onnx"
    config = dict(settings.config)
    config[f"{_WEIGHTS}file_name"] = "executed.onnx.data"
    config[f"{_WEIGHTS}min_size_in_bytes"] = "1024"
    chosen = settings.replace(
        optimization_level=level if layout else _WITHOUT_LAYOUT.get(level, level),
        prepacking=False,
        config=tuple(config.items()),
    )
    OrtRunner(path, chosen, time_limit=time_limit, memory_limit=memory_limit, optimized=out).close()
    if not out.is_file():
        raise GraphoptError(f"ONNX Runtime did not write the graph that it makes of {path}")
    return out
