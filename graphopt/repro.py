"""The reproducer: the model before the failing pass, a one-pass pipeline, versions and the command line.

Made by replaying the run up to the failing pass, so that nothing has to be kept while passes work.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, PassError
from graphopt.ir.writer import write
from graphopt.manager.context import Context
from graphopt.manager.instruments import Instruments
from graphopt.manager.pipeline import Pipeline
from graphopt.manager.registry import get, loaded_from
from graphopt.manager.runner import run

if TYPE_CHECKING:
    from graphopt.checks import Check
    from graphopt.driver import Options
    from graphopt.manager.context import Capabilities


def write_repro(
    check: Check, failed: Context, pipeline: Pipeline, error: GraphoptError, options: Options
) -> Path | None:
    """Write `options.repro` (or a numbered sibling); return it, or None when the state cannot be replayed or written.

    Args:
        check: Knows the untouched model.
        failed: The context of the failed run.
        pipeline: What was running.
        error: What happened.
        options: The run's options.
    """
    assert options.repro is not None
    name = failed.pass_name
    before = sum(
        1
        for rewrite in failed.rewriter.rewrites
        if rewrite.pass_name != name or not _is_last_stretch(failed, rewrite.number)
    )
    try:
        model = check.fresh()
        ctx = Context(
            model,
            target=failed.target,
            evaluate=check.evaluate,
            timer=failed.timer,
            limit=before,
            max_growth=failed.max_growth,
            calibration=failed.calibration,
        )
        # The failing pass may raise again; the limit keeps it from changing anything first.
        with contextlib.suppress(PassError):
            run(model, pipeline, ctx, Instruments(verify="off"))
        folder = _free(options.repro)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".repro.", dir=folder.parent) as scratch:
            target = Path(scratch) / "repro"
            target.mkdir()
            write(model, target / "model.onnx")
            text = _description(name, pipeline, error, options, failed.target)
            (target / "repro.json").write_text(text, encoding="utf-8")
            target.replace(folder)
    except (GraphoptError, OSError):
        return None  # the first error is the one to report
    return folder


def _is_last_stretch(ctx: Context, number: int) -> bool:
    """Whether a rewrite belongs to the failing pass's last execution."""
    rewrites = ctx.rewriter.rewrites
    return all(rewrite.pass_name == ctx.pass_name for rewrite in rewrites[number - 1 :])


def _description(
    name: str, pipeline: Pipeline, error: GraphoptError, options: Options, target: Capabilities | None
) -> str:
    from graphopt.environment import versions

    item = next((str(item) for item in pipeline.passes() if item.name == name), name)
    return (
        json.dumps(
            {
                "command": shlex.join(["graphopt", *sys.argv[1:]]),
                "error": str(error),
                "pass": item,
                "replay": shlex.join(["graphopt", "opt", "model.onnx", "-p", item, *_flags(name, target, options)]),
                "versions": versions(),
            },
            indent=1,
        )
        + "\n"
    )


def _flags(name: str, target: Capabilities | None, options: Options) -> list[str]:
    """What the pass depends on besides the model, which has its sizes bound; usable from any folder."""
    file = loaded_from(get(name))
    samples = options.calibration_data if isinstance(options.calibration_data, str | Path) else None
    given = {
        "--load": file,
        "--target": target,
        "--max-growth": options.max_growth if options.max_growth != 1.1 else None,
        "--calibration-data": None if samples is None else _from_anywhere(str(samples)),
        "--calibration-samples": options.calibration_samples,
        "--calibration": None if options.calibration is None else options.calibration.absolute(),
        "--numerics": options.numerics if options.numerics != "end" else None,
        "--verify": options.verify if options.verify != "each" else None,
    }
    return [text for flag, value in given.items() if value is not None for text in (flag, str(value))]


def _from_anywhere(samples: str) -> str:
    """Calibration data with an absolute path; `random` and `module:function` have none."""
    path, colon, function = samples.partition(":")
    return f"{Path(path).absolute()}{colon}{function}" if samples != "random" and Path(path).exists() else samples


def _free(folder: Path) -> Path:
    if not folder.exists():
        return folder
    number = 2
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")
