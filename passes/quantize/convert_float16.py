"""Half precision: the nodes that gain from it compute in float16, the interface and what is unsafe stay float32.

Lives here: the pass as users see it. What it shares with bfloat16 is in _half_pass.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passes.quantize._half_constants import LARGEST
from graphopt.passes.quantize._half_pass import ConvertHalf


@dataclass(frozen=True)
class ConvertFloat16(ConvertHalf):
    """f(x) -> Cast(f(Cast(x, float16)), float): weights and inner values become float16 where it is safe and pays.

    Options:
        keep: op types or sites (`scope/node`) that stay in float32.
        max: the largest magnitude that may become float16.
        ranges: JSON file {value name: [min, max]} of values as observed on data; nodes beyond `max` stay in float32.
            Without it and with calibration data, the values of the main graph are observed on that.
        keep_io: false makes inputs and outputs of the model float16 too, under the same names; those that the data or
            constants show to be out of range stay. The interface changes.

    Inputs and outputs of subgraphs and bodies of functions stay as they are; so do quantized groups, ops
    that overflow by nature, ops that schema or target do not offer in float16, and ops whose constants overflow or
    vanish. Without data only constants are guarded against overflow, not activations.

    A mask like -3.4e38 that is only ever added before a Softmax is cut at -32752, which gives the weight 0 as well; a
    row that is masked altogether keeps finite weights, but they may be others.
    """

    name: ClassVar[str] = "convert-float16"
    narrow: ClassVar[str] = "FLOAT16"
    end: ClassVar[float] = LARGEST["FLOAT16"]

    max: float = LARGEST["FLOAT16"]
