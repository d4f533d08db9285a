"""Gates that steer: where a gate on accuracy is missed, a search for precision is asked again, for a smaller error.

    if helps(evaluation, job): job = again(job, make_job)

Not here: judging (gating.py), and the search itself (the pass search-precision).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphopt.gates import ACCURACY
from graphopt.gating import rerun_as
from graphopt.manager.pipeline import Fix, Pipeline

if TYPE_CHECKING:
    from graphopt.driver import _Job
    from graphopt.evaluation import Evaluation
    from graphopt.gating import MakeJob

SEARCH = "search-precision"
STEP = 6.0
"""Decibels by which the bound on the error is raised: half of the noise's amplitude."""
MOST = 100.0
"""Decibels beyond which nothing is searched for: float32 itself is about 150 away from exact."""


def helps(evaluation: Evaluation | None, job: _Job) -> bool:
    """Whether a smaller error may meet what was missed: gates on accuracy, and a search that put something into int8.

    A plan that was given is not searched for again.
    """
    missed = evaluation.outcomes if evaluation is not None else ()
    if job.options.plan is not None or not any(not item.met and item.gate.name in ACCURACY for item in missed):
        return False
    if any(getattr(item, "sqnr", 0.0) >= MOST for item in job.pipeline.passes() if item.name == SEARCH):
        return False
    assert job.result is not None
    return any(plan.name == SEARCH and plan.decisions["nodes"] for plan in job.result.ctx.plans.made)


def again(job: _Job, make_job: MakeJob) -> _Job:
    """The same run with searches for a smaller error."""
    harder = rerun_as(job, stricter(job.pipeline), make_job)
    assert harder.result is not None
    harder.result.ctx.remarks.note(SEARCH, f"searched again with {STEP:g} dB more, as a gate on accuracy was missed")
    return harder


def stricter(pipeline: Pipeline) -> Pipeline:
    """The pipeline with every search bound to an error that is `STEP` decibels smaller."""

    def change(item: Any) -> Any:
        if isinstance(item, Fix):
            return replace(item, items=tuple(change(inner) for inner in item.items))
        return replace(item, sqnr=item.sqnr + STEP) if item.name == SEARCH else item

    return Pipeline(tuple(change(item) for item in pipeline.items))
