"""What the codes of a model's inputs and outputs mean: JSON in the model's metadata.

Real value = (code - zero_point) * scale, per tensor. Not here: the pass that changes the interface (integer-io).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError
from graphopt.quantization.affine import QParams, qtype

if TYPE_CHECKING:
    from graphopt import ir

KEY = "graphopt.codes"
"""Name of the metadata: {name of an input or output: {type, scale, zero_point}} as JSON."""


def write_codes(model: ir.Model, params: Mapping[str, QParams]) -> None:
    """Tell in the model's metadata what the codes of these inputs and outputs mean."""
    rows = {
        name: {"type": item.type.name, "scale": float(item.scale), "zero_point": int(item.zero_point)}
        for name, item in params.items()
    }
    model.metadata_props[KEY] = json.dumps(rows, sort_keys=True)


def read_codes(model: ir.Model) -> dict[str, QParams]:
    """What the codes of inputs and outputs mean, by name; empty for a float model.

    Raises:
        GraphoptError: the metadata says something else.
    """
    import numpy as np

    text = model.metadata_props.get(KEY)
    if text is None:
        return {}
    try:
        return {
            str(name): QParams(qtype(row["type"]), np.float32(row["scale"]), np.int64(row["zero_point"]))  # type: ignore[arg-type]
            for name, row in json.loads(text).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GraphoptError(f"the model's metadata {KEY!r} cannot be read: {error}") from None
