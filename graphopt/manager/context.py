"""What a pass is handed: rewriter, analyses, the target's capabilities, an evaluator, a timer, a place for remarks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from graphopt.errors import GraphoptError, PassError
from graphopt.ir.constants import MAX_BYTES, model_bytes
from graphopt.ir.rewriter import Rewriter
from graphopt.manager.plan import Plan, Plans
from graphopt.manager.remarks import Remarks

if TYPE_CHECKING:
    import numpy as np

    from graphopt import ir
    from graphopt.analysis.ranges import Ranges
    from graphopt.analysis.shapes import Shapes
    from graphopt.manager.calibration import Calibration


class Capabilities(Protocol):
    """What passes may ask of a target (graphopt.target.Target offers it)."""

    def supports(self, domain: str, op_type: str, version: int, dtype: str | None = None) -> str | None: ...

    def quirks(self) -> frozenset[str]: ...


Evaluator = Callable[["ir.Model", Mapping[str, "np.ndarray"]], "dict[str, np.ndarray]"]
"""Runs a small model on feeds with the runtime's optimizations off, isolated; handed in by the driver."""


class Seconds(Protocol):
    """What the nodes of a model take on this machine in float and in int8, and what lies between the two."""

    def of(self, site: str) -> tuple[float, float] | None:
        """Seconds of a node in float and in int8, without conversions; None where one of them is not known."""
        ...

    def total(self, int8: Collection[str]) -> float:
        """Seconds of all nodes that are known, with these sites in int8, and of the conversions that this takes."""
        ...

    def slow(self) -> Mapping[str, float]:
        """Sites that the fastest choice has in float, with how many times as long they take in int8."""
        ...


Timer = Callable[["ir.Model", "ir.Model", Collection[str]], Seconds]
"""Times the nodes of a float model and of the same model with these sites in int8, on the target; handed in by the
driver. Raises GraphoptError where nothing can be timed."""


class Context:
    """Lives as long as one pipeline run."""

    def __init__(
        self,
        model: ir.Model,
        *,
        target: Capabilities | None = None,
        evaluate: Evaluator | None = None,
        timer: Timer | None = None,
        limit: int | None = None,
        max_bytes: int = MAX_BYTES,
        max_growth: float = 1.1,
        calibration: Calibration | None = None,
        plans: Sequence[Plan] = (),
    ) -> None:
        self.model = model
        self.target = target
        self.evaluate = evaluate
        self.timer = timer
        self.max_bytes = max_bytes
        self.max_growth = max_growth
        self.calibration = calibration
        self.plans = Plans(plans)
        self.floats: ir.Model | None = None
        """The model as it was before its values became codes; passes that refine codes compare with it."""
        self.original_bytes = model_bytes(model)
        """Bytes of weights when the run began; growth is counted from there."""
        self.remarks = Remarks()
        self.rewriter = Rewriter(model, limit=limit)
        self.pass_name = ""
        self._analyses: dict[str, Any] = {}

    @property
    def shapes(self) -> Shapes:
        """Shapes of the model as it is now; inferred on first use, then kept by the rewriter."""
        return self.analysis("shapes")

    @property
    def ranges(self) -> Ranges:
        return self.analysis("ranges")

    def analysis(self, name: str) -> Any:
        """The named analysis, computed when it is not there or was dropped."""
        if name not in self._analyses:
            self._analyses[name] = self._compute(name)
        return self._analyses[name]

    def _compute(self, name: str) -> Any:
        if name == "shapes":
            from graphopt.analysis.shapes import Shapes

            shapes = Shapes(self.model)
            shapes.infer()
            self.rewriter.shapes = shapes
            return shapes
        if name == "ranges":
            from graphopt.analysis.ranges import Ranges

            return Ranges(self.model, self.shapes)
        raise PassError(f"pass {self.pass_name!r} needs an analysis {name!r}; there are: shapes, ranges")

    def keep_only(self, names: Sequence[str]) -> None:
        """Drop every analysis that is not named."""
        for name in list(self._analyses):
            if name not in names:
                del self._analyses[name]
                if name == "shapes":
                    self.rewriter.shapes = None

    def supports(self, op_type: str, domain: str = "", dtype: str | None = None) -> str | None:
        """None when the op may be emitted: the target has a kernel, or no target is set and the op is standard."""
        version = self.model.opset_imports.get(domain, 1)
        if self.target is None:
            return (
                None if domain == "" else f"no target is set, so only standard ops are emitted, not {domain}::{op_type}"
            )
        return self.target.supports(domain, op_type, version, dtype)

    def has_quirk(self, name: str) -> bool:
        """Whether the target is known for a measured peculiarity, e.g. "slow-skip-layer-norm"; without a target, no."""
        return self.target is not None and name in self.target.quirks()

    def need_calibration(self) -> Calibration:
        """The calibration data.

        Raises:
            GraphoptError: none was given; says how to.
        """
        if self.calibration is None:
            raise GraphoptError(
                f"pass {self.pass_name!r} needs samples of real inputs: give --calibration-data FILE.npz "
                "(first axis: samples), a folder, or package.module:function"
            )
        return self.calibration

    def note(self, reason: str, node: ir.Node | None = None) -> None:
        """A remark about the run as a whole, or about one node."""
        site, op = (self.rewriter.site(node), node.op_type) if node is not None else ("", "")
        self.remarks.note(self.pass_name, reason, site, op)
