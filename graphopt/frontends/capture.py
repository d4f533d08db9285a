"""One door for every source: an ONNX file, an artifact, an IR model, a torch program, or `package.module:function`.

Returns the IR and, where there is one, the file that numerics can use as the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt import ir

Source = Any
"""str or Path of a file or artifact folder, `package.module:function`, or an ir.Model."""


def capture(
    source: Source,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> tuple[ir.Model, Path | None]:
    """Read a model and specialise its inputs where asked.

    Returns:
        The model, and the ONNX file it came from (None for other sources).

    Raises:
        GraphoptError: the source cannot be read, or the shapes do not fit its inputs.
    """
    model, path = _read(source)
    if input_shapes:
        from graphopt.analysis.shapes import set_input_shapes

        set_input_shapes(model, input_shapes)
    if dims:
        from graphopt.analysis.shapes import bind_dims

        bind_dims(model, dims)
    return model, path


def _read(source: Source) -> tuple[ir.Model, Path | None]:
    from graphopt.frontends import onnx

    if not isinstance(source, str | Path):
        from graphopt import ir

        if not isinstance(source, ir.Model):
            raise GraphoptError(
                f"cannot read a model from {type(source).__name__}; "
                "give a path, an ir.Model, or use graphopt.from_torch"
            )
        return onnx.prepare(source, "the model"), None
    source = model_file(source)
    text = str(source)
    path = Path(source)
    if path.suffix == ".pt2":
        from graphopt.frontends.torch import load_program

        return onnx.prepare(load_program(path), text), None
    if ":" in text and not path.exists() and not text.endswith(".onnx"):
        from graphopt.frontends.torch import from_function

        return onnx.prepare(from_function(text), text), None
    return onnx.load(path), path


def model_file(source: Source) -> Source:
    """The model file of an artifact folder; anything else as it is."""
    from graphopt import artifact

    if isinstance(source, str | Path) and Path(source).is_dir():
        return artifact.load(source).model
    return source
