"""`graphopt passes`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from graphopt.cli.common import emit, say
from graphopt.spec import option_type


@click.command("passes")
@click.argument("name", required=False)
@click.option(
    "--load", "load_files", multiple=True, metavar="FILE.py", help="Load passes from a Python file; repeatable."
)
@click.option(
    "--pipeline", "pipeline", metavar="TEXT", help="Print the canonical form of a pipeline, named ones expanded."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def command(name: str | None, load_files: tuple[str, ...], pipeline: str | None, as_json: bool) -> None:
    """List all passes by stage, or show NAME with its options."""
    from graphopt.manager import registry
    from graphopt.manager.base import STAGES

    for file in load_files:
        registry.load_file(file)
    if pipeline is not None:
        from graphopt.manager.pipeline import parse

        text = str(parse(pipeline))
        if as_json:
            emit({"pipeline": text})
        else:
            print(text)
        return
    chosen = {name: registry.get(name)} if name else registry.passes()
    rows = [_row(cls) for _, cls in sorted(chosen.items())]
    if as_json:
        emit({"passes": rows, "stages": list(STAGES), "problems": list(registry.problems())})
        return
    for stage in STAGES:
        members = [row for row in rows if row["stage"] == stage]
        if members:
            print(f"{stage}:")
        for row in members:
            level = f"-O{row['level']}" if row["level"] is not None else "   "
            print(f"  {row['name']:32} {level:4} {row['tolerance']:13} {row['summary']}")
            for option in row["options"] if name else ():
                print(f"      {option['name']}: {option['type']} = {option['default']}")
    for problem in registry.problems():
        say(f"graphopt: {problem}")


def _row(cls: Any) -> dict[str, Any]:
    options = [
        {
            "name": field.name,
            "type": option_type(cls, field.name),
            "default": None if field.default is dataclasses.MISSING else field.default,
        }
        for field in dataclasses.fields(cls)
    ]
    return {
        "name": cls.name,
        "stage": cls.stage,
        "level": cls.level,
        "tolerance": cls.tolerance,
        "summary": cls.summary(),
        "options": options,
        "module": cls.__module__,
    }
