"""What `--precision` stands for: the passes that join a named pipeline, each in its stage.

Not here: what the passes do, and where a target has options of its own for the same (`cuda{precision=fp16}`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, did_you_mean
from graphopt.manager import pipeline as pipelines

if TYPE_CHECKING:
    from graphopt.manager.pipeline import Pipeline
    from graphopt.target import Target

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "int8": ("equalize-layers", "smooth-quant", "quantize-static", "round-weights", "correct-bias"),
    "int8-dynamic": ("quantize-dynamic",),
    "int8-weights": ("quantize-weights{bits=8}",),
    "int4": ("quantize-weights{bits=4}",),
    "fp16": ("convert-float16",),
    "bf16": ("convert-bfloat16",),
}
"""Names that `--precision` takes, and the passes behind each."""
_PASSES = frozenset(item.partition("{")[0] for items in PRECISIONS.values() for item in items)
TIMED = frozenset({"int8", "int8-dynamic"})
"""Those that are meant to be faster: a result that is slower here than float is not shipped unless asked for."""
_HALF = frozenset({"fp16", "bf16"})
"""These run behind the fusions: a fused op keeps inside what its parts would have to compute in float32."""


def with_precision(name: str, level: int, target: Target | None) -> Pipeline:
    """The pipeline of a level with the passes of a precision in their stages.

    Raises:
        GraphoptError: there is no such precision, or the target already computes in another one.
    """
    if name not in PRECISIONS:
        raise GraphoptError(
            f"there is no precision {name!r}{did_you_mean(name, PRECISIONS)}; there are {', '.join(PRECISIONS)}"
        )
    plain = f"O{level}"
    given = target.pipeline(level) if target is not None else plain
    items = given.split(",")
    if not _PASSES.isdisjoint(items):
        raise GraphoptError(
            f"--precision {name}: the target {str(target)!r} has a pipeline of its own ({given}); "
            "give the precision in one place"
        )
    if name in _HALF:
        more = ",fix(eliminate-cast,eliminate-identity,cse,dce)" if level else ""
        return pipelines.parse(f"{given},{','.join(PRECISIONS[name])}{more}")
    listed = " ".join(f'"{item}"' for item in PRECISIONS[name])
    return pipelines.parse(",".join(f"{plain}{{with=[{listed}]}}" if item == plain else item for item in items))
