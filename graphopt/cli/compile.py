"""`graphopt compile`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from graphopt.cli import common, report


@click.command("compile")
@common.model_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("build"), show_default=True, help="Artifact folder."
)
@click.option(
    "--target", default="cpu", show_default=True, help="E.g. cpu, cuda, 'onnxruntime{device=cuda provider=tensorrt}'."
)
@click.option("--frozen", is_flag=True, help="Fail (4) unless the artifact that is there comes out again.")
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="TEXT",
    help="Write nothing (exit 3) unless this is reached: 'metric>=0.99x', 'latency<=1.0x', 'size<=0.3x', "
    "'cosine>=0.999', 'sqnr>=20', 'top1>=0.98', 'max-abs<=0.1'; repeatable.",
)
@click.option(
    "--eval",
    "evaluate",
    metavar="FUNCTION",
    help="Your metric: module:function or file.py:function; takes a runner, returns a number or one per sample.",
)
@click.option(
    "--keep-slow/--no-keep-slow",
    default=None,
    help="Ship a quantized model as it is; or time it here, and leave out what is slower than in float.",
)
@click.option("--tune", metavar="TIME", help="Choose by measuring for so long, e.g. 90s, 10m, 1h (target tvm).")
@common.remote_options
@common.plan_only_option
@common.pipeline_options
def command(
    model: str | None,
    model_option: str | None,
    output: Path,
    target: str,
    frozen: bool,
    gates: tuple[str, ...],
    evaluate: str | None,
    keep_slow: bool | None,
    tune: str | None,
    remote: str | None,
    key: str | None,
    plan_only: bool,
    **flags: Any,
) -> None:
    """Optimize MODEL, lower it for a target, prove that it computes the same, and write an artifact folder."""
    from graphopt import driver
    from graphopt.tuning import parse_duration, parse_remote

    source = common.pick_model(model, model_option)
    options = dataclasses.replace(
        common.make_options(flags),
        frozen=frozen,
        gates=gates,
        evaluate=evaluate,
        keep_slow=keep_slow,
        tune=None if tune is None else parse_duration(tune),
        remote=parse_remote(remote, key),
    )
    if plan_only:
        common.print_plans(source, target, options)
        return
    report.check_remarks(flags["remarks_file"])
    artifact = driver.compile(source, target, output, options)
    report.show(artifact.report, flags, f"{source} -> {output}/ for {target}")
