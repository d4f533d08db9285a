"""Float inputs that are the same on all samples: what is learnt from them does not hold for other data.

    steady = Steady(channels_of(model)); steady.update(feeds)     # batch by batch
    steady.notes()                                                # what the user should know

Not here: single samples and random ones (calibrating.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir

_LISTED = 5
_WHY = "what is learnt from it will not hold for samples that differ"


class Steady:
    """An accumulator of the ends of every float input of rank two or more.

    Args:
        channels: the axis of the channels, by input, where it is known; they are looked at one by one.
    """

    def __init__(self, channels: Mapping[str, int]) -> None:
        self._channels = channels
        self._ends: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def update(self, feeds: Mapping[str, Any]) -> None:
        """Take in one batch."""
        import numpy as np

        for name, value in feeds.items():
            if value.dtype.kind != "f" or value.ndim < 2 or not value.size:
                continue
            known = self._ends.get(name)
            if known is not None and (known[0] < known[1]).all():
                continue
            kept = self._channels.get(name)
            over = tuple(axis for axis in range(value.ndim) if axis != kept)
            low, high = value.min(axis=over), value.max(axis=over)
            if known is not None:
                low, high = np.minimum(low, known[0]), np.maximum(high, known[1])
            self._ends[name] = low, high

    def notes(self) -> list[str]:
        """One for each input of which something does not vary."""
        import numpy as np

        notes = []
        for name, (low, high) in self._ends.items():
            if low.min() == high.max():
                notes.append(f"input {name!r} is {low.min() + 0.0:g} throughout on all samples; {_WHY}")
            elif (low == high).any():
                same = np.flatnonzero(low == high)
                listed = ", ".join(f"{index} (always {low[index] + 0.0:g})" for index in same[:_LISTED])
                more = f" and {len(same) - _LISTED} more" if len(same) > _LISTED else ""
                notes.append(f"input {name!r} does not vary in channel {listed}{more}; {_WHY}")
        return notes


def channels_of(model: ir.Model) -> dict[str, int]:
    """The channel axis of the inputs that a convolution reads, as they are or transposed."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        if _is_convolved(value):
            found[str(value.name)] = 1
        for node in value.consumers():
            perm = node.attributes.get("perm")
            if node.op_type == "Transpose" and perm is not None and _is_convolved(node.outputs[0]):
                found[str(value.name)] = perm.as_ints()[1]
    return found


def _is_convolved(value: ir.Value) -> bool:
    return any(use.node.op_type == "Conv" and use.idx == 0 for use in value.uses())
