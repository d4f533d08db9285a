"""`graphopt bisect`."""

from __future__ import annotations

from typing import Any

import click

from graphopt.cli import common
from graphopt.cli.common import emit


@click.command("bisect")
@common.model_argument
@click.option("--target", help="Whose ops may be emitted.")
@click.option(
    "--oracle",
    metavar="COMMAND",
    help="A shell command, {} is the model's path; non-zero exit means bad. Without it: IR rules and numerics.",
)
@click.option(
    "--runtime/--no-runtime",
    default=True,
    show_default=True,
    help="When the rewrites are good, search ONNX Runtime's own optimizers.",
)
@common.pipeline_options
def command(
    model: str | None, model_option: str | None, target: str | None, oracle: str | None, runtime: bool, **flags: Any
) -> None:
    """Find the first rewrite that breaks MODEL; exits 1 when one is found."""
    from graphopt.blame import bisect

    blame = bisect(common.pick_model(model, model_option), target, common.make_options(flags), oracle, runtime)
    if flags["as_json"]:
        emit(blame.as_json())
    else:
        print(blame)
    if blame.culprit != "none":
        raise click.exceptions.Exit(1)
