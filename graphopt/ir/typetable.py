"""The type table: which operands of an operator share a type, and may be narrowed from float32 to float16 or bfloat16.

Read from typetable.json (made by make_typetable.py), so that no schema library is imported.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("typetable.json")


@dataclass(frozen=True)
class Operands:
    """The operands of one operator version that may be float32.

    Attributes:
        inputs, outputs: type group per formal operand, '' where none may be float32; a trailing `*` repeats.
        narrow: per group the names of the narrower floats that the schema allows.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    narrow: Mapping[str, Sequence[str]]

    def input_allows(self, slot: int, dtype: str) -> bool:
        """Whether input `slot` may be float32 and also `dtype` (`FLOAT16`, `BFLOAT16`)."""
        return dtype in self.narrow.get(self.input_group(slot), ())

    def output_allows(self, slot: int, dtype: str) -> bool:
        """The same for output `slot`."""
        return dtype in self.narrow.get(self.output_group(slot), ())

    def input_group(self, slot: int) -> str:
        """The type group of input `slot`; '' where it may not be float32."""
        return _group(self.inputs, slot)

    def output_group(self, slot: int) -> str:
        """The same for output `slot`."""
        return _group(self.outputs, slot)


def _group(formal: Sequence[str], slot: int) -> str:
    if slot < len(formal):
        return formal[slot].rstrip("*")
    return formal[-1].rstrip("*") if formal and formal[-1].endswith("*") else ""


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8"))["domains"]


@functools.cache
def operands(domain: str, op_type: str, opset: int) -> Operands | None:
    """The operands of the op in force at `opset`; None for an op that is unknown or has nothing to do with float32."""
    current = None
    for row in _table().get(domain, {}).get(op_type, ()):
        if row[0] <= opset:
            current = row
    if current is None:
        return None
    return Operands(tuple(current[1]), tuple(current[2]), current[3])
