"""bfloat16: as convert-float16, with the range of float32 and eight bits of precision.

Lives here: the pass as users see it. What it shares with float16 is in _half_pass.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passes.quantize._half_constants import LARGEST
from graphopt.passes.quantize._half_pass import ConvertHalf


@dataclass(frozen=True)
class ConvertBFloat16(ConvertHalf):
    """f(x) -> Cast(f(Cast(x, bfloat16)), float): weights and inner values become bfloat16 where the target computes so.

    Options:
        keep: op types or sites (`scope/node`) that stay in float32.
        max: the largest magnitude that may become bfloat16.
        ranges: JSON file {value name: [min, max]} of values as observed on data; nodes beyond `max` stay in float32.
        keep_io: false makes inputs and outputs of the model bfloat16 too, under the same names. The interface changes.

    As convert-float16: inputs and outputs of subgraphs stay as they are, and so do quantized groups,
    bodies of functions, what eight bits of precision are too few for, and ops that schema or target do not offer in
    bfloat16; a target that does not multiply in bfloat16 is left with the model as it is. Nothing overflows but what
    is beyond 3.39e38.
    """

    name: ClassVar[str] = "convert-bfloat16"
    narrow: ClassVar[str] = "BFLOAT16"
    end: ClassVar[float] = LARGEST["BFLOAT16"]

    max: float = LARGEST["BFLOAT16"]
