"""`graphopt opt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import common, report


@click.command("opt")
@common.model_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The .onnx file to write; without it nothing is written."
)
@click.option("--target", help="Emit this target's own ops too; without it standard ONNX ops only.")
@common.plan_only_option
@common.pipeline_options
def command(
    model: str | None, model_option: str | None, output: Path | None, target: str | None, plan_only: bool, **flags: Any
) -> None:
    """Run passes over MODEL, ONNX to ONNX."""
    from graphopt import driver

    source = common.pick_model(model, model_option)
    options = common.make_options(flags)
    if plan_only:
        common.print_plans(source, target, options)
        return
    report.check_remarks(flags["remarks_file"])
    result = driver.optimize(source, target, options, output)
    report.show(result.summary, flags, f"{source}{f' -> {output}' if output else ''}")
