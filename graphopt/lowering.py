"""Lowering: a model becomes the files of its target, with choices by measuring where these are asked for or planned.

Not here: how a target tunes, and the words of the request (tuning.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.artifact import PLANS
from graphopt.errors import GraphoptError
from graphopt.ir.hash import structural_hash
from graphopt.manager.plan import Plan, to_json
from graphopt.tuning import PLAN, Tuning

if TYPE_CHECKING:
    from graphopt.driver import Options, _Job
    from graphopt.target import CompiledFiles, Target


def check_tuning(options: Options, target: Target) -> None:
    """Refuse options of a tuner that is not there, before any work.

    Raises:
        GraphoptError: says which targets have one.
    """
    if options.remote is not None and options.tune is None:
        raise GraphoptError("--remote says where to tune: give --tune as well, for example --tune 10m")
    if options.tune is not None and not target.tunes:
        raise GraphoptError(f"--tune: target {target.name} has nothing to tune; it goes with --target tvm")


def take_tuned(plans: list[Plan], options: Options) -> Plan | None:
    """Take the tuner's plan out of those of passes.

    Raises:
        GraphoptError: there is one, and tuning is asked for as well.
    """
    found = next((plan for plan in plans if plan.name == PLAN), None)
    if found is None:
        return None
    if options.tune is not None:
        raise GraphoptError("--plan has tuned choices and --tune asks for new ones: give one of them")
    plans.remove(found)
    return found


def lower(job: _Job, folder: Path) -> CompiledFiles:
    """Have the target write its files, with choices by measuring where they are asked for, or planned.

    What was chosen joins the plans of the job.

    Raises:
        GraphoptError: the target fails, or the plan is for another model or a target without a tuner.
    """
    assert job.target is not None and job.result is not None
    options, given = job.options, job.tuned
    if given is None and options.tune is None:
        return job.target.compile(job.model, folder, options.external_data)
    here = structural_hash(job.model)
    if given is not None and given.model != here:
        raise GraphoptError(
            f"the tuned choices were made for another model (hash {given.model[:12]}, here {here[:12]}); tune again"
        )
    decisions = None if given is None else given.decisions
    tuning = Tuning(options.tune or 0.0, decisions, options.remote, options.progress)
    files = job.target.compile_tuned(job.model, folder, tuning, options.external_data)
    if files.decisions is not None:
        made = job.result.ctx.plans.made
        made[:] = [*(plan for plan in made if plan.name != PLAN), Plan(PLAN, str(job.target), here, files.decisions)]
    return files


def measured(files: CompiledFiles) -> tuple[str, ...]:
    """Files that hold what was measured."""
    return () if files.decisions is None else (PLANS,)


def checked_file(files: CompiledFiles, target: Target) -> str:
    """The file that numerics judge: on a machine without the device, the model that the code was made of."""
    return files.main if target.available() is None else files.model or files.main


def write_plans(job: _Job, folder: Path) -> tuple[str, ...]:
    """Write the plans that were carried out beside the model, where there are any; return the file's name."""
    assert job.result is not None
    made = job.result.ctx.plans.made
    if not made:
        return ()
    (folder / PLANS).write_text(to_json(made), encoding="utf-8")
    return (PLANS,)
