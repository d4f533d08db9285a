"""What a pass is: a frozen dataclass whose fields are its options, and class attributes that say where it belongs.

Write a `RewritePass` (manager/pattern.py) or `NodePass` (manager/worklist.py) for local rules; `Pass` for the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.spec import unbuild

if TYPE_CHECKING:
    from graphopt import ir
    from graphopt.manager.context import Context

STAGES = ("capture", "simplify", "compress", "fuse-portable", "quantize", "fuse-target", "cleanup")
"""The order in which passes join a named pipeline."""

Tolerance = Literal["exact", "reassociates", "lossy"]


@dataclass(frozen=True)
class Pass(ABC):
    """One transformation of a model.

    Attributes:
        name: kebab-case, verb first (`fuse-conv-bn`); unique among all installed passes.
        stage: one of STAGES; with `level` it decides where `-O<n>` runs the pass.
        level: lowest optimization level that includes it (1, 2 or 3); None: only on request.
        tolerance: the numerical change it may make (graphopt/numerics.py).
        after: names of passes that come first when both are in the same stage.
        needs: analyses it reads ("shapes", "ranges"); they are ready when it runs.
        keeps: analyses that its changes do not spoil ("shapes" is kept up to date by the rewriter).
        scope: "all" graphs of the model or "main" only.
        calibrated: True when it asks for samples of real inputs (`ctx.need_calibration()`).
        changes_interface: True when it may rename, retype or reorder graph inputs and outputs.
    """

    name: ClassVar[str]
    stage: ClassVar[str] = "simplify"
    level: ClassVar[int | None] = None
    tolerance: ClassVar[Tolerance] = "exact"
    after: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("shapes",)
    keeps: ClassVar[tuple[str, ...]] = ("shapes",)
    scope: ClassVar[Literal["all", "main"]] = "all"
    calibrated: ClassVar[bool] = False
    changes_interface: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:  # noqa: B027 (a pass without options to check has nothing to override)
        """Validate the options; raise GraphoptError with one clear line."""

    @abstractmethod
    def run(self, model: ir.Model, ctx: Context) -> None:
        """Transform the model through `ctx.rewriter`."""

    def __str__(self) -> str:
        return str(unbuild(self, self.name))

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().split("\n")[0]


def is_concrete(cls: Any) -> bool:
    """True for a pass class that can be registered: it has a name of its own and no abstract method left."""
    return (
        isinstance(cls, type)
        and Pass in cls.__mro__  # what issubclass() of an abstract class asks takes longer
        and not getattr(cls, "__abstractmethods__", None)
        and isinstance(cls.__dict__.get("name"), str)
    )
