"""What a rule of the numpy table sees of one node, and how it says that it cannot be exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Arrays = Sequence["np.ndarray | None"]


class NotExact(Exception):
    """This op on these operands is not one that numpy surely computes as a runtime does."""


class Call:
    """One node's operands, so that each rule is a line or two."""

    def __init__(self, inputs: Arrays, attributes: Mapping[str, Any], outputs: int, opset: int) -> None:
        self.inputs = list(inputs)
        self.attributes = attributes
        self.outputs = outputs
        self.opset = opset

    def __getitem__(self, index: int) -> np.ndarray:
        value = self.get(index)
        if value is None:
            raise NotExact("an operand is absent")
        return value

    def get(self, index: int) -> np.ndarray | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def ints(self, index: int, name: str | None = None) -> list[int] | None:
        """Integers from an input, or from the attribute that older opsets have instead."""
        if name is not None and name in self.attributes:
            return [int(item) for item in self.attributes[name]]
        value = self.get(index)
        return None if value is None else [int(item) for item in value.reshape(-1)]


def require(condition: object, reason: str) -> None:
    if not condition:
        raise NotExact(reason)
