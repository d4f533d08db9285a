"""The operator table: which ops exist in which opset, how many inputs they take, what their attributes are.

Read from optable.json (made by make_optable.py), so that no schema library is imported.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("optable.json")
# Ops whose result differs from run to run: never folded, merged or duplicated.
RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# Quantize/dequantize ops: passes of this package that do not deal in quantization leave these and their groups alone.
QUANTIZED_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class OpSchema:
    """One version of an operator. Bounds are counts; -1 means any number."""

    domain: str
    name: str
    since: int
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    attributes: dict[str, str]
    deprecated: bool


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(_FILE.read_text())


def domains() -> frozenset[str]:
    """The domains whose ops are known; ops of any other domain are opaque."""
    return frozenset(_table()["domains"])


def newest_opset() -> int:
    """The newest standard opset in the table."""
    return int(_table()["newest"])


def op_names(domain: str = "") -> frozenset[str]:
    return frozenset(_table()["domains"].get(domain, ()))


@functools.cache
def schema(domain: str, name: str, opset: int) -> OpSchema | None:
    """The schema of `name` in force at `opset`, or None when the op is unknown or not there yet."""
    rows = _table()["domains"].get(domain, {}).get(name, ())
    current = None
    for row in rows:
        if row[0] <= opset:
            current = row
    if current is None:
        return None
    return OpSchema(domain, name, *current)


def versions(domain: str, name: str) -> tuple[int, ...]:
    """The opsets in which the op was introduced or changed, ascending; () for an unknown op."""
    return tuple(row[0] for row in _table()["domains"].get(domain, {}).get(name, ()))
